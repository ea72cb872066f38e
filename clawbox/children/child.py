"""One process that a forkserver made, as control holds it from its fork to its death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Child:
    """A process that a forkserver made, held by its pidfd, so that a signal never reaches another."""

    def __init__(self, pid: int, pidfd: int, loaded: frozenset[str]) -> None:
        self.pid = pid
        """For people only; nothing is ever done by it."""
        self.loaded = loaded
        """Keys of what was loaded when it was forked."""
        self.orphaned = False
        """Its forkserver is gone: the kernel kills it this instant, so it must be given nothing to do."""
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._dead: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._died)

    @property
    def alive(self) -> bool:
        """Whether control has not yet learned of its death."""
        return not self._dead.done()

    def kill(self) -> None:
        """Send SIGKILL. Nothing happens when it is dead already."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def dead(self) -> None:
        """Return once the process has ended."""
        await asyncio.shield(self._dead)

    def when_dead(self, call: Callable[[], None]) -> None:
        """Have ``call`` called on the event loop once the process has ended."""
        self._dead.add_done_callback(lambda _: call())

    def _died(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._dead.set_result(None)
