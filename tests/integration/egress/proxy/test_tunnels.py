"""Tunnels that are not read: bytes both ways, one end that is done, breaks, silence, counts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
import time

import pytest
import uvloop

from clawbox.egress.messages import Limits
from tests.egress_world import Upstream, answers
from tests.egress_world.ca import client_context
from tests.egress_world.client import BrokenOffError, ask, ca, connect, inner, read_reply, tls
from tests.egress_world.sandbox import TOKEN, request, sandbox

RULES = [{"host": "api.test", "tls_mode": "tunnel"}]


def hello(host="api.test"):
    """The first message of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = client_context(ca().pem).wrap_bio(incoming, outgoing, server_hostname=host)
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


class Raw:
    """A server of bytes: takes one connection, whose streams the test gets."""

    host = "127.0.0.1"

    def __init__(self):
        self._taken = asyncio.get_running_loop().create_future()

    async def __aenter__(self):
        def take(reader, writer):
            self._taken.set_result((reader, writer))

        self._server = await asyncio.start_server(take, self.host, 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        if self._taken.done():
            self._taken.result()[1].transport.abort()
        await self._server.wait_closed()

    async def connect(self):
        sock = socket.create_connection(self._server.sockets[0].getsockname())
        sock.setblocking(False)
        return sock

    async def taken(self):
        return await self._taken


async def opened(box, raw):
    """Both ends of a tunnel through which the first message has gone."""
    wires = await connect(box, "api.test:443")
    first = hello()
    await wires.send(first)
    reader, writer = await raw.taken()
    assert await reader.readexactly(len(first)) == first
    return wires, reader, writer


async def test_bytes_pass_both_ways_as_they_are(tmp_path):
    async with Raw() as raw, sandbox(tmp_path, {"api.test": raw}, ca(), rules=RULES) as box:
        wires, reader, writer = await opened(box, raw)
        data = answers.pattern(1_000_000)
        for _ in range(3):
            up = asyncio.create_task(wires.send(data))
            assert await reader.readexactly(len(data)) == data
            await up
            writer.write(data)
            assert await wires.reader.readexactly(len(data)) == data
        assert box.rows.open_tunnels == 1
        wires.close()
        writer.close()
        row = await box.rows.written()
        assert (row.bytes_up, row.bytes_down) == (3_000_000 + len(hello()), 3_000_000)
        assert box.rows.open_tunnels == 0


async def test_an_end_that_is_done_still_reads(tmp_path):
    async with Raw() as raw, sandbox(tmp_path, {"api.test": raw}, ca(), rules=RULES) as box:
        wires, reader, writer = await opened(box, raw)
        wires.writer.write_eof()
        assert await reader.read() == b""
        writer.write(b"later")
        assert await wires.reader.readexactly(5) == b"later"
        writer.close()
        assert await wires.reader.read() == b""
        wires.close()
        assert (await box.rows.written()).decision == "allowed"


async def test_the_other_end_may_be_done_first(tmp_path):
    async with Raw() as raw, sandbox(tmp_path, {"api.test": raw}, ca(), rules=RULES) as box:
        wires, reader, writer = await opened(box, raw)
        writer.write_eof()
        assert await wires.reader.read() == b""
        await wires.send(b"later")
        assert await reader.readexactly(5) == b"later"
        wires.close()
        await box.rows.written()


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_reset_is_passed_on(tmp_path, side):
    async with Raw() as raw, sandbox(tmp_path, {"api.test": raw}, ca(), rules=RULES) as box:
        wires, reader, writer = await opened(box, raw)
        broken, other = (wires.writer, reader) if side == "client" else (writer, wires.reader)
        sock = broken.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        broken.transport.abort()
        with pytest.raises(ConnectionError):
            await other.readexactly(1)
        await box.rows.written()
        assert box.rows.open_tunnels == 0
        wires.close()


async def test_a_tunnel_in_which_nothing_moves_ends(tmp_path):
    limits = Limits(idle_timeout_ms=500)  # which the host must be dialed in, too, on a busy machine
    async with Raw() as raw, sandbox(tmp_path, {"api.test": raw}, ca(), rules=RULES, limits=limits) as box:
        wires, _, _ = await opened(box, raw)
        with contextlib.suppress(ConnectionError):
            assert await wires.reader.read() == b""
        row = await box.rows.written()
        assert (row.decision, row.reason) == ("failed", "idle_timeout")
        wires.close()


async def test_bytes_one_way_keep_a_tunnel_open(tmp_path):
    limits = Limits(idle_timeout_ms=500)
    async with Raw() as raw, sandbox(tmp_path, {"api.test": raw}, ca(), rules=RULES, limits=limits) as box:
        wires, _, writer = await opened(box, raw)
        began = time.monotonic()
        while time.monotonic() - began < 1:
            writer.write(b"tick")
            assert await wires.reader.readexactly(4) == b"tick"
            await asyncio.sleep(0.02)
        assert box.rows.rows == []
        wires.close()
        writer.close()


async def test_an_end_that_does_not_read_stops_the_other(tmp_path):
    async with Raw() as raw, sandbox(tmp_path, {"api.test": raw}, ca(), rules=RULES) as box:
        wires, _, writer = await opened(box, raw)
        wires.reader._limit = 1
        sent = 0

        async def flood():
            nonlocal sent
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent += 1 << 16

        task = asyncio.create_task(flood())
        before = -1
        while sent != before:  # until it stands still
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 32 << 20
        task.cancel()
        await asyncio.wait([task])
        # Nothing is lost.
        assert len(await wires.reader.readexactly(sent)) == sent
        wires.close()


async def test_a_host_that_cannot_be_reached_is_said_before_the_tunnel(tmp_path):
    async with sandbox(tmp_path, {}, ca(), rules=RULES) as box:
        reply = await ask(box, request("api.test:443", method="CONNECT"))
        assert (reply.status, reply.reason) == (502, "connect_failed")


async def test_http_2_passes_a_tunnel_that_is_not_read(tmp_path):
    async with (
        Upstream(tls=ca().server_context("api.test", alpn=("h2",))) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), rules=RULES) as box,
    ):
        wires = await tls(await connect(box, "api.test:443"), ca().pem, "api.test", alpn=("h2",))
        assert wires.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        wires.close()
        await upstream.idle()


async def test_a_revoked_token_ends_what_is_under_way(tmp_path):
    digest = hashlib.sha256(TOKEN.encode()).digest()
    async with (
        Upstream({"/x": answers.never, "/ok": answers.body(b"ok")}) as upstream,
        Raw() as raw,
        sandbox(
            tmp_path, {"api.test": raw, "plain.test": upstream}, ca(), rules=[*RULES, "plain.test"]
        ) as box,
    ):
        wires, reader, _ = await opened(box, raw)
        asking = asyncio.create_task(ask(box, request("http://plain.test/x")))
        await upstream.arrived()
        idle = await connect(box, "plain.test:80")
        box.proxy.admit(hashlib.sha256(b"other").digest(), "other")
        spared = await connect(box, "plain.test:80", token="other")

        box.proxy.revoke(digest)
        for broken in (
            wires.reader.readexactly(1),
            reader.readexactly(1),
            asking,
            idle.reader.readexactly(1),
        ):
            with pytest.raises((ConnectionError, EOFError, BrokenOffError)):
                await broken
        await upstream.idle()
        assert sorted((row.way, row.reason) for row in box.rows.rows) == [
            ("absolute", "ended"),
            ("connect", "ended"),
            ("tunnel", "ended"),
        ]
        await spared.send(inner("/ok", "plain.test"))
        assert (await read_reply(spared)).body == b"ok"
        for one in (wires, idle, spared):
            one.close()


def test_a_reset_is_passed_on_by_the_event_loop_of_sidecars_too(tmp_path):
    async def passed_on():
        async with Raw() as raw, sandbox(tmp_path, {"api.test": raw}, ca(), rules=RULES) as box:
            wires, reader, writer = await opened(box, raw)
            sock = wires.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wires.writer.transport.abort()
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            await box.rows.written()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    uvloop.run(passed_on())
