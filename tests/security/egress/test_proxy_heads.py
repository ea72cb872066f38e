"""Properties 26, 30 and 32 through the running proxy: what is no good head goes nowhere, in time."""

from __future__ import annotations

import asyncio

import pytest

from clawbox.egress.messages import Limits
from tests.egress_world import Upstream
from tests.egress_world.client import ask, ca, connect, inner, read_reply, tunnel
from tests.egress_world.sandbox import TOKEN, request, sandbox

URL = "http://api.test/x"
QUICK = Limits(head_timeout_ms=250, idle_timeout_ms=250)
START = f"GET {URL} HTTP/1.1\r\nProxy-Authorization: Bearer {TOKEN}\r\n".encode()


@pytest.mark.parametrize(
    ("hosts", "reason"),
    [
        (b"", "host_missing"),
        (b"Host: api.test\r\nHost: api.test\r\n", "host_repeated"),
        (b"Host: other.test\r\n", "host_differs"),
        (b"Host: api.test:443\r\n", "host_differs"),
        (b"Host: me@api.test\r\n", "userinfo_refused"),
    ],
)
async def test_rule_26_no_request_goes_on_whose_host_is_not_the_targets(tmp_path, hosts, reason):
    async with Upstream() as upstream, sandbox(tmp_path, {"api.test": upstream}, ca()) as box:
        reply = await ask(box, START + hosts + b"\r\n")
        assert (reply.status, reply.reason) == (403, reason)
        assert box.names.dialed == []


@pytest.mark.parametrize(
    "lines",
    [
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        ["Connection: Upgrade", "Upgrade: h2c"],
    ],
)
async def test_rule_30_no_change_to_http_2_goes_on(tmp_path, lines):
    async with (
        Upstream(tls=ca().server_context("api.test")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        reply = await ask(box, request(URL, *lines))
        assert (reply.status, reply.reason) == (403, "http2_refused")
        wires = await tunnel(box, "api.test")
        await wires.send(inner("/", "api.test", *lines))
        assert (await read_reply(wires)).reason == "http2_refused"
        wires.close()
        assert box.names.dialed == []


async def test_rule_32_a_head_that_takes_too_long_is_refused_however_it_drips(tmp_path):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"], limits=QUICK) as box:
        wires = await box.connect()
        drip = asyncio.create_task(_drip(wires))
        reply = await read_reply(wires)
        assert (reply.status, reply.reason) == (403, "head_timeout")
        drip.cancel()
        wires.close()
        assert [row.reason for row in box.rows.rows] == ["head_timeout"]


async def _drip(wires):
    for byte in request(URL, *["X: y"] * 1000):
        await wires.send(bytes([byte]))
        await asyncio.sleep(0.005)


async def test_rule_32_a_connection_on_which_nothing_comes_is_closed_without_a_row(tmp_path):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"], limits=QUICK) as box:
        wires = await box.connect()
        assert await wires.reader.read() == b""
        wires.close()
        assert box.rows.rows == []


@pytest.mark.parametrize(
    "part", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HT"], ids=["silent", "tls", "http"]
)
@pytest.mark.parametrize("mode", ["intercept", "tunnel"])
async def test_rule_32_what_comes_first_in_a_tunnel_has_a_time(tmp_path, mode, part):
    async with (
        Upstream() as upstream,
        sandbox(
            tmp_path,
            {"api.test": upstream},
            ca(),
            rules=[{"host": "api.test", "tls_mode": mode}],
            limits=QUICK,
        ) as box,
    ):
        wires = await connect(box, "api.test:443")
        await wires.send(part)
        # Nothing that is not HTTP is answered in HTTP.
        assert (await _all_of(wires)).startswith(b"HTTP/1.1 403") is (mode == "intercept" and b"GET" in part)
        wires.close()
        row = await box.rows.written()
        assert row.reason in ("head_timeout", "not_tls")
        assert box.rows.open_tunnels == 0


async def _all_of(wires):
    try:
        return await wires.reader.read()
    except ConnectionError:
        return b""


@pytest.mark.parametrize("size", [70_000, 5_000_000])
async def test_rule_32_a_head_that_is_too_large_is_refused(tmp_path, size):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        wires = await box.connect()
        wires.writer.write(request(URL, "X-Huge: " + "h" * size))
        reply = await read_reply(wires)
        assert (reply.status, reply.reason) == (403, "head_too_large")
        wires.close()
        assert [row.reason for row in box.rows.rows] == ["head_too_large"]
