"""Stopping without breaking what goes on: the calls in flight, the signals, and the order of things.

grpc.aio's own ``stop`` does not wait for the ``finally`` of handlers that it aborts, so the calls in flight
are kept here, and a server has stopped only when each of them has cleaned up after itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clawbox.rpc.call import Call

_log = structlog.stdlib.get_logger("clawbox.rpc")


class Calls:
    """The calls in flight."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._calls)

    def names(self) -> list[str]:
        """The methods of the calls in flight."""
        return sorted(call.name for call in self._calls)

    @property
    def draining(self) -> bool:
        """Whether new work is refused with SHUTTING_DOWN."""
        return self._draining

    def refuse_new(self) -> None:
        """Take no new work from now on. There is no way back."""
        self._draining = True

    def add(self, call: Call) -> None:
        """A call arrived. It is in flight until its task is done: cleaned up, and its last bytes sent."""
        self._calls.add(call)
        self._none_left.clear()
        if call.task is not None:
            call.task.add_done_callback(partial(self._ended, call))

    def _ended(self, call: Call, _task: object) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._none_left.set()

    def end(self, which: Callable[[Call], bool] = lambda _call: True) -> int:
        """Cancel the calls in flight that ``which`` chooses, with SHUTTING_DOWN; returns how many."""
        ended = 0
        for call in tuple(self._calls):
            if not which(call) or call.stopping or call.task is None:
                continue
            call.stopping = True
            ended += 1
            if not call.task.cancelling():  # its caller left: it is cleaning up, and must not be disturbed
                call.task.cancel()
        return ended

    def sever(self) -> None:
        """The connections go now: whatever is still in flight may clean up, but has nobody to talk to."""
        for call in self._calls:
            call.severed = True

    async def wait_none_left(self, seconds: float | None = None) -> bool:
        """Wait until no call is in flight, at most so long; returns whether that came."""
        try:
            async with asyncio.timeout(seconds):
                await self._none_left.wait()
        except TimeoutError:
            return False
        return True


@contextlib.contextmanager
def shutdown_on_signals(
    shutdown: asyncio.Event,
    *,
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
    exit_at_once: Callable[[int], object] = os._exit,
) -> Iterator[None]:
    """Set ``shutdown`` at the first signal; at the second, leave the process with status 128 + its number.

    Must be entered on the main thread, with a running loop.
    """
    loop = asyncio.get_running_loop()

    def received(which: signal.Signals) -> None:
        if shutdown.is_set():
            _log.warning("second signal: exiting at once", signal=which.name)
            exit_at_once(128 + which)
            return
        _log.info("shutting down; a second signal exits at once", signal=which.name)
        shutdown.set()

    for which in signals:
        loop.add_signal_handler(which, received, which)
    try:
        yield
    finally:
        for which in signals:
            loop.remove_signal_handler(which)
