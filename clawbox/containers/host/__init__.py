"""What containers need of the machine that their engine runs on: folders, FIFOs, cgroups, processes.

The server is root here, and on the engine's own host: all of this looks into processes that the engine
started, and makes files that no sandbox may own.
"""
