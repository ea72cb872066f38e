"""Properties 53 and 71 through the running proxy: no break looks whole, nothing odd comes back."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from clawbox.egress.messages import Limits
from tests.egress_world import Upstream, answers
from tests.egress_world.client import (
    BrokenOffError,
    ca,
    get,
    inner,
    read_chunk,
    read_head,
    read_reply,
    tunnel,
)
from tests.egress_world.sandbox import request, sandbox
from tests.egress_world.upstream import before_body

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
BREAKS = {
    "in the head": HEAD,
    "before the first byte of a length": HEAD + b"Content-Length: 10\r\n\r\n",
    "within a length": HEAD + b"Content-Length: 10\r\n\r\n12345\n",
    "before the first chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    "within a size line": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab\n\r\n1",
    "within a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n8\r\nabc\n",
    "after a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab\n\r\n",
    "before the trailers end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab\n\r\n0\r\nX: y\r\n",
}


def breaking(data, *, cleanly):
    async def handler(exchange):
        exchange.keep_alive = False
        await exchange.send(data)
        if not cleanly:
            exchange.abort()

    return handler


async def old(box, url, *, unix=False):
    """The status and body of an answer that ends with the connection; raises ConnectionError on a break."""
    wires = await (box.connect_unix() if unix else box.connect())
    try:
        data = await wires.ask(request(url).replace(b"HTTP/1.1", b"HTTP/1.0"))
    finally:
        wires.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


@pytest.mark.parametrize("cleanly", [True, False], ids=["closed", "reset"])
@pytest.mark.parametrize("data", BREAKS.values(), ids=BREAKS)
async def test_rule_53_an_answer_that_breaks_off_never_looks_whole(tmp_path, data, cleanly):
    async with (
        Upstream({"/x": breaking(data, cleanly=cleanly)}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        try:
            reply = await get(box, "http://api.test/x")
        except BrokenOffError:
            pass
        else:
            assert (reply.status, reply.reason is not None) == (502, True)

        try:
            status, head, body = await old(box, "http://api.test/x")
        except ConnectionError:
            pass
        else:
            length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
            assert status == 502 or int(length[0].split(b":")[1]) > len(body)
        assert [row.decision for row in box.rows.rows] == ["failed", "failed"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_rule_53_a_body_until_the_end_needs_a_clean_end(tmp_path, tls):
    routes = {
        "/whole": answers.until_close(b"all of it\n"),
        "/cut": answers.until_close(b"some of it\n", cleanly=False),
    }
    context = ca().server_context("api.test") if tls else None
    scheme = "https" if tls else "http"
    async with (
        Upstream(routes, tls=context) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        assert (await get(box, f"{scheme}://api.test/whole")).body == b"all of it\n"
        assert (await old(box, f"{scheme}://api.test/whole"))[2] == b"all of it\n"

        with pytest.raises(BrokenOffError):
            await get(box, f"{scheme}://api.test/cut")
        with pytest.raises(ConnectionError):
            await old(box, f"{scheme}://api.test/cut")
        assert [row.reason for row in box.rows.rows] == ["", "", "upstream_truncated", "upstream_truncated"]


async def test_rule_53_tls_without_close_notify_is_a_break(tmp_path):
    """A plain FIN in the middle of TLS: whoever is between could have sent that."""

    async def handler(exchange):
        exchange.keep_alive = False
        await exchange.head(200, [("Content-Type", "text/plain")])
        await exchange.send(b"some of it\n")
        with socket.socket(fileno=os.dup(exchange.writer.get_extra_info("socket").fileno())) as raw:
            raw.shutdown(socket.SHUT_WR)
        await exchange.client_gone()

    async with (
        Upstream({"/x": handler}, tls=ca().server_context("api.test")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        with pytest.raises(BrokenOffError):
            await get(box, "https://api.test/x")


async def test_rule_53_a_break_inside_an_intercepted_tunnel_has_no_close_notify(tmp_path):
    async with (
        Upstream({"/x": answers.truncated(b"some of it\n")}, tls=ca().server_context("api.test")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await tunnel(box, "api.test")
        await wires.send(inner("/x", "api.test"))
        with pytest.raises(BrokenOffError):
            await read_reply(wires)
        wires.close()


async def test_rule_53_on_a_unix_socket_which_knows_no_reset_an_old_client_gets_no_endless_body(tmp_path):
    routes = {"/x": answers.until_close(b"all of it\n"), "/y": answers.body(b"known\n")}
    async with Upstream(routes) as upstream, sandbox(tmp_path, {"api.test": upstream}, ca()) as box:
        status, head, _ = await old(box, "http://api.test/x", unix=True)
        assert status == 502
        assert b"HTTP/1.1" in head

        assert (await old(box, "http://api.test/y", unix=True))[2] == b"known\n"


async def test_rule_53_a_clients_body_that_breaks_off_is_never_ended_for_the_upstream(tmp_path):
    complete = []

    @before_body
    async def handler(exchange):
        try:
            await exchange.read_body()
        finally:
            complete.append(exchange.request.complete)

    parts = {"Content-Length: 10": b"12345", "Transfer-Encoding: chunked": b"5\r\n1234\n\r\n"}
    async with Upstream({"/x": handler}) as upstream, sandbox(tmp_path, {"api.test": upstream}, ca()) as box:
        for count, (line, part) in enumerate(parts.items(), 1):
            wires = await box.connect()
            await wires.send(request("http://api.test/x", line, method="POST") + part)
            await upstream.arrived(count)
            wires.close()
            assert (await box.rows.written(count)).decision == "failed"
        await upstream.idle()
    assert complete == [False, False]


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\nsurplus",
    ],
    ids=["a second answer", "a line end", "a body after 204"],
)
async def test_rule_71_surplus_bytes_end_the_connection_and_answer_nothing(tmp_path, first):
    """The answer that was asked for arrives, whatever came behind it in the same read."""
    async with (
        Upstream({"/odd": answers.raw(first, close=False), "/next": answers.body(b"next")}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await box.connect()
        await wires.send(request("http://api.test/odd"))
        assert (await read_reply(wires)).body in (b"ok", b"")
        await wires.send(request("http://api.test/next"))
        assert (await read_reply(wires)).body == b"next"
        wires.close()
        assert [seen.connection for seen in upstream.seen] == [1, 2]


async def test_rule_71_early_bytes_on_a_kept_connection_answer_nothing(tmp_path):
    gate, sent = asyncio.Event(), asyncio.Event()

    async def handler(exchange):
        await exchange.answer(b"first")
        await gate.wait()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        sent.set()
        await exchange.client_gone()

    async with (
        Upstream({"/first": handler, "/next": answers.body(b"next")}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        assert (await get(box, "http://api.test/first")).body == b"first"
        gate.set()
        await sent.wait()
        # The sidecar closes it without being asked for anything.
        await upstream.idle()
        assert (await get(box, "http://api.test/next")).body == b"next"


async def test_rule_71_a_connection_whose_request_was_not_sent_whole_is_not_used_again(tmp_path):
    @before_body
    async def early(exchange):
        await exchange.answer(b"enough", [("Content-Type", "text/plain")])
        await exchange.client_gone()
        exchange.keep_alive = False

    async with (
        Upstream({"/early": early, "/next": answers.body(b"next")}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await box.connect()
        await wires.send(request("http://api.test/early", "Content-Length: 1000", method="POST") + b"x")
        assert (await read_reply(wires)).body == b"enough"
        wires.close()
        assert (await get(box, "http://api.test/next")).body == b"next"
        assert [seen.connection for seen in upstream.seen] == [1, 2]


async def test_rule_71_a_kept_connection_that_has_gone_is_replaced_without_a_word(tmp_path):
    async with (
        Upstream({"/": answers.body(b"here")}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        for _ in range(3):
            assert (await get(box, "http://api.test/")).body == b"here"
        assert upstream.connections == 1

        async def bye(exchange):
            exchange.abort()

        # It closes instead of answering on the connection that was kept, and answers on the next.
        upstream.route(
            "/stale",
            lambda exchange: (
                bye(exchange) if exchange.request.connection == 1 else answers.body(b"new")(exchange)
            ),
        )
        assert (await get(box, "http://api.test/stale")).body == b"new"
        # What may have had an effect is not sent twice.
        upstream.route("/post", bye)
        reply = await get(box, "http://api.test/post", body=b"pay")
        assert (reply.status, reply.reason) == (502, "upstream_upstream_gone")
        assert len([seen for seen in upstream.seen if seen.path == "/post"]) == 1


async def test_rule_53_an_answer_over_the_limit_is_an_error_and_never_cut(tmp_path):
    begun = asyncio.Event()

    async def chunks(exchange):
        await exchange.head(200, [("Content-Type", "text/plain"), ("Transfer-Encoding", "chunked")])
        await begun.wait()  # what comes all at once is refused with a status
        for _ in range(100):
            await exchange.send(b"3e8\r\n" + b"x" * 999 + b"\n\r\n")

    routes = {
        "/stated": answers.stream(100_000),
        "/chunks": chunks,
        "/small": answers.body(b"x" * 60_000),
    }
    async with (
        Upstream(routes) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=Limits(max_response_bytes=50_000)) as box,
    ):
        for path in ("/stated", "/small"):
            reply = await get(box, f"http://api.test{path}")
            assert (reply.status, reply.reason) == (502, "upstream_body_too_large")
        wires = await box.connect()
        await wires.send(request("http://api.test/chunks"))
        assert (await read_head(wires)).status == 200
        begun.set()
        with pytest.raises((EOFError, ConnectionError)):
            await _all_chunks(wires)
        wires.close()


async def _all_chunks(wires):
    while await read_chunk(wires):
        pass
