"""Ordinary programs, as they are installed, through ``clawbox egress serve`` to TLS servers on loopback.

They are told of the way out by the variables and files of ``--env-dir`` alone. The names of the servers are
known to the command alone, by an ``/etc/hosts`` of its own (``world.py``): what a program resolves or reaches
by itself fails.
"""
