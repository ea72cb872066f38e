"""What confines containers, looked at from the engine, from the host and from inside: a real engine's."""
