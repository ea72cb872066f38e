"""An event loop for a confined child: made before it is confined, and run afterwards without a new socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from clawbox.children.confine import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")


class EventLoop:
    """uvloop's event loop. Made in ``Kind.open_own``, which returns :attr:`descriptors`, and run in ``main``.

    uvloop makes a pair of sockets for signals whenever it begins to run in the main thread, which a confined
    child cannot. Such a child handles no signals, so the loop runs in another thread.
    """

    def __init__(self) -> None:
        before = open_descriptors()
        self._loop = uvloop.new_event_loop()
        self._loop.run_until_complete(_use())
        self.descriptors = tuple(open_descriptors() - before)
        """What it has open."""

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run ``work`` until it is done; what it raises is raised here. Not to be called again."""
        done: Future[Result] = Future()
        threading.Thread(target=self._run, args=(work, done), daemon=True).start()
        return done.result()

    def _run(self, work: Coroutine[Any, Any, Result], done: Future[Result]) -> None:
        try:
            asyncio.set_event_loop(self._loop)
            done.set_result(self._loop.run_until_complete(work))
        except BaseException as error:  # noqa: BLE001 - it is raised in the main thread
            done.set_exception(error)


async def _use() -> None:
    """Have libuv open the descriptor that it keeps for when there are no others left, at its first stream."""
    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = await asyncio.get_running_loop().create_unix_connection(asyncio.Protocol, sock=ours)
        transport.abort()
