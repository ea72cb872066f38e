"""A server on loopback that does what a test says, and remembers what it was asked.

Its reading of HTTP is its own and lenient, so that what a test sees does not depend on clawbox's codec:
``Seen.raw_head`` is what came, byte for byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

HeaderList = list[tuple[str, str]]


@dataclass(eq=False)
class Seen:
    """One request as it came. The body is there once it was read: before the handler runs, as a rule."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    """Names as they came."""
    raw_head: bytes
    """From the request line to the empty line."""
    connection: int
    """Counted from 1: the same number means the same connection."""
    server_name: str | None = None
    """SNI; None without TLS or name."""
    body: bytes = b""
    trailers: tuple[tuple[str, str], ...] = ()
    complete: bool = False
    """The body was read to its end."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def values(self, name: str) -> list[str]:
        """Every value of that header, any case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The only value of that header, or None."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None


@dataclass(eq=False)
class Exchange:
    """One request and the means to answer it."""

    request: Seen
    upstream: Upstream
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    keep_alive: bool = True
    """Set to False to close after the answer."""
    _read: bool = field(default=False, repr=False)

    async def send(self, data: bytes) -> None:
        """Bytes as they are; ConnectionError where the client has gone."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int, headers: HeaderList | None = None, reason: str = "Said So") -> None:
        """A status line and headers, and nothing that was not asked for."""
        await self.send(_head(status, headers or [], reason))

    async def answer(self, body: bytes, headers: HeaderList | None = None, status: int = 200) -> None:
        """A whole answer with its Content-Length, sent in one go; no body for HEAD."""
        head = _head(status, [*(headers or []), ("Content-Length", str(len(body)))])
        await self.send(head if self.request.method == "HEAD" else head + body)

    async def read_body(self) -> bytes:
        """The request's body, which is then in ``request.body``; again it is the same."""
        if not self._read:
            self._read = True
            await _read_body(self.reader, self.request)
        return self.request.body

    def abort(self) -> None:
        """End the connection at once: a reset, and with TLS no close_notify."""
        self.keep_alive = False
        sock = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def client_gone(self) -> None:
        """Until the client closes. What it sends until then is read and dropped."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass


def _head(status: int, headers: HeaderList, reason: str = "Said So") -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


Handler = Callable[[Exchange], Awaitable[None]]


def before_body(handler: Handler) -> Handler:
    """Marks a handler that runs when the head has come; it may call ``exchange.read_body()``."""
    handler.before_body = True  # type: ignore[attr-defined]
    return handler


class Upstream:
    """A server for a test, from ``async with`` to its end. ``routes`` are by path, without the query.

    A path without a route is answered by ``default``, or 404. What goes wrong in a handler, other than that
    the client has gone, is raised at the end of ``async with``.
    """

    def __init__(
        self,
        routes: Mapping[str, Handler] | None = None,
        *,
        default: Handler | None = None,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.routes: dict[str, Handler] = dict(routes or {})
        self.default = default
        self.host = host
        self.port = port
        self.seen: list[Seen] = []
        """Every request whose head has come, oldest first."""
        self.connections = 0
        """Accepted ever; with TLS, those whose handshake was done."""
        self.open = 0
        """Connections now."""
        self._tls = tls
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []
        self._names: dict[int, str | None] = {}

    def route(self, path: str, handler: Handler) -> None:
        """From now on requests for ``path`` are answered so."""
        self.routes[path] = handler

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    async def connect(self) -> socket.socket:
        """A connected, non-blocking socket, as a dialer hands it to a sidecar."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self.address)
        except BaseException:
            sock.close()
            raise
        return sock

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until ``condition()`` holds; it is looked at whenever a request or connection comes or goes."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def arrived(self, count: int = 1) -> Seen:
        """Until that many requests have come in all; gives the last of them."""
        await self.until(lambda: len(self.seen) >= count)
        return self.seen[count - 1]

    async def idle(self) -> None:
        """Until no connection is open."""
        await self.until(lambda: self.open == 0)

    async def __aenter__(self) -> Self:
        if self._tls is not None:
            self._tls.sni_callback = self._note_name
        self._server = await asyncio.start_server(
            self._accept, self.host, self.port, ssl=self._tls, family=socket.AF_UNSPEC, limit=1 << 22
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._failures and error is None:
            raise ExceptionGroup("an upstream's handler failed", self._failures)

    def _note_name(self, connection: object, name: str | None, _context: ssl.SSLContext) -> None:
        self._names[id(connection)] = name

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = self._names.pop(id(writer.get_extra_info("ssl_object")), None)
        self.connections += 1
        self.open += 1
        number = self.connections
        await self._notify()
        try:
            while (seen := await _read_head(reader, number, name)) is not None:
                if not await self._exchange(Exchange(seen, self, reader, writer)):
                    break
            writer.close()  # with close_notify
        except ConnectionError:
            pass  # the client has gone
        except Exception as error:  # noqa: BLE001 - raised at the end
            self._failures.append(error)
        finally:
            if not writer.is_closing():
                writer.transport.abort()
            try:
                with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                    await writer.wait_closed()
            finally:
                writer.transport.abort()  # where the client never answers close_notify
                self.open -= 1
            await self._notify()

    async def _exchange(self, exchange: Exchange) -> bool:
        """Answers; True where the next request may come on the same connection."""
        seen = exchange.request
        handler = self.routes.get(seen.path, self.default) or _not_found
        early = getattr(handler, "before_body", False)
        if not early:
            if (seen.header("Expect") or "").lower() == "100-continue":
                await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await exchange.read_body()
        self.seen.append(seen)
        await self._notify()
        await handler(exchange)
        if not exchange.keep_alive or "close" in ",".join(seen.values("Connection")).lower():
            return False
        if early:
            await exchange.read_body()
        return True

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def _not_found(exchange: Exchange) -> None:
    await exchange.answer(b"no such path", [("Content-Type", "text/plain")], 404)


async def _read_head(reader: asyncio.StreamReader, connection: int, name: str | None) -> Seen | None:
    """The next request's head, or None where the client sends none."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ConnectionResetError("the client has gone") from None
        return None
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    return Seen(method, target, version, _headers(lines), raw, connection, name)


def _headers(lines: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = (line.partition(":") for line in lines)
    return tuple((name, value.strip()) for name, _, value in pairs)


async def _read_body(reader: asyncio.StreamReader, seen: Seen) -> None:
    try:
        if seen.values("Transfer-Encoding"):
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                seen.body += (await reader.readexactly(size + 2))[:-2]
            lines = []
            while line := (await reader.readuntil(b"\r\n"))[:-2]:
                lines.append(line.decode("latin-1"))
            seen.trailers = _headers(lines)
        else:
            seen.body = await reader.readexactly(int(seen.header("Content-Length") or 0))
    except asyncio.IncompleteReadError as error:
        seen.body += error.partial
        raise ConnectionResetError("the client has gone") from None
    seen.complete = True
