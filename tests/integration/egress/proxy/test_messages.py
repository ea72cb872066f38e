"""What HTTP/1.1 promises passes the proxy: interim answers, trailers, pipelines, bodies of any size."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tracemalloc

import pytest

from tests.egress_world import Upstream, answers
from tests.egress_world.client import ask, ca, get, inner, read_head, read_reply, tunnel
from tests.egress_world.sandbox import request, sandbox
from tests.egress_world.upstream import before_body

URL = "http://api.test/x"
LARGE = 64 << 20
PIECE = 1 << 18


async def test_interim_answers_are_passed_on(tmp_path):
    handler = answers.interim(
        [(103, [("Link", "</a.css>")]), (102, [])], answers.body(b"done", [("X-Kept", "1")])
    )
    async with Upstream({"/x": handler}) as upstream, sandbox(tmp_path, {"api.test": upstream}, ca()) as box:
        reply = await get(box, URL)
        assert [one.status for one in reply.interim] == [103, 102]
        assert reply.interim[0].headers == [("Link", "</a.css>")]
        assert (reply.status, reply.body, reply.header("X-Kept")) == (200, b"done", "1")


async def test_a_client_that_waits_for_continue_is_told_by_the_host(tmp_path):
    async with (
        Upstream({"/x": answers.echo}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await box.connect()
        await wires.send(request(URL, "Expect: 100-continue", "Content-Length: 4", method="PUT"))
        assert (await read_head(wires)).status == 100
        await wires.send(b"body")
        assert (await read_reply(wires)).json()["body"] == "body"
        wires.close()


async def test_who_waits_for_continue_and_may_not_go_on_is_told_so_at_once(tmp_path):
    async with (
        Upstream({"/x": answers.refuses_early(413)}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        for url, status in ((URL, 413), ("http://other.test/", 403)):
            reply = await ask(box, request(url, "Expect: 100-continue", "Content-Length: 4", method="PUT"))
            assert (reply.status, reply.interim) == (status, [])


async def test_an_early_answer_arrives_while_the_body_is_still_being_sent(tmp_path):
    async with (
        Upstream({"/x": answers.refuses_early(413)}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await box.connect()
        await wires.send(request(URL, f"Content-Length: {LARGE}", method="PUT") + b"x" * 100_000)
        reply = await read_reply(wires)
        assert (reply.status, reply.body) == (413, b"no")
        # It is taken until the client has seen the answer: no reset overtakes it.
        await wires.send(b"x" * 100_000)
        assert await wires.reader.read() == b""
        wires.close()
        row = await box.rows.written()
        assert (row.decision, row.status) == ("allowed", 413)


async def test_trailers_pass_both_ways(tmp_path):
    handler = answers.chunked([b"body\n"], trailers=[("X-Sum", "2"), ("Content-Length", "9")])
    async with (
        Upstream({"/up": answers.echo, "/down": handler}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        head = request("http://api.test/up", "Transfer-Encoding: chunked", "Trailer: X-Sum", method="POST")
        reply = await ask(box, head + b"5\r\nbody\n\r\n0\r\nX-Sum: 1\r\nAuthorization: x\r\n\r\n")
        assert reply.json()["trailers"] == [["X-Sum", "1"]]
        assert (await get(box, "http://api.test/down")).trailers == [("X-Sum", "2")]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_answers_without_a_body_leave_the_connection_in_order(tmp_path, method, status):
    async def handler(exchange):
        lines = [] if status == 204 else [("Content-Length", "1234")]
        await exchange.head(status, [*lines, ("ETag", '"a"')])

    async with (
        Upstream({"/x": handler, "/y": answers.body(b"next")}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await box.connect()
        await wires.send(request(URL, method=method))
        reply = await read_reply(wires, method)
        assert (reply.status, reply.header("ETag")) == (status, '"a"')
        assert reply.header("Content-Length") == (None if status == 204 else "1234")
        assert not reply.values("Transfer-Encoding")
        await wires.send(request("http://api.test/y"))
        assert (await read_reply(wires)).body == b"next"
        wires.close()
        assert [seen.connection for seen in upstream.seen] == [1, 1]


@pytest.mark.parametrize("way", ["plain", "intercept"])
async def test_pipelined_requests_are_answered_in_order_one_at_a_time(tmp_path, way):
    under_way = 0

    async def handler(exchange):
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await answers.echo(exchange)
        under_way -= 1

    context = ca().server_context("api.test") if way == "intercept" else None
    async with (
        Upstream(default=handler, tls=context) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        one = (
            (lambda path, *lines, **words: inner(path, "api.test", *lines, **words))
            if context
            else (lambda path, *lines, **words: request(f"http://api.test{path}", *lines, **words))
        )
        wires = await (tunnel(box, "api.test") if context else box.connect())
        await wires.send(
            one("/1")
            + one("/2", "Content-Length: 4", method="POST")
            + b"body"
            + one("/3", "Transfer-Encoding: chunked", method="PUT")
            + b"1\r\nx\r\n0\r\n\r\n"
            + one("/4")
        )
        replies = [(await read_reply(wires)).json() for _ in range(4)]
        wires.close()
        assert [(one["target"], one["body"]) for one in replies] == [
            ("/1", ""),
            ("/2", "body"),
            ("/3", "x"),
            ("/4", ""),
        ]


async def test_rule_31_a_refused_request_is_the_last_of_its_connection(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=ca().server_context("api.test")) as upstream,
        sandbox(
            tmp_path, {"api.test": upstream}, ca(), rules=[{"host": "api.test", "path_prefixes": ["/open"]}]
        ) as box,
    ):
        wires = await tunnel(box, "api.test")
        await wires.send(
            inner("/open", "api.test") + inner("/closed", "api.test") + inner("/open", "api.test")
        )
        assert (await read_reply(wires)).status == 200
        assert (await read_reply(wires)).reason == "path_not_allowed"
        assert await wires.reader.read() == b""
        wires.close()
        assert [row.path for row in box.rows.rows] == ["/open", "/closed"]
        assert len(upstream.seen) == 1


@pytest.mark.parametrize("keep", [True, False])
async def test_clients_of_http_1_0_are_answered_so_that_they_understand(tmp_path, keep):
    routes = {"/length": answers.body(b"known"), "/chunks": answers.chunked([b"not ", b"known"])}
    async with Upstream(routes) as upstream, sandbox(tmp_path, {"api.test": upstream}, ca()) as box:
        lines = ["Connection: keep-alive"] if keep else []
        wires = await box.connect()
        await wires.send(request("http://api.test/length", *lines).replace(b"HTTP/1.1", b"HTTP/1.0"))
        reply = await read_reply(wires)
        assert (reply.body, reply.header("Connection")) == (b"known", "keep-alive" if keep else "close")
        if not keep:
            assert await wires.reader.read() == b""
            wires.close()
            wires = await box.connect()
        await wires.send(request("http://api.test/chunks", *lines).replace(b"HTTP/1.1", b"HTTP/1.0"))
        reply = await read_reply(wires)
        assert (reply.body, reply.header("Connection")) == (b"not known", "close")
        assert not reply.values("Transfer-Encoding")
        wires.close()
        assert {seen.version for seen in upstream.seen} == {"HTTP/1.1"}


async def test_hop_by_hop_headers_stay_and_others_pass_in_order(tmp_path):
    async def handler(exchange):
        sent = [
            ("X-One", "1"), ("Keep-Alive", "timeout=5"), ("Connection", "X-Hop"), ("X-Hop", "2"),
            ("Alt-Svc", "h3"), ("X-Clawbox-Error", "forged"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"),
        ]  # fmt: skip
        await exchange.answer(b"", sent)

    async with (
        Upstream({"/x": handler, "/echo": answers.echo}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        reply = await get(box, URL)
        assert reply.headers == [
            ("X-One", "1"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"),
            ("Content-Length", "0"), ("Connection", "keep-alive"),
        ]  # fmt: skip
        lines = ["TE: trailers", "Connection: close, X-Hop", "X-Hop: 1", "Accept: a", "accept: b"]
        reply = await get(box, "http://api.test/echo", *lines)
        assert reply.json()["headers"] == [["Host", "api.test"], ["Accept", "a"], ["accept", "b"]]


@pytest.mark.parametrize("way", ["plain", "intercept"])
async def test_a_large_download_needs_constant_memory(tmp_path, way):
    context = ca().server_context("api.test") if way == "intercept" else None
    async with (
        Upstream({"/x": _stream(LARGE)}, tls=context) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await (tunnel(box, "api.test") if context else box.connect())
        await wires.send(inner("/x", "api.test") if context else request(URL))
        head = await read_head(wires)
        assert head.header("Content-Length") == str(LARGE)
        digest, left = hashlib.sha256(), LARGE
        with _memory() as peak:
            while left:
                data = await wires.reader.read(PIECE)
                digest.update(data)
                left -= len(data)
        wires.close()
        assert digest.digest() == _digest(LARGE)
        assert peak() < LARGE / 8


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_large_upload_needs_constant_memory(tmp_path, framing):
    digest = hashlib.sha256()

    @before_body
    async def handler(exchange):
        exchange.keep_alive = False
        left = LARGE
        while left:
            data = await _arrived(exchange, framing)
            digest.update(data)
            left -= len(data)
        await exchange.answer(b"all of it")

    async with Upstream({"/x": handler}) as upstream, sandbox(tmp_path, {"api.test": upstream}, ca()) as box:
        wires = await box.connect()
        line = f"Content-Length: {LARGE}" if framing == "length" else "Transfer-Encoding: chunked"
        await wires.send(request(URL, line, method="PUT"))
        piece = answers.pattern(PIECE)
        if framing == "chunked":
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        with _memory() as peak:
            for _ in range(LARGE // PIECE):
                await wires.send(piece)
            if framing == "chunked":
                await wires.send(b"0\r\n\r\n")
            assert (await read_reply(wires)).body == b"all of it"
        wires.close()
        assert digest.digest() == _digest(LARGE)
        assert peak() < LARGE / 8
        assert (await box.rows.written()).bytes_up == LARGE


async def test_a_client_that_does_not_read_stops_the_upstream(tmp_path):
    sent = 0

    async def handler(exchange):
        nonlocal sent
        exchange.keep_alive = False
        await exchange.head(200, [("Content-Type", "application/octet-stream")])
        while True:
            await exchange.send(bytes(PIECE))
            sent += PIECE

    async with Upstream({"/x": handler}) as upstream, sandbox(tmp_path, {"api.test": upstream}, ca()) as box:
        wires = await box.connect()
        await wires.send(request(URL))
        await read_head(wires)
        before = -1
        while sent != before:  # until it stands still
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 64 << 20
        wires.close()


async def _arrived(exchange, framing):
    if framing == "length":
        return await exchange.reader.read(PIECE)
    size = int(await exchange.reader.readuntil(b"\r\n"), 16)
    return (await exchange.reader.readexactly(size + 2))[:-2]


def _stream(size):
    piece = answers.pattern(PIECE)

    async def handler(exchange):
        await exchange.head(
            200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
        )
        for _ in range(size // PIECE):
            await exchange.send(piece)

    return handler


def _digest(size):
    piece, digest = answers.pattern(PIECE), hashlib.sha256()
    for _ in range(size // PIECE):
        digest.update(piece)
    return digest.digest()


@contextlib.contextmanager
def _memory():
    """Gives what tells, after the block, how much Python's own memory grew at most; both ends are in it."""
    grown = 0
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield lambda: grown
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
