"""Docker as the backend of containers: its Engine API over its own socket.

``backend`` is the part that the rest of clawbox sees. It asks through ``connection``, which knows how long an
answer may take and what a failure is called; ``execs`` has the connections that carry a process's streams.
What the engine's bytes mean is said by pure functions: ``answers``, ``frames`` and ``pulls``.
"""

from __future__ import annotations

from clawbox.containers.docker.backend import DockerBackend

__all__ = ["DockerBackend"]
