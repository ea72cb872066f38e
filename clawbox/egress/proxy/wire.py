"""One connection as a coroutine sees it: read, write, wait; with TLS inside or without.

A protocol on any transport. Reading stops when nobody takes what came, writing waits when the other end does
not read, so that a stream of any size needs constant memory. How long either may take is its ``deadline``.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from clawbox.egress.proxy.deadline import Deadline
from clawbox.egress.refusal import Denial, Refusal, RefusedError
from clawbox.egress.tls.session import TlsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.tls.session import TlsSession

MAX_BUFFERED: Final = 256 << 10
"""Bytes that are kept for a reader before the other end is made to wait."""
CLOSING_SECONDS: Final = 30.0  # for the other end to take what is unsent
LINGER_SECONDS: Final = 2.0  # and bytes, that are read and thrown away after an answer to what was not read
LINGER_BYTES: Final = 1 << 20
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: at once, without what is unsent


class Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._tls: TlsSession | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._full = False
        self._held = False
        self._eof = False
        self._closed = False
        self._lost = False
        self._shut = False
        self._refusal: Refusal | None = None
        self._splice: Wire | None = None
        self._source: Wire | None = None
        self.deadline = Deadline(loop, self.fail)
        """Whoever reads or drains after it is refused."""
        self.on_end: Callable[[], None] | None = None
        """Called once when the other end sends no more, or is gone; it may set itself again."""
        self.on_bytes: Callable[[], None] | None = None
        """Called when bytes come that nobody asked for."""
        self.received = 0
        """Bytes that came, TLS's own among them."""
        self.sent = 0

    # What a coroutine asks ----------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the other end sends no more, or is gone."""
        return self._eof or self._lost

    @property
    def lost(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._lost

    @property
    def failed(self) -> bool:
        """Whether whoever reads it next is refused."""
        return self._refusal is not None

    @property
    def clean_end(self) -> bool:
        """Whether it ended as the other end wanted: not by a reset, and TLS with its closing message (53)."""
        return self._tls.clean_close if self._tls is not None else self._closed

    @property
    def can_break(self) -> bool:
        """Whether the other end can tell :meth:`abort` from :meth:`close`: Unix sockets have no reset."""
        return self.encrypted or self.resets

    @property
    def encrypted(self) -> bool:
        """Whether it speaks TLS."""
        return self._tls is not None

    @property
    def resets(self) -> bool:
        """Whether the transport has resets: a break that shows, and an answer to what is sent to nobody."""
        raw = None if self._transport is None else self._transport.get_extra_info("socket")
        return raw is None or raw.family != socket.AF_UNIX

    @property
    def hung_up(self) -> bool:
        """Whether the other end neither sends nor reads any more, as far as the kernel has been told."""
        if self._transport is None or self._lost or self._transport.is_closing():
            return True
        # Not poll(2), which a sidecar's system calls do not have.
        with select.epoll() as poll:
            poll.register(self._transport.get_extra_info("socket").fileno(), 0)
            return bool(poll.poll(0))

    @property
    def buffered(self) -> bool:
        """Whether bytes have come that nobody read."""
        return bool(self._chunks)

    async def read(self) -> bytes:
        """Whatever has come, at least a byte; none at the end. Raises RefusedError when it is too late."""
        while True:
            if self._refusal is not None:
                raise RefusedError.of(self._refusal)
            if self._chunks:
                break
            if self._eof or self._lost:
                return b""
            await self._news()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if self._held:
            self._hold(held=False)
        return data

    def unread(self, data: bytes) -> None:
        """Put back what was read, before everything else."""
        if data:
            self._chunks.insert(0, data)
            self._size += len(data)

    def write(self, data: bytes) -> None:
        """Send; what a connection that is gone is given is lost."""
        if self._transport is None or self._lost or self._shut or not data:
            return
        if self._tls is not None:
            try:
                data = self._tls.send(data)
            except TlsError as error:
                self.fail(error.refusal)
                return
        self.sent += len(data)
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the other end has taken enough. Raises RefusedError when it is too late."""
        while self._full and not self._lost:
            if self._refusal is not None:
                raise RefusedError.of(self._refusal)
            self._writing = self._loop.create_future()
            try:
                await self._writing
            finally:
                self._writing = None

    def fail(self, refusal: Refusal) -> None:
        """Have whoever reads or drains, now or later, raise this."""
        if self._refusal is None:
            self._refusal = refusal
        self._wake()

    async def start_tls(self, session: TlsSession, gone: Denial) -> None:
        """Speak TLS from now on; returns after the handshake.

        Raises RefusedError: the session's own, that of a deadline, or ``gone`` when the other end closed.
        """
        self._tls = session
        held, self._chunks, self._size = b"".join(self._chunks), [], 0
        self._decrypt(held)
        while not session.handshake_done:
            if self._refusal is not None:
                raise RefusedError.of(self._refusal)
            if self._eof or self._lost:
                raise RefusedError(gone, "it closed the connection")
            await self._news()

    def close(self, within: float = CLOSING_SECONDS) -> None:
        """Send what is unsent, then close; break it off where the other end does not take it in time."""
        if self._transport is None or self._lost:
            return
        self._say_goodbye()
        self._source = None  # it stays as it is: what would come is for nobody
        self.deadline.cancel()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self.deadline.on_late = self.abort
            self.deadline.limit(within, Denial.IDLE_TIMEOUT)

    def abort(self) -> None:
        """Close so that the other end sees a break: a reset where the transport has one (53)."""
        if self._transport is None or self._lost:
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None and self.resets:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.deadline.cancel()
        self._shut = True  # uvloop would still send an end, or TLS's closing message, before the reset
        self._transport.abort()

    async def linger(self) -> None:
        """Close after an answer to what was not read whole, so that the answer is not lost to a reset."""
        if self._transport is None or self._lost or self._transport.is_closing():
            return
        self.deadline.limit(LINGER_SECONDS, Denial.IDLE_TIMEOUT)
        try:
            self._say_goodbye()
            self.write_eof()
            left = LINGER_BYTES
            while left > 0 and (data := await self.read()):
                left -= len(data)
        except RefusedError:
            pass
        self.close()

    # Tunnels ------------------------------------------------------------------------------------------------

    def splice(self, other: Wire) -> None:
        """From now on what comes here goes out there, unread; ``ended`` and ``received`` still tell."""
        self._splice, other._source = other, self
        for chunk in self._chunks:
            other.write(chunk)
        self._chunks.clear()
        self._size = 0
        if self._held:
            self._hold(held=False)
        if self._eof:
            other.write_eof()

    def write_eof(self) -> None:
        """Nothing more is sent."""
        if self._transport is not None and not self._lost and not self._shut:
            self._shut = True
            with contextlib.suppress(OSError):
                self._transport.write_eof()

    async def gone(self) -> None:
        """Return when nothing of the connection is left."""
        while self._transport is not None and not self._lost:
            await self._news()

    async def end(self) -> None:
        """Return when the other end sends no more. Raises RefusedError when it is too late."""
        while not (self._eof or self._lost):
            if self._refusal is not None:
                raise RefusedError.of(self._refusal)
            await self._news()

    # What the transport says --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio)."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_BUFFERED)

    def data_received(self, data: bytes) -> None:
        """Take bytes (asyncio)."""
        self.received += len(data)
        deadline = self.deadline
        if deadline.idle is not None:  # as moved() does, without a call for every piece of data
            deadline.at = self._loop.time() + deadline.idle
        if self._splice is not None:
            self._splice.write(data)
            if self._splice._full:  # noqa: SLF001
                self._hold(held=True)
            return
        if self._tls is not None:
            self._decrypt(data)
        else:
            self._chunks.append(data)
            self._size += len(data)
        if self._size > MAX_BUFFERED and not self._held:
            self._hold(held=True)
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)
        if self.on_bytes is not None and self._chunks:
            self.on_bytes()

    def eof_received(self) -> bool:
        """Note that nothing more comes (asyncio); what is unsent may still go."""
        self._closed = True
        self._finish()
        return True

    def pause_writing(self) -> None:
        """Note that the other end does not read (asyncio)."""
        self._full = True

    def resume_writing(self) -> None:
        """Note that it does again (asyncio)."""
        self._full = False
        self.deadline.moved()
        if self._source is not None:
            self._source._hold(held=False)  # noqa: SLF001
        if self._writing is not None and not self._writing.done():
            self._writing.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that it is gone (asyncio)."""
        self._lost = True
        self.deadline.end()
        if exc is not None and self._splice is not None:
            self._splice.abort()
        self._finish()

    def _decrypt(self, data: bytes) -> None:
        assert self._tls is not None
        assert self._transport is not None
        try:
            plain = self._tls.receive(data)
        except TlsError as error:
            self.fail(error.refusal)
            plain = b""
        # Even a session that failed has an alert to send.
        pending = self._tls.pending()
        if pending and not self._lost:
            self._transport.write(pending)
        if plain:
            self._chunks.append(plain)
            self._size += len(plain)
        if self._tls.clean_close:
            self._finish()
        else:
            self._wake()

    def _hold(self, *, held: bool) -> None:
        self._held = held
        if self._transport is None or self._lost or self._transport.is_closing():
            return
        if held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _finish(self) -> None:
        if not self._eof and self._splice is not None:
            self._splice.write_eof()
        self._eof = True
        self._wake()
        call, self.on_end = self.on_end, None
        if call is not None:
            call()

    def _say_goodbye(self) -> None:
        """TLS's closing message, without which the other end takes what it got for cut off."""
        if self._tls is not None and self._transport is not None and not self._shut:
            self._transport.write(self._tls.close())

    async def _news(self) -> None:
        self._reading = self._loop.create_future()
        try:
            await self._reading
        finally:
            self._reading = None

    def _wake(self) -> None:
        for waiting in (self._reading, self._writing):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
