"""Ready-made behaviours of an Upstream; each function gives a handler."""

from __future__ import annotations

import asyncio
import gzip as gzip_module
import hashlib
import json
import re
from typing import TYPE_CHECKING

from tests.egress_world.upstream import Exchange, Handler, HeaderList, before_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PIECE = 1 << 16


def pattern(size: int, start: int = 0) -> bytes:
    """Bytes that tell where they are, so that lost, doubled or swapped pieces show; no text in them."""
    first, last = start // 8, (start + size + 7) // 8
    whole = b"".join((number | 1 << 63).to_bytes(8, "big") for number in range(first, last))
    return whole[start - first * 8 :][:size]


async def echo(exchange: Exchange) -> None:
    """JSON of what arrived: method, target, headers (pairs), the body's length, SHA-256 and text."""
    request = exchange.request
    arrived = {
        "method": request.method,
        "target": request.target,
        "version": request.version,
        "headers": [list(pair) for pair in request.headers],
        "trailers": [list(pair) for pair in request.trailers],
        "length": len(request.body),
        "sha256": hashlib.sha256(request.body).hexdigest(),
        "body": request.body.decode("utf-8", "replace")[:65536],
    }
    await exchange.answer(json.dumps(arrived).encode(), [("Content-Type", "application/json")])


def body(
    data: bytes, headers: HeaderList | None = None, *, status: int = 200, content_type: str = "text/plain"
) -> Handler:
    """``data`` with its length."""

    async def handler(exchange: Exchange) -> None:
        await exchange.answer(data, [("Content-Type", content_type), *(headers or [])], status)

    return handler


def stream(size: int) -> Handler:
    """``size`` bytes of :func:`pattern` with their length, a piece at a time."""

    async def handler(exchange: Exchange) -> None:
        await exchange.head(
            200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
        )
        for start in range(0, size, _PIECE):
            await exchange.send(pattern(min(_PIECE, size - start), start))

    return handler


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunked(
    pieces: Iterable[bytes], headers: HeaderList | None = None, trailers: HeaderList | None = None
) -> Handler:
    """Each piece a chunk, then trailers."""
    kept = [piece for piece in pieces if piece]

    async def handler(exchange: Exchange) -> None:
        await exchange.head(
            200, [("Content-Type", "text/plain"), *(headers or []), ("Transfer-Encoding", "chunked")]
        )
        for piece in kept:
            await exchange.send(_chunk(piece))
        tail = "".join(f"{name}: {value}\r\n" for name, value in trailers or [])
        await exchange.send(b"0\r\n" + tail.encode("latin-1") + b"\r\n")

    return handler


def until_close(data: bytes, *, cleanly: bool = True) -> Handler:
    """No length: the body ends with the connection; not ``cleanly``: reset, and without close_notify."""

    async def handler(exchange: Exchange) -> None:
        exchange.keep_alive = False
        await exchange.head(200, [("Content-Type", "text/plain")])
        await exchange.send(data)
        if not cleanly:
            exchange.abort()

    return handler


class Events:
    """Server-sent events (or any stream) that the test releases one by one.

    ``upstream.route("/events", events.answer)``, then ``events.release("text")`` and ``events.end()``.
    """

    def __init__(self, content_type: str = "text/event-stream") -> None:
        self.begun = asyncio.Event()
        """The head was sent."""
        self.gone = asyncio.Event()
        """The client left before the end."""
        self._content_type = content_type
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def release(self, text: str) -> None:
        """One event with these lines."""
        self.release_bytes("".join(f"data: {line}\n" for line in text.split("\n")).encode() + b"\n")

    def release_bytes(self, data: bytes) -> None:
        """A chunk as it is."""
        self._queue.put_nowait(data)

    def end(self) -> None:
        """The stream ends well after what was released."""
        self._queue.put_nowait(None)

    async def answer(self, exchange: Exchange) -> None:
        """The handler."""
        await exchange.head(200, [("Content-Type", self._content_type), ("Transfer-Encoding", "chunked")])
        self.begun.set()
        gone = asyncio.create_task(exchange.client_gone())
        try:
            while True:
                released = asyncio.create_task(self._queue.get())
                done, _ = await asyncio.wait({released, gone}, return_when=asyncio.FIRST_COMPLETED)
                if released not in done:
                    released.cancel()
                    self.gone.set()
                    exchange.keep_alive = False
                    return
                data = released.result()
                await exchange.send(b"0\r\n\r\n" if data is None else _chunk(data))
                if data is None:
                    exchange.keep_alive = False  # client_gone has read what might have followed
                    return
        except ConnectionError:
            self.gone.set()
            raise
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)


def gzipped(data: bytes, content_type: str = "text/plain") -> Handler:
    """``data`` with Content-Encoding gzip, whatever the client accepts."""
    return body(gzip_module.compress(data), [("Content-Encoding", "gzip")], content_type=content_type)


def gated(gate: asyncio.Event, then: Handler) -> Handler:
    """Nothing until the test sets ``gate``; then as ``then``."""

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        await then(exchange)

    return handler


async def never(exchange: Exchange) -> None:
    """Reads the request and says nothing until the client leaves."""
    await exchange.client_gone()
    exchange.keep_alive = False


async def closes_early(exchange: Exchange) -> None:
    """Closes in good order without a byte of an answer."""
    exchange.keep_alive = False


async def resets(exchange: Exchange) -> None:
    """Resets the connection without a byte of an answer."""
    exchange.abort()


def truncated(data: bytes, missing: int = 10) -> Handler:
    """Promises ``missing`` bytes more than it sends, then closes."""

    async def handler(exchange: Exchange) -> None:
        exchange.keep_alive = False
        length = len(data) + missing
        await exchange.head(200, [("Content-Type", "text/plain"), ("Content-Length", str(length))])
        await exchange.send(data)

    return handler


def truncated_chunks(pieces: Sequence[bytes]) -> Handler:
    """Chunks, and the connection closes where the next would begin."""

    async def handler(exchange: Exchange) -> None:
        exchange.keep_alive = False
        await exchange.head(200, [("Content-Type", "text/plain"), ("Transfer-Encoding", "chunked")])
        for piece in pieces:
            await exchange.send(_chunk(piece))

    return handler


def lying_length(data: bytes, length: int) -> Handler:
    """Says ``length`` and sends ``data`` whole, longer or shorter, and keeps the connection open."""

    async def handler(exchange: Exchange) -> None:
        await exchange.head(200, [("Content-Type", "text/plain"), ("Content-Length", str(length))])
        await exchange.send(data)

    return handler


def raw(data: bytes, *, close: bool = True) -> Handler:
    """Exactly these bytes, head and all."""

    async def handler(exchange: Exchange) -> None:
        exchange.keep_alive = not close
        await exchange.send(data)

    return handler


def huge_head(size: int) -> Handler:
    """A good answer, one of whose headers has ``size`` bytes."""
    return body(b"", [("X-Huge", "h" * size)])


def interim(heads: Iterable[tuple[int, HeaderList]], then: Handler) -> Handler:
    """1xx answers first."""
    kept = list(heads)

    @before_body
    async def handler(exchange: Exchange) -> None:
        for status, headers in kept:
            await exchange.head(status, headers)
        await exchange.read_body()
        await then(exchange)

    return handler


def refuses_early(status: int = 413) -> Handler:
    """Answers before the body came, and closes."""

    @before_body
    async def handler(exchange: Exchange) -> None:
        exchange.keep_alive = False
        await exchange.answer(b"no", [("Connection", "close")], status)

    return handler


def redirect(location: str, status: int = 302) -> Handler:
    """To ``location``."""
    return body(b"", [("Location", location)], status=status)


def sets_cookies(*cookies: str) -> Handler:
    """One Set-Cookie for each."""
    return body(b"cookies", [("Set-Cookie", cookie) for cookie in cookies])


def reflects(header: str) -> Handler:
    """The request's header of that name comes back in a header, a cookie, the body and the trailers."""

    async def handler(exchange: Exchange) -> None:
        value = ", ".join(exchange.request.values(header))
        answer = chunked(
            [f"you said {value}, ".encode(), b"did you not?"],
            [("X-Reflected", value), ("Set-Cookie", f"said={value}")],
            [("X-Reflected-Later", value)],
        )
        await answer(exchange)

    return handler


def ranges(data: bytes) -> Handler:
    """206 with the one range that was asked for (RFC 9110 section 14), or everything."""

    async def handler(exchange: Exchange) -> None:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", exchange.request.header("Range") or "")
        if asked is None:
            await exchange.answer(data, [("Accept-Ranges", "bytes")])
            return
        first, last = asked.groups()
        start = int(first) if first else len(data) - int(last)
        end = min(int(last), len(data) - 1) if first and last else len(data) - 1
        await exchange.answer(
            data[start : end + 1], [("Content-Range", f"bytes {start}-{end}/{len(data)}")], 206
        )

    return handler
