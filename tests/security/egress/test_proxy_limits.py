"""Properties 56 and 59 through the running proxy: limits hold, and what was taken comes back."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from clawbox.egress.credentials import Budget, Credential, Secret
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
)
from tests.egress_world.sandbox import SECRET, request, sandbox

URL = "http://api.test/x"
QUICK = Limits(head_timeout_ms=250, idle_timeout_ms=250)


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_rule_56_a_request_on_which_nothing_moves_ends(tmp_path, side):
    async with (
        Upstream({"/x": answers.never}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=QUICK) as box,
    ):
        lines = ["Content-Length: 5"] if side == "client" else []
        reply = await get(box, URL, *lines, method="PUT")
        assert (reply.status, reply.reason) == (504, "idle_timeout")
        await upstream.idle()


async def _dropped(box, upstream):
    wires = await box.connect()
    await wires.send(request("http://api.test/never"))
    await upstream.arrived()
    wires.close()


async def _dropped_with_its_request(box, upstream):
    """All at once: the request, and that nothing more is sent; then it is gone."""
    wires = await box.connect()
    wires.writer.write(request("http://api.test/endless"))
    wires.writer.close()


async def _dropped_in_the_answer(box, upstream):
    wires = await box.connect()
    await wires.send(request("http://api.test/endless"))
    await read_head(wires)
    wires.close()


async def _dropped_in_its_body(box, upstream):
    wires = await box.connect()
    await wires.send(request("http://api.test/never", "Content-Length: 9", method="POST") + b"123")
    await upstream.until(lambda: upstream.connections >= 1)
    wires.close()


async def _dropped_in_a_tunnel(box, upstream):
    wires = await connect(box, "api.test:80")
    await wires.send(inner("/never", "api.test:80").replace(b":80", b""))
    await upstream.arrived()
    wires.close()


async def _refused(box, upstream):
    assert (await get(box, "http://other.test/")).status == 403


async def _broken(box, upstream):
    assert (await get(box, "http://api.test/closes")).status == 502


async def _cut(box, upstream):
    with pytest.raises(BrokenOffError):
        await get(box, "http://api.test/cut")


async def _called(box, upstream):
    assert (await call(box, {"url": "http://api.test/closes", "method": "GET"})).status == 403


async def _dropped_call(box, upstream):
    task = asyncio.create_task(call(box, {"url": "http://api.test/never", "method": "GET"}))
    await upstream.arrived()
    task.cancel()
    await asyncio.wait([task])


async def _not_reachable(box, upstream):
    assert (await get(box, "http://gone.test/")).status == 502


ENDS = [
    _dropped,
    _dropped_with_its_request,
    _dropped_in_the_answer,
    _dropped_in_its_body,
    _dropped_in_a_tunnel,
    _refused,
    _broken,
    _cut,
    _called,
    _dropped_call,
    _not_reachable,
]


async def endless(exchange):
    exchange.keep_alive = False
    await exchange.head(200, [("Content-Type", "text/plain")])
    while True:
        await exchange.send(b"on and on\n" * 1000)


@pytest.mark.parametrize("end", ENDS)
async def test_rule_56_a_slot_comes_back_after_every_end(tmp_path, end):
    routes = {
        "/never": answers.never,
        "/endless": endless,
        "/closes": answers.closes_early,
        "/cut": answers.truncated(b"x\n"),
        "/ok": answers.body(b"ok"),
    }
    async with (
        Upstream(routes) as upstream,
        sandbox(
            tmp_path,
            {"api.test": upstream},
            ca(),
            rules=["api.test", "gone.test"],
            limits=Limits(max_concurrent=1, max_tunnels=1),
        ) as box,
    ):
        await end(box, upstream)
        await box.rows.written(1)
        assert len(box.rows.rows) == 1
        reply = await get(box, "http://api.test/ok")
        assert (reply.status, reply.body) == (200, b"ok")
        wires = await connect(box, "api.test:80")
        wires.close()


async def test_rule_56_as_many_requests_at_once_as_may_be(tmp_path):
    gate = asyncio.Event()
    async with (
        Upstream({"/x": answers.gated(gate, answers.body(b"done"))}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=Limits(max_concurrent=3)) as box,
    ):
        first = [asyncio.create_task(get(box, URL)) for _ in range(3)]
        await upstream.arrived(3)
        reply = await get(box, URL)
        assert (reply.status, reply.reason, reply.header("Retry-After")) == (429, "too_many_requests", "1")
        refused = await call(box, {"url": URL, "method": "GET"})
        assert (refused.status, refused.json()["reason"]) == (403, "too_many_requests")
        gate.set()
        assert [(await one).body for one in first] == [b"done"] * 3


async def test_rule_56_requests_per_second_are_counted_every_way(tmp_path):
    now = [100.0]
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(
            tmp_path,
            {"api.test": upstream},
            ca(),
            limits=Limits(requests_per_second=1, burst=2),
            clock=lambda: now[0],
        ) as box,
    ):
        assert (await get(box, URL)).status == 200
        assert (await get(box, "http://other.test/")).status == 403
        reply = await get(box, URL)
        assert (reply.status, reply.reason) == (429, "rate_limited")
        refused = await call(box, {"url": URL, "method": "GET"})
        assert refused.status == 403
        assert refused.json()["error"].startswith("rate limited: ")
        assert (await ask(box, request("api.test:443", method="CONNECT"))).status == 429
        now[0] += 1
        assert (await get(box, URL)).status == 200
        assert (await get(box, URL)).status == 429


@pytest.mark.parametrize("mode", ["intercept", "tunnel"])
async def test_rule_56_tunnels_are_bounded_before_they_are_answered(tmp_path, mode):
    async with (
        Upstream(default=answers.body(b"ok"), tls=ca().server_context("api.test")) as upstream,
        sandbox(
            tmp_path,
            {"api.test": upstream},
            ca(),
            rules=[{"host": "api.test", "tls_mode": mode}],
            limits=Limits(max_tunnels=1),
        ) as box,
    ):
        # Opened, though nothing was said in it yet.
        wires = await connect(box, "api.test:443")
        reply = await ask(box, request("api.test:443", method="CONNECT"))
        assert (reply.status, reply.reason) == (429, "too_many_tunnels")
        assert box.rows.open_tunnels == 1
        wires.close()
        await box.rows.written(2)
        assert box.rows.open_tunnels == 0

        wires = await connect(box, "api.test:443")
        wires.close()


async def test_rule_56_connections_are_bounded_and_wait_their_turn(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=Limits(max_connections=2)) as box,
    ):
        idle = [await box.connect() for _ in range(2)]
        # Both are served, so that the third is not.
        for wires in idle:
            await wires.send(request(URL))
            await read_reply(wires)
        third = asyncio.create_task(get(box, URL))
        await idle[0].send(request(URL))
        await read_reply(idle[0])
        assert not third.done()
        idle[0].close()
        assert (await third).status == 200
        idle[1].close()


BIG = b"x" * 350_000
"""More than a Unix socket takes, by less than what the sidecar keeps without waiting."""


async def _unread(box):
    """A connection whose client never reads the last of its answer."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, box.path)
    await loop.sock_sendall(sock, request("http://api.test/big", "Connection: close"))
    assert (await box.rows.written()).decision == "allowed"
    return sock


async def test_rule_56_what_was_not_read_keeps_the_place_of_its_connection(tmp_path):
    async with (
        Upstream({"/big": answers.body(BIG), "/x": answers.body(b"ok")}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=Limits(max_connections=1)) as box,
    ):
        with await _unread(box) as sock:
            second = asyncio.create_task(get(box, URL))
            done, _ = await asyncio.wait([second], timeout=0.1)
            assert not done
            loop = asyncio.get_running_loop()
            data = b""
            while piece := await loop.sock_recv(sock, 1 << 16):
                data += piece
            assert data.endswith(BIG)
            assert (await second).body == b"ok"


async def test_rule_56_who_never_reads_does_not_keep_the_place_for_ever(tmp_path):
    async with (
        Upstream({"/big": answers.body(BIG), "/x": answers.body(b"ok")}) as upstream,
        sandbox(
            tmp_path,
            {"api.test": upstream},
            ca(),
            limits=Limits(max_connections=1, idle_timeout_ms=500),
        ) as box,
    ):
        with await _unread(box):
            assert (await get(box, URL)).body == b"ok"


async def test_rule_56_a_client_that_stops_reading_takes_no_connection_with_it(tmp_path):
    """The upstream's connection, whose answer was read whole, serves the next request or none."""
    async with (
        Upstream({"/big": answers.body(b"x" * 150_000), "/x": answers.body(b"ok")}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=Limits(idle_timeout_ms=500)) as box,
    ):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", box.port))
            for _ in range(40):
                await loop.sock_sendall(sock, request("http://api.test/big"))
            while not box.rows.rows or box.rows.rows[-1].decision == "allowed":
                await box.rows.written(len(box.rows.rows) + 1)
            assert (await get(box, URL)).body == b"ok"


class Scarce(socket.socket):
    """A listener in a process that is out of descriptors, until it is not."""

    failures = 3

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


async def test_rule_56_a_sidecar_without_descriptors_serves_on_when_there_are_some(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        listener = Scarce(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        box.proxy.listen(listener, token_required=True)
        box.port = port
        held = [await box.connect() for _ in range(4)]
        for wires in held:
            await wires.send(request(URL))
        assert [(await read_reply(wires)).status for wires in held] == [200] * 4
        for wires in held:
            wires.close()


async def test_rule_56_a_budget_ends_with_a_clear_word(tmp_path):
    key = Credential("key", Secret(SECRET), ("api.test",), budget=Budget(requests=1))
    async with (
        Upstream(default=answers.body(b"ok"), tls=ca().server_context("api.test")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[key]) as box,
    ):
        assert (await get(box, "https://api.test/")).status == 200
        reply = await get(box, "https://api.test/")
        assert (reply.status, reply.reason) == (429, "budget_spent")


async def test_rule_59_who_floods_does_not_keep_the_others_waiting(tmp_path):
    """A download at full speed, an upload and a stuck reader; a small request is answered among them."""
    async with (
        Upstream({"/endless": endless, "/x": answers.body(b"ok"), "/up": answers.echo}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        fast, stuck, up = [await box.connect() for _ in range(3)]
        await fast.send(request("http://api.test/endless"))
        await stuck.send(request("http://api.test/endless"))
        await up.send(request("http://api.test/up", "Content-Length: 999999999", method="PUT"))

        async def read():
            while await fast.reader.read(1 << 16):
                pass

        async def write():
            while True:
                await up.send(b"up and up\n" * 1000)

        flood = [asyncio.create_task(read()), asyncio.create_task(write())]
        for _ in range(5):
            assert (await get(box, URL)).body == b"ok"
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)
        for wires in (fast, stuck, up):
            wires.close()


async def test_rule_59_who_has_no_token_does_not_use_up_the_rate_of_who_has_one(tmp_path):
    """Anybody on the machine reaches a TCP listener."""
    limits = Limits(requests_per_second=1, burst=3)
    async with (
        Upstream({"/x": answers.body(b"ok")}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=limits, clock=lambda: 0.0) as box,
    ):
        for token in (None, "another-token-0123456789", None, None, None):
            assert (await ask(box, request(URL, token=token))).status == 407
        assert [(await get(box, URL)).status for _ in range(4)] == [200, 200, 200, 429]
