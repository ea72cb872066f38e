"""A client that shows what a program would notice: whole answers, broken ones, and TLS through CONNECT.

It reads HTTP by itself, so that what a test sees does not depend on clawbox's codec.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.egress_world.ca import TestCa, client_context
from tests.egress_world.sandbox import TOKEN, Wires, request

if TYPE_CHECKING:
    from tests.egress_world.sandbox import Sandbox


@functools.cache
def ca() -> TestCa:
    """The authority that signs for upstreams, made once."""
    return TestCa()


class BrokenOffError(Exception):
    """The answer did not end as it should: a client cannot take it for whole."""


@dataclass
class Reply:
    """One whole answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interim: list[Reply] = field(default_factory=list)
    """The 1xx that came before."""

    def values(self, name: str) -> list[str]:
        """Every value of that header, any case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The only value of that header, or None."""
        values = self.values(name)
        assert len(values) <= 1
        return values[0] if values else None

    @property
    def reason(self) -> str | None:
        """Why the sidecar refused; None where it did not."""
        return self.header("X-Clawbox-Error")

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


async def read_head(wires: Wires) -> Reply:
    """The next head."""
    try:
        raw = await wires.reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError) as error:
        raise BrokenOffError from error
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    assert first.startswith("HTTP/1.1 "), first
    return Reply(int(first.split(" ")[1]), [_pair(line) for line in lines])


async def read_reply(wires: Wires, method: str = "GET") -> Reply:
    """The next answer; raises BrokenOffError where it breaks off."""
    interim = []
    while (reply := await read_head(wires)).status < 200:
        interim.append(reply)
    reply.interim = interim
    if method == "HEAD" or reply.status in (204, 304):
        return reply
    try:
        if reply.values("Transfer-Encoding"):
            await _chunks(wires.reader, reply)
        elif (length := reply.header("Content-Length")) is not None:
            reply.body = await wires.reader.readexactly(int(length))
        else:
            reply.body = await wires.reader.read()
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError) as error:
        raise BrokenOffError from error
    return reply


async def read_chunk(wires: Wires) -> bytes:
    """One chunk's data; empty for the last one, whose trailers are not read."""
    size = int(await wires.reader.readuntil(b"\r\n"), 16)
    return (await wires.reader.readexactly(size + 2))[:-2] if size else b""


async def _chunks(reader: asyncio.StreamReader, reply: Reply) -> None:
    assert reply.values("Transfer-Encoding") == ["chunked"]
    assert not reply.values("Content-Length")
    pieces = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pieces.append((await reader.readexactly(size + 2))[:-2])
    reply.body = b"".join(pieces)
    while line := (await reader.readuntil(b"\r\n"))[:-2]:
        reply.trailers.append(_pair(line.decode("latin-1")))


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


async def ask(box: Sandbox, data: bytes, *, token: bool = True) -> Reply:
    """One request on a connection of its own, to the listener that asks for a token or to the other."""
    wires = await box.connect(token=token)
    try:
        await wires.send(data)
        return await read_reply(wires, data.split(b" ", 1)[0].decode())
    finally:
        wires.close()


async def get(box: Sandbox, url: str, *lines: str, body: bytes = b"", **words: Any) -> Reply:
    """One request for ``url`` in absolute form."""
    if body:
        words.setdefault("method", "POST")
        lines = (*lines, f"Content-Length: {len(body)}")
    return await ask(box, request(url, *lines, **words) + body)


async def call(box: Sandbox, asked: object, *, token: str = TOKEN) -> Reply:
    """``POST /proxy`` with this as JSON, or as the bytes that it is."""
    data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    head = (
        f"POST /proxy HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return await ask(box, head.encode() + data)


async def connect(box: Sandbox, authority: str, *, token: str | None = TOKEN) -> Wires:
    """A connection on which CONNECT was answered with 200."""
    wires = await box.connect()
    await wires.send(request(authority, method="CONNECT", token=token))
    reply = await read_head(wires)
    assert reply.status == 200, reply
    return wires


async def tls(
    wires: Wires,
    trusted: str,
    host: str | None,
    *,
    alpn: tuple[str, ...] = ("http/1.1",),
) -> Wires:
    """TLS as ``host``, without a name where it is None. Raises ssl.SSLError, ConnectionError."""
    context = client_context(trusted, alpn=alpn)
    if host is None:
        context.check_hostname = False
    await wires.writer.start_tls(context, server_hostname=host)
    return wires


async def tunnel(box: Sandbox, host: str, port: int = 443) -> Wires:
    """A tunnel that the sidecar reads, with TLS inside."""
    return await tls(await connect(box, f"{host}:{port}"), box.ca_pem, host)


def inner(path: str, host: str, *lines: str, method: str = "GET") -> bytes:
    """A request as it is inside a tunnel."""
    return request(path, *lines, method=method, token=None, host=host)
