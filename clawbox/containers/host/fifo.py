"""The FIFOs at which gates wait (:mod:`clawbox.containers.gate`)."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import select
import stat
import termios
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
_FIRST_PAUSE = 0.0005
_EARLY_PAUSE = 0.001
_EARLY_SECONDS = 0.05
"""A gate that waits takes its byte at once: until then it is looked at often."""
_LONGEST_PAUSE = 0.02


class GateStuckError(Exception):
    """No gate took the byte that lets it go: it is not there, it ended, or it does not run."""


class Fifo:
    """The writing end of one gate's FIFO, which this process holds until the gate is let go, or refused.

    Only the gate reads there, so it is known whether it waits. When the last writer closes, a gate that waits
    reads the end of the file and ends with 127: so does one whose server died. Nothing here blocks.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def hold(cls, path: Path) -> Self:
        """Open a FIFO before there is a gate at it. Raises :class:`OSError`."""
        # Without a reader a FIFO cannot be opened for writing alone (fifo(7)); so there is one meanwhile.
        both = os.open(path, os.O_RDWR | _FLAGS)
        try:
            _check(both, path)
            return cls(path, os.open(path, os.O_WRONLY | _FLAGS))
        finally:
            os.close(both)

    @classmethod
    def reattach(cls, path: Path) -> Self | None:
        """Open a FIFO at which a gate waits already; None: none does, it was let go or is gone.

        Raises :class:`OSError`, as when there is no such FIFO.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | _FLAGS)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        try:
            _check(descriptor, path)
        except OSError:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    @property
    def held(self) -> bool:
        """Whether this still keeps the gate."""
        return self._descriptor >= 0

    @property
    def waiting(self) -> bool:
        """Whether a gate has come to it and waits."""
        return self.held and not self._has_no_reader()

    async def wait_for_gate(self, timeout: float) -> None:  # noqa: ASYNC109 - raises an error of its own
        """Wait until a gate has come to it, ``timeout`` in seconds. Raises :class:`GateStuckError`."""
        pauses = _Pauses(timeout)
        while not self.waiting:
            if not self.held:
                raise GateStuckError(f"{self.path.name} is closed")
            if not await pauses.wait():
                raise GateStuckError(f"nothing came to {self.path.name} within {timeout:g} s")

    async def release(self, timeout: float) -> None:  # noqa: ASYNC109 - raises an error of its own
        """Let the gate go: wait for it, write one byte, and see that it is read; ``timeout`` in seconds.

        Closed after that, whatever came of it, and cancelled, too. A byte is never left over, which would
        let a later gate go unguarded. Raises :class:`GateStuckError`; the gate is then refused.
        """
        pauses = _Pauses(timeout)
        try:
            await self.wait_for_gate(timeout)
            try:
                os.write(self._descriptor, b"\n")
            except BrokenPipeError:
                raise GateStuckError(f"the gate at {self.path.name} ended") from None
            try:
                while self._unread():
                    if self._has_no_reader() or not await pauses.wait():
                        break
            finally:
                taken_back = self._take_back()
            if taken_back:
                raise GateStuckError(f"the gate at {self.path.name} did not take its byte")
        finally:
            self.close()

    def close(self) -> None:
        """Refuse the gate, if it was not let go: it ends with 127."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has_no_reader(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def _unread(self) -> int:
        size = array.array("i", [0])
        fcntl.ioctl(self._descriptor, termios.FIONREAD, size)
        return size[0]

    def _take_back(self) -> bool:
        """Read the byte here if nobody else has; the gate may have taken it until now."""
        if not self._unread():
            return False
        # The same one, though its name may be gone; the link of /proc is not one that O_NOFOLLOW is against.
        reader = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with contextlib.suppress(BlockingIOError):
                return bool(os.read(reader, 1))
            return False
        finally:
            os.close(reader)


class _Pauses:
    """Pauses that grow, until a time."""

    def __init__(self, timeout: float) -> None:
        self._began = time.monotonic()
        self._until = self._began + timeout
        self._next = _FIRST_PAUSE

    async def wait(self) -> bool:
        """Pause; False: the time is over."""
        now = time.monotonic()
        left = self._until - now
        if left <= 0:
            return False
        await asyncio.sleep(min(self._next, left))
        longest = _EARLY_PAUSE if now - self._began < _EARLY_SECONDS else _LONGEST_PAUSE
        self._next = min(self._next * 2, longest)
        return True


def _check(descriptor: int, path: Path) -> None:
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "no FIFO", str(path))
