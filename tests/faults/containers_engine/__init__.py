"""Engine, server and sidecars of containers die, and what happens to containers that nobody here did."""
