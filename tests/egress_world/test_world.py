"""That the world of the egress tests is what it says, seen with the standard library's eyes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import ssl

import pytest

from tests.egress_world import TestCa, Upstream, answers
from tests.egress_world.ca import client_context


class Client:
    """One connection; ``ask`` writes a request and reads the answer to its end."""

    def __init__(self, upstream, tls=None, name="api.example.com"):
        self.upstream, self.tls, self.name = upstream, tls, name

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection(
            *self.upstream.address, ssl=self.tls, server_hostname=self.name if self.tls else None
        )
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()

    async def ask(self, path, method="GET", headers="", body=b""):
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{length}{headers}\r\n".encode() + body)
        return await self.answer(method)

    async def answer(self, method="GET"):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split(" ")[1])
        if "Transfer-Encoding" in head:
            data = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                data += (await self.reader.readexactly(size + 2))[:-2]
            head += (await self.reader.readuntil(b"\r\n")).decode()
        elif "Content-Length" in head and method != "HEAD" and status >= 200:
            data = await self.reader.readexactly(int(head.split("Content-Length: ")[1].split("\r\n")[0]))
        else:
            data = b"" if status < 200 else await self.reader.read()
        return status, head, data


async def test_what_arrives_is_echoed_and_remembered():
    async with Upstream({"/echo": answers.echo}) as upstream, Client(upstream) as client:
        status, _, data = await client.ask("/echo?q=1", "POST", "X-One: 1\r\nX-one: 2\r\n", b"hello")
        assert status == 200
        echoed = json.loads(data)
        assert [["X-One", "1"], ["X-one", "2"]] == [h for h in echoed["headers"] if h[0].lower() == "x-one"]
        assert hashlib.sha256(b"hello").hexdigest() == echoed["sha256"]
        seen = await upstream.arrived()
        assert ("/echo", b"hello", 1) == (seen.path, seen.body, seen.connection)
        assert (await client.ask("/nowhere"))[0] == 404
        assert [1, 1] == [request.connection for request in upstream.seen]


async def test_names_and_certificates_are_those_that_were_issued():
    ca = TestCa()
    async with Upstream({"/": answers.echo}, tls=ca.server_context("api.example.com")) as upstream:
        async with Client(upstream, client_context(ca.pem)) as client:
            await client.ask("/")
        assert upstream.seen[0].server_name == "api.example.com"
        for wrong in (client_context(TestCa().pem), client_context()):
            with pytest.raises(ssl.SSLCertVerificationError):
                async with Client(upstream, wrong):
                    pass
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            async with Client(upstream, client_context(ca.pem), "other.example.com"):
                pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [("expired", "has expired"), ("not_yet_valid", "not yet valid"), ("self_signed", "self-signed")],
)
async def test_bad_certificates_are_bad_in_the_way_they_say(kind, message):
    ca = TestCa()
    async with Upstream(tls=getattr(ca, f"{kind}_context")("api.example.com")) as upstream:
        with pytest.raises(ssl.SSLCertVerificationError, match=message):
            async with Client(upstream, client_context(ca.pem)):
                pass
        assert upstream.connections == 0


async def test_bodies_of_every_framing_arrive():
    routes = {
        "/stream": answers.stream(200_003),
        "/chunked": answers.chunked([b"a", b"bc"], trailers=[("X-End", "1")]),
        "/gzip": answers.gzipped(b"text"),
        "/ranges": answers.ranges(b"0123456789"),
        "/reflects": answers.reflects("Authorization"),
        "/interim": answers.interim([(103, [("Link", "x")])], answers.body(b"then")),
        "/close": answers.until_close(b"all"),
    }
    async with Upstream(routes) as upstream, Client(upstream) as client:
        assert answers.pattern(200_003) == (await client.ask("/stream"))[2]
        assert answers.pattern(10, 9) == answers.pattern(30)[9:19]
        _, head, data = await client.ask("/chunked")
        assert data == b"abc"
        assert "X-End: 1" in head
        assert gzip.decompress((await client.ask("/gzip"))[2]) == b"text"
        status, _, data = await client.ask("/ranges", headers="Range: bytes=2-4\r\n")
        assert (206, b"234") == (status, data)
        assert (await client.ask("/ranges", headers="Range: bytes=-3\r\n"))[2] == b"789"
        _, head, data = await client.ask("/reflects", headers="Authorization: me\r\n")
        assert (b"you said me, did you not?", 3) == (data, head.count("me\r\n"))
        assert (await client.ask("/interim"))[0] == 103
        assert (await client.answer())[2] == b"then"
        assert (await client.ask("/close"))[2] == b"all"


@pytest.mark.parametrize("tls", [False, True])
async def test_connections_break_as_the_test_says(tls):
    ca = TestCa()
    routes = {
        "/closes": answers.closes_early,
        "/resets": answers.resets,
        "/truncated": answers.truncated(b"half"),
        "/chunks": answers.truncated_chunks([b"half"]),
        "/cut": answers.until_close(b"half", cleanly=False),
    }
    context = ca.server_context("api.example.com") if tls else None
    async with Upstream(routes, tls=context) as upstream:
        for path in routes:
            async with Client(upstream, client_context(ca.pem) if tls else None) as client:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    answer = await client.ask(path)
                    assert (path, tls) == ("/cut", True), answer
        await upstream.idle()


async def test_events_come_when_they_are_released():
    events = answers.Events()
    async with Upstream({"/events": events.answer, "/never": answers.never}) as upstream:
        async with Client(upstream) as client:
            asking = asyncio.create_task(client.ask("/events"))
            await events.begun.wait()
            events.release("one")
            events.end()
            assert (await asking)[2] == b"data: one\n\n"
        events = answers.Events()
        upstream.route("/events", events.answer)
        async with Client(upstream) as client:
            client.writer.write(b"GET /events HTTP/1.1\r\n\r\n")
            await events.begun.wait()
        await events.gone.wait()
        async with Client(upstream) as client:
            client.writer.write(b"GET /never HTTP/1.1\r\n\r\n")
            await upstream.arrived(3)
        await upstream.idle()


async def test_a_mistake_in_a_handler_fails_the_test():
    async def wrong(exchange):
        raise AssertionError("not what was expected")

    async def use():
        async with Upstream({"/": wrong}) as upstream, Client(upstream) as client:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await client.ask("/")
            await upstream.idle()

    with pytest.raises(ExceptionGroup):
        await use()
