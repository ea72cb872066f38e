"""``clawbox serve`` that kills itself at a certain step: ``dying.py FILE STEP clawbox serve …``.

A step is behind one of the calls by which a container that is made, ended or forgotten changes something
outside of the server's memory. Steps are counted once FILE is there. At step STEP the server sends itself
SIGKILL; its name and those before it are lines of that file.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Steps:
    """Counts them."""

    def __init__(self, file: Path, last: int) -> None:
        self._file = file
        self._last = last
        self._count = 0
        # Some are in threads of their own, and none may count past the last one unseen.
        self._lock = threading.Lock()

    def __call__(self, what: str) -> None:
        """One more; it may be the last."""
        with self._lock:
            if not self._file.exists():
                return
            self._count += 1
            with self._file.open("a") as file:
                file.write(f"{what}\n")
            if self._count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)

    def behind(self, owner: type, name: str) -> None:
        """Have the end of a method be a step."""
        method: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(method)
        async def asynchronous(*arguments: Any, **options: Any) -> Any:
            try:
                result = await method(*arguments, **options)
            except Exception:
                # Refused is a step, too: whether the engine has seen by now that what is to die is dead is
                # a matter of moments.
                self(f"{owner.__name__}.{name}")
                raise
            self(f"{owner.__name__}.{name}")
            return result

        @functools.wraps(method)
        def blocking(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            self(f"{owner.__name__}.{name}")
            return result

        setattr(owner, name, asynchronous if inspect.iscoroutinefunction(method) else blocking)


def patch(steps: Steps) -> None:
    """Have everything that outlives the server be a step."""
    from clawbox.containers.docker import DockerBackend
    from clawbox.containers.execs import Execs
    from clawbox.containers.host.fifo import Fifo
    from clawbox.containers.host.folders import ContainerFolder
    from clawbox.containers.host.workspaces import Workspaces
    from clawbox.containers.output.capture import OutputCapture
    from clawbox.egress.sandbox_door import SandboxDoor
    from clawbox.store import ContainerRows

    for owner, names in (
        (DockerBackend, ("create", "start", "signal", "remove")),
        (ContainerFolder, ("make", "write", "remove")),
        (Workspaces, ("acquire", "delete")),
        (OutputCapture, ("began", "ended", "forgotten")),
        (Execs, ("began",)),
        (SandboxDoor, ("listen_unix", "listen_namespace")),
        (Fifo, ("release",)),
        (ContainerRows, ("save", "delete")),
    ):
        for name in names:
            steps.behind(owner, name)


if __name__ == "__main__":
    patch(Steps(Path(sys.argv[1]), int(sys.argv[2])))
    from clawbox.cli import main

    sys.argv = sys.argv[3:]
    main()
