"""How much may go on at once: executions, streams of one caller, and answers to wrong tokens.

Health checks need none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

MAX_STREAMS = 100
"""Open streams of a principal whose token names no number."""

MAX_PUBLIC_STREAMS_PER_ADDRESS = 32
"""Open streams without a token from one address, reflection and health watches together."""

MAX_PUBLIC_STREAMS = 512
"""Open streams without a token from all addresses."""

MAX_PUBLIC_CHECKS_PER_ADDRESS = 16
"""Health checks from one address that are being read. One takes a millisecond, unless its sender dawdles."""

MAX_PUBLIC_MESSAGE_BYTES = 16 * 1024
"""Largest message without a token: a service's name, or a question to reflection."""

SMALL_REPLY_BYTES = 64 << 10
"""Replies up to this size are not counted: the number of calls on a connection bounds them."""

MAX_UNREAD_BYTES = 128 << 20
"""Larger replies of one principal that wait to be read, after which its next call waits too."""

RETRY_SECONDS = 1.0
"""After which a caller that found no room may try again."""


class ExecutionLimit:
    """Places for executions: so many run, so many wait in order of arrival, the rest is refused."""

    def __init__(self, running: int, queued: int) -> None:
        self._max_running = running
        self._max_queued = queued
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def running(self) -> int:
        """Executions that have a place."""
        return self._running

    @property
    def queued(self) -> int:
        """Executions that wait for one."""
        return len(self._waiting)

    async def acquire(self) -> int:
        """Wait for a place; returns the time waited in microseconds.

        Whoever calls this calls :meth:`release` afterwards, unless this raises. Raises EXECUTION_LIMIT at
        once when the queue is full. When it is cancelled (the caller left, its deadline passed) nothing is
        held.
        """
        if self._running < self._max_running:
            # Nobody waits while there is room: a place that is given back goes straight to the first in line.
            self._running += 1
            return 0
        if len(self._waiting) >= self._max_queued:
            raise ClawboxError(
                Reason.EXECUTION_LIMIT,
                "{running} executions run and {queued} wait; the server takes no more",
                retry_after=RETRY_SECONDS,
                running=self._running,
                queued=len(self._waiting),
            )
        began = time.perf_counter()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The place came in the same moment: pass it on.
                self.release()
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
            raise
        return round((time.perf_counter() - began) * 1e6)

    def release(self) -> None:
        """Give a place back: to the first that waits, if any."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1


class StreamLimit:
    """Counts what each caller has open."""

    def __init__(self, total: int | None = None) -> None:
        self._open: dict[Hashable, int] = {}
        self._total = total
        self._all = 0

    def acquire(self, caller: Hashable, limit: int) -> None:
        """Count one more. Raises STREAM_LIMIT when ``caller`` has ``limit`` open, or all have the total."""
        have = self._open.get(caller, 0)
        if have >= limit:
            raise ClawboxError(
                Reason.STREAM_LIMIT,
                "{open} of {limit} calls of this kind are open already",
                retry_after=RETRY_SECONDS,
                open=have,
                limit=limit,
            )
        if self._total is not None and self._all >= self._total:
            raise ClawboxError(
                Reason.STREAM_LIMIT,
                "{open} of {limit} calls without a token are open already",
                retry_after=RETRY_SECONDS,
                open=self._all,
                limit=self._total,
            )
        self._open[caller] = have + 1
        self._all += 1

    def release(self, caller: Hashable) -> None:
        """Count one less."""
        have = self._open[caller] - 1
        self._all -= 1
        if have:
            self._open[caller] = have
        else:
            del self._open[caller]


class UnreadReplies:
    """Bytes of large replies that gRPC was given and that their reader did not take yet, by caller.

    They are in memory for as long as the reader likes: nothing but its connection's end frees them.
    """

    def __init__(self, most: int = MAX_UNREAD_BYTES) -> None:
        self._most = most
        self._bytes: dict[str, int] = {}

    def check(self, caller: str) -> None:
        """Raise STREAM_LIMIT when ``caller`` leaves too much unread."""
        unread = self._bytes.get(caller, 0)
        if unread >= self._most:
            raise ClawboxError(
                Reason.STREAM_LIMIT,
                "{bytes} bytes of replies to {caller} wait to be read",
                retry_after=RETRY_SECONDS,
                bytes=unread,
                caller=caller,
            )

    def add(self, caller: str, size: int, sending: asyncio.Task[Any]) -> None:
        """Count a reply of ``size`` bytes until the task that sends it is done."""
        if size > SMALL_REPLY_BYTES:
            self._bytes[caller] = self._bytes.get(caller, 0) + size
            sending.add_done_callback(lambda _: self._sent(caller, size))

    def _sent(self, caller: str, size: int) -> None:
        self._bytes[caller] -= size
        if not self._bytes[caller]:
            del self._bytes[caller]


class RefusedTokens:
    """How often an address may present a token that is not known before it is told to wait.

    A token bucket for each address. It is asked only after a token was refused, so it cannot delay a valid
    one. The table is bounded: the address that was refused longest ago is forgotten first.
    """

    def __init__(
        self,
        *,
        burst: int = 20,
        per_second: float = 1.0,
        max_addresses: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._max_addresses = max_addresses
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def refuse(self, address: str) -> None:
        """Note that ``address`` presented a wrong token. Raises RATE_LIMIT when it did so too often."""
        now = self._clock()
        left, seen = self._buckets.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._per_second)
        allowed = left >= 1
        self._buckets[address] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self._max_addresses:
            self._buckets.popitem(last=False)
        if not allowed:
            raise ClawboxError(
                Reason.RATE_LIMIT,
                "too many refused tokens from {address}",
                retry_after=(1 - left) / self._per_second,
                address=address,
            )
