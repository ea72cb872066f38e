"""Property 55 through the running proxy: exactly one row for everything asked, without secrets."""

from __future__ import annotations

import asyncio
import base64
import contextlib

import pytest

from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.messages import Limits
from tests.egress_world import Upstream, answers
from tests.egress_world.client import (
    BrokenOffError,
    ask,
    ca,
    call,
    connect,
    get,
    inner,
    read_head,
    read_reply,
    tls,
    tunnel,
)
from tests.egress_world.sandbox import SECRET, request, sandbox

KEY = Credential("key", Secret(SECRET), ("api.test",))
LOCAL = ("api.test", "http", 80)


async def allowed(box, upstream):
    await get(box, "http://api.test/ok?q=private&flag")
    return "absolute", "allowed", "", ("GET", *LOCAL, "/ok?q=[REDACTED]&[REDACTED]"), 200


async def refused(box, upstream):
    await get(box, "http://other.test/")
    return "absolute", "denied", "host_not_allowed", ("GET", "other.test", "http", 80, "/"), None


async def unreachable(box, upstream):
    await get(box, "http://gone.test/")
    return "absolute", "failed", "connect_failed", ("GET", "gone.test", "http", 80, "/"), None


async def failed(box, upstream):
    await get(box, "http://api.test/closes")
    return "absolute", "failed", "upstream_upstream_gone", ("GET", *LOCAL, "/closes"), None


async def cut(box, upstream):
    with pytest.raises(BrokenOffError):
        await get(box, "http://api.test/cut")
    return "absolute", "failed", "upstream_truncated", ("GET", *LOCAL, "/cut"), 200


async def left_before_the_answer(box, upstream):
    wires = await box.connect()
    await wires.send(request("http://api.test/never"))
    await upstream.arrived()
    wires.close()
    return "absolute", "failed", "client_gone", ("GET", *LOCAL, "/never"), None


async def left_within_the_answer(box, upstream):
    wires = await box.connect()
    await wires.send(request("http://api.test/events"))
    await read_head(wires)
    wires.close()
    return "absolute", "failed", "client_gone", ("GET", *LOCAL, "/events"), 200


async def left_within_the_body(box, upstream):
    wires = await box.connect()
    await wires.send(request("http://api.test/ok", "Content-Length: 9", method="POST") + b"123")
    await upstream.until(lambda: upstream.connections == 1)
    wires.close()
    return "absolute", "failed", "client_gone", ("POST", *LOCAL, "/ok"), None


async def left_while_dialing(box, upstream):
    box.names.gate = asyncio.Event()
    wires = await box.connect()
    await wires.send(request("http://api.test/ok"))
    await box.names.asked()
    wires.close()
    return "absolute", "failed", "client_gone", ("GET", *LOCAL, "/ok"), None


async def left_while_a_tunnel_is_dialed(box, upstream):
    box.names.gate = asyncio.Event()
    wires = await box.connect()
    await wires.send(request("tunnel.test:443", method="CONNECT"))
    await box.names.asked()
    wires.close()
    return "tunnel", "failed", "client_gone", ("CONNECT", "tunnel.test", "https", 443, ""), None


async def malformed(box, upstream):
    await ask(box, b"GET http://api.test/ HTTP/1.1\nHost: api.test\n\n")
    return "absolute", "denied", "control_byte", ("", "", "", 0, ""), None


async def broken_head(box, upstream):
    wires = await box.connect()
    await wires.send(b"GET http://api.te")
    wires.writer.write_eof()
    await wires.reader.read()
    wires.close()
    return "absolute", "denied", "truncated", ("", "", "", 0, ""), None


async def no_token(box, upstream):
    await ask(box, request("http://api.test/", token=None))
    return "absolute", "denied", "token_missing", ("GET", "", "", 0, ""), None


async def connect_refused(box, upstream):
    await ask(box, request("other.test:443", method="CONNECT"))
    return "connect", "denied", "host_not_allowed", ("CONNECT", "other.test", "https", 443, ""), None


async def left_after_connect(box, upstream):
    wires = await connect(box, "api.test:443")
    wires.close()
    return "connect", "failed", "client_gone", ("CONNECT", "api.test", "https", 443, ""), None


async def distrusted(box, upstream):
    with pytest.raises((OSError, EOFError)):
        await tls(await connect(box, "api.test:443"), ca().pem, "api.test")
    return "connect", "failed", "client_tls_failed", ("CONNECT", "api.test", "https", 443, ""), None


async def within_a_tunnel(box, upstream):
    wires = await tunnel(box, "gone.test")
    await wires.send(inner("/x", "gone.test"))
    await read_reply(wires)
    wires.close()
    return "intercept", "failed", "connect_failed", ("GET", "gone.test", "https", 443, "/x"), None


async def malformed_within_a_tunnel(box, upstream):
    wires = await tunnel(box, "gone.test")
    await wires.send(b"GET / HTTP/3\r\n\r\n")
    await read_reply(wires)
    wires.close()
    return "intercept", "denied", "http_version", ("", "gone.test", "https", 443, ""), None


async def called(box, upstream):
    await call(box, {"url": "http://api.test/ok", "method": "PATCH", "body": "x"})
    return "call", "allowed", "", ("PATCH", *LOCAL, "/ok"), 200


async def call_refused(box, upstream):
    await call(box, {"url": "http://other.test/ok", "method": "GET"})
    return "call", "denied", "host_not_allowed", ("GET", "other.test", "http", 80, "/ok"), None


async def call_malformed(box, upstream):
    await call(box, b"{")
    return "call", "denied", "malformed_call", ("POST", "", "", 0, ""), None


async def call_without_token(box, upstream):
    await call(box, {}, token="wrong")
    return "call", "denied", "token_invalid", ("POST", "", "", 0, ""), None


async def unknown_route(box, upstream):
    await ask(box, request("/health", host="localhost"))
    return "call", "denied", "unknown_route", ("GET", "", "", 0, ""), None


async def leaking(box, upstream):
    await get(box, "http://api.test/ok", body=SECRET.encode() + b"\n")
    return "absolute", "denied", "leak_detected", ("POST", *LOCAL, "/ok"), None


CASES = [
    allowed,
    refused,
    unreachable,
    failed,
    cut,
    left_before_the_answer,
    left_within_the_answer,
    left_within_the_body,
    left_while_dialing,
    left_while_a_tunnel_is_dialed,
    malformed,
    broken_head,
    no_token,
    connect_refused,
    left_after_connect,
    distrusted,
    within_a_tunnel,
    malformed_within_a_tunnel,
    called,
    call_refused,
    call_malformed,
    call_without_token,
    unknown_route,
    leaking,
]


@pytest.mark.parametrize("case", CASES)
async def test_rule_55_everything_that_was_asked_has_exactly_one_row(tmp_path, case):
    events = answers.Events()
    routes = {
        "/ok": answers.body(b"ok"),
        "/closes": answers.closes_early,
        "/cut": answers.truncated(b"x\n"),
        "/never": answers.never,
        "/events": events.answer,
    }
    rules = ["api.test", "gone.test", {"host": "tunnel.test", "tls_mode": "tunnel"}]
    async with Upstream(routes) as upstream:
        async with sandbox(tmp_path, {"api.test": upstream}, ca(), rules=rules, credentials=[KEY]) as box:
            way, decision, reason, asked, status = await case(box, upstream)
            row = await box.rows.written()
        # All has ended: nothing more can come.
        assert len(box.rows.rows) == 1
    assert (row.way, row.decision, row.reason) == (way, decision, reason)
    assert (row.method, row.host, row.scheme, row.port, row.path) == asked
    assert row.status == status
    assert row.call == ("" if "token" in reason or (row.method == "" and way != "intercept") else "call-1")


async def test_rule_55_an_intercepted_connect_has_no_row_but_its_requests_have(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=ca().server_context("api.test")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        wires = await tunnel(box, "api.test")
        for path in ("/a", "/b"):
            await wires.send(inner(path, "api.test"))
            await read_reply(wires)
        wires.close()
        assert [(row.way, row.path, row.credential, row.address) for row in box.rows.rows] == [
            ("intercept", "/a", "key", "127.0.0.1"),
            ("intercept", "/b", "key", "127.0.0.1"),
        ]


async def test_rule_55_what_is_under_way_at_the_end_has_a_row_too(tmp_path):
    async with Upstream({"/x": answers.never}) as upstream:
        async with sandbox(tmp_path, {"api.test": upstream}, ca()) as box:
            wires = await box.connect()
            await wires.send(request("http://api.test/x"))
            await upstream.arrived()
        assert [(row.decision, row.reason) for row in box.rows.rows] == [("failed", "ended")]
        wires.close()
        await upstream.idle()


HEX = SECRET.encode().hex()


@pytest.mark.parametrize(
    "asked",
    [
        request(f"http://other.test/{SECRET}"),
        request(f"http://other.test/?{SECRET}"),
        request(f"http://other.test/?{SECRET}=1"),
        request(f"http://api.test/x/{SECRET}"),
        request(f"http://api.test/{SECRET.replace('-', '%2D')}"),
        request(f"https://api.test/?{SECRET}-token=1"),
        request("https://api.test/", f"{SECRET}-api-key: x"),
        request(f"http://{SECRET}.other.test/"),
        request(f"http://{SECRET}.wide.test/"),
        request(f"{SECRET}.wide.test:443", method="CONNECT"),
        request(f"{SECRET}.unread.test:443", method="CONNECT"),
        request("http://other.test/", method=SECRET[:32]),
        request("http://api.test/", method=SECRET[:32]),
        request("http://api.test/" + "x" * 1000 + SECRET),
        request(f"http://api.test/{base64.b64encode(SECRET.encode()).decode()}"),
        request(f"http://api.test/{HEX}"),
    ],
)
async def test_rule_55_no_row_has_a_secret_in_it_whatever_was_refused(tmp_path, asked):
    rules = ["api.test", "*.wide.test", {"host": "*.unread.test", "tls_mode": "tunnel"}]
    key = Credential("key", Secret(SECRET[:32]), ("api.test",))
    async with sandbox(tmp_path, {}, ca(), rules=rules, credentials=[key]) as box:
        reply = await box.connect()
        await reply.send(asked)
        reply.writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reply.reader.read()
        reply.close()
        text = str(await box.rows.written()).lower()
        assert SECRET[:32].lower() not in text
        assert SECRET.replace("-", "%2d") not in text
        assert HEX[:64] not in text
        assert base64.b64encode(SECRET.encode()).decode()[:40].lower() not in text
        # Nor was it looked up.
        assert not [host for host, _ in box.names.dialed if SECRET in host]


async def test_rule_55_while_nothing_can_be_written_down_nothing_is_sent(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=ca().server_context("api.test")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await tunnel(box, "api.test")
        box.rows.available = False
        await wires.send(inner("/", "api.test"))
        assert (await read_reply(wires)).reason == "audit_unavailable"
        wires.close()
        for asked in (request("https://api.test/"), request("api.test:443", method="CONNECT")):
            reply = await ask(box, asked)
            assert (reply.status, reply.reason) == (502, "audit_unavailable")
        assert (await call(box, {"url": "https://api.test/", "method": "GET"})).status == 403
        assert box.names.dialed == []
        box.rows.available = True
        assert (await get(box, "https://api.test/")).status == 200


async def test_rule_55_rows_count_bytes_and_time(tmp_path):
    now = [5.0]

    async def slow(exchange):
        now[0] += 1.5
        await exchange.answer(b"y" * 1000, [("Content-Type", "text/plain")])

    async with (
        Upstream({"/x": slow}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), clock=lambda: now[0], limits=Limits()) as box,
    ):
        await get(box, "http://api.test/x", body=b"x" * 500)
        row = box.rows.rows[0]
        assert (row.bytes_up, row.bytes_down, row.status, row.rule) == (500, 1000, 200, 0)
        assert (row.duration_us, row.upstream_us) == (1_500_000, 1_500_000)
