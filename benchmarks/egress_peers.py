"""The two ends that an egress sidecar stands between, each a process: a fast upstream, and a fast client.

Both are raw protocols on uvloop, so that what is measured is the sidecar as far as that is possible on a
machine that they share. ``python -m benchmarks.egress_peers upstream CERTIFICATE`` prints its ports as JSON;
``python -m benchmarks.egress_peers client`` does what each line of its stdin says (:class:`Order`) and
answers with a line (:class:`Outcome`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
import time
from typing import TYPE_CHECKING, Final, cast

import msgspec
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable

END: Final = b".the-end"
"""How the body of every short answer ends, so that a client need not parse it."""
BODY: Final = b"x" * (200 - len(END)) + END
_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY
_TEXT: Final = (b"some ordinary text that goes on and on, line after line, and without a secret\n" * 4000)[
    :262144
]
_STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
_HANDSHAKE: Final = 0x16
"""The first byte of a TLS connection."""


class Ports(msgspec.Struct, frozen=True):
    """Where the upstream listens, always on 127.0.0.1."""

    plain: int
    tls: int
    tunnelled: int
    """TLS, too: another port, for which there can be another rule."""
    raw: int
    """Answers a TLS client's first message with bytes that are no TLS, as fast as they are taken."""


class Order(msgspec.Struct, frozen=True):
    """What the client is to do, over and over, on ``clients`` connections at a time."""

    port: int
    """Connect to this one on 127.0.0.1."""
    request: str
    """Send this; the answer ends with END, or has ``stream`` bytes."""
    connect: str = ""
    """Before, and once for each connection: a CONNECT request."""
    tls: bool = False
    clients: int = 1
    seconds: float = 1.0
    fresh: bool = False
    """A new connection for each request."""
    stream: int = 0
    """Bytes of an answer that is read once; 0: a short one."""
    hello: bool = False
    """Send a TLS client's first message in place of ``request``."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of it."""

    seconds: float
    latencies: list[float]
    """Of each request (its connection included, if it is fresh), in seconds."""
    failure: str = ""


class _Upstream(asyncio.Protocol):
    def __init__(self, *, raw: bool = False) -> None:
        self._raw = raw
        self._buffer = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=1 << 20)

    def data_received(self, data: bytes) -> None:
        if self._raw and data[0] == _HANDSHAKE:
            self._left = 1 << 60
            self.resume_writing()
            return
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            line, self._buffer = self._buffer[: self._buffer.find(b"\r\n")], self._buffer[end + 4 :]
            path = line.split()[1]
            if b"/stream/" in path:
                self._left = int(path.rpartition(b"/")[2])
                self._transport.write(_STREAM_HEAD % self._left)
                self.resume_writing()
            else:
                self._transport.write(_ANSWER)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        while self._left and not self._full and not self._transport.is_closing():
            piece = _TEXT[: self._left]
            self._left -= len(piece)
            self._transport.write(piece)


async def _serve(certificate: str) -> None:
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def listen(tls: ssl.SSLContext | None, make: Callable[[], _Upstream] = _Upstream) -> int:
        server = await loop.create_server(make, "127.0.0.1", 0, ssl=tls, backlog=512)
        port: int = server.sockets[0].getsockname()[1]
        return port

    raw = await listen(None, lambda: _Upstream(raw=True))
    ports = Ports(await listen(None), await listen(context), await listen(context), raw)
    sys.stdout.write(msgspec.json.encode(ports).decode() + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)  # until the parent is gone


class _Connection(asyncio.Protocol):
    """Sends ``request`` again whenever the answer is complete, until ``again`` says no."""

    def __init__(self, order: Order, again: Callable[[float], bool]) -> None:
        loop = asyncio.get_running_loop()
        self.step: asyncio.Future[None] = loop.create_future()
        """Done when CONNECT was answered, then when all is over."""
        self._request = _hello() if order.hello else order.request.encode()
        self._stream = order.stream
        self._again = again
        self._tail = b""
        self._got = 0
        self._asking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self) -> None:
        self._asking = True
        self._got = 0
        self._began = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += len(data)
        if not self._stream:
            self._tail = (self._tail + data)[-16:] if len(data) < 16 else data[-16:]
            complete = self._tail.endswith(END if self._asking else b"\r\n\r\n")
        else:
            complete = self._got >= self._stream or not self._asking
        if not complete:
            return
        if self._asking and self._again(time.perf_counter() - self._began):
            self.ask()
        elif not self.step.done():
            self.step.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.step.done():
            self.step.set_exception(exc or ConnectionResetError("it was closed"))


async def _connect(order: Order, context: ssl.SSLContext, again: Callable[[float], bool]) -> _Connection:
    loop = asyncio.get_running_loop()
    direct = order.tls and not order.connect
    _, made = await loop.create_connection(
        lambda: _Connection(order, again),
        "127.0.0.1",
        order.port,
        ssl=context if direct else None,
        server_hostname="127.0.0.1" if direct else None,
    )
    if order.connect:
        made.transport.write(order.connect.encode())
        await made.step
        made.step = loop.create_future()
        if order.tls:
            transport = await loop.start_tls(made.transport, made, context, server_hostname="127.0.0.1")
            assert transport is not None
            made.transport = transport
    return made


async def _carry_out(order: Order, context: ssl.SSLContext) -> Outcome:
    latencies: list[float] = []
    began = time.perf_counter()
    deadline = began + order.seconds

    def again(seconds: float) -> bool:
        latencies.append(seconds)
        return not order.stream and not order.fresh and time.perf_counter() < deadline

    async def client() -> None:
        while True:
            started = time.perf_counter()
            made = await _connect(order, context, again)
            made.ask()
            await made.step
            made.transport.abort()
            if not order.fresh:
                return
            latencies[-1] = time.perf_counter() - started
            if time.perf_counter() >= deadline:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(order.clients):
            group.create_task(client())
    return Outcome(time.perf_counter() - began, latencies)


def _hello() -> bytes:
    """A TLS client's first message to 127.0.0.1."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


async def _obey() -> None:
    loop = asyncio.get_running_loop()
    trusted = sys.argv[2]
    context = ssl.create_default_context(cafile=trusted)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.startswith("trust "):
            context.load_verify_locations(cafile=line.split()[1])
            continue
        try:
            outcome = await _carry_out(msgspec.json.decode(line, type=Order), context)
        except* (OSError, ssl.SSLError) as errors:
            outcome = Outcome(0, [], repr(errors.exceptions[0]))
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
        sys.stdout.flush()


def main() -> None:
    """Be the one or the other."""
    uvloop.run(_serve(sys.argv[2]) if sys.argv[1] == "upstream" else _obey())


if __name__ == "__main__":
    main()
