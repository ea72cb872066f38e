"""How a connection is made to one of several addresses, with real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

import pytest

from clawbox.egress.dialer import connector
from clawbox.egress.dialer.connector import MAX_TOGETHER, MAX_TRIED, interleaved
from clawbox.egress.messages import Limits
from clawbox.egress.refusal import Denial
from tests.security.egress.dialing import Names, Upstream, dialer, reached, refused

SILENT = "127.0.0.9"


@pytest.fixture
def upstream():
    made = Upstream()
    with made.socket:
        yield made


@pytest.fixture
def silence(monkeypatch):
    """An address that never answers; its attempts, by what became of them."""
    connect = connector._connect
    attempts = []

    async def connecting(address, port):
        if str(address) != SILENT:
            return await connect(address, port)
        attempts.append("begun")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            attempts[-1] = "ended"

    monkeypatch.setattr(connector, "_connect", connecting)
    return attempts


def addresses(*texts):
    return tuple(map(ipaddress.ip_address, texts))


def allow(host, port):
    return {"host": host, "ports": [port]}


def test_families_take_turns_and_the_resolvers_order_is_kept_within_each():
    assert interleaved(addresses("::1", "::2", "::3", "1.1.1.1")) == list(
        addresses("::1", "1.1.1.1", "::2", "::3")
    )
    assert interleaved(addresses("1.1.1.1", "::1")) == list(addresses("1.1.1.1", "::1"))
    assert len(interleaved(addresses(*(f"1.1.1.{n}" for n in range(200))))) == MAX_TRIED


async def test_when_an_address_refuses_the_next_is_tried_at_once(upstream, monkeypatch):
    monkeypatch.setattr(connector, "STAGGER_SECONDS", 3600)
    # Nothing listens at the first two.
    async with dialer(Names(a_example=[["127.0.0.2", "127.0.0.3", "127.0.0.1"]])) as world:
        client = world.client(allow("a.example", upstream.port))
        assert await reached(client, "a.example", upstream.port) == "127.0.0.1"


async def test_while_an_address_is_silent_the_next_is_tried_too(upstream, silence, monkeypatch):
    monkeypatch.setattr(connector, "STAGGER_SECONDS", 0.01)
    async with dialer(Names(a_example=[[SILENT, "127.0.0.1"]])) as world:
        client = world.client(allow("a.example", upstream.port))
        assert await reached(client, "a.example", upstream.port) == "127.0.0.1"
        await asyncio.sleep(0)
        assert silence == ["ended"]


async def test_a_few_addresses_are_tried_at_once_and_all_of_them_in_turn(upstream, monkeypatch):
    monkeypatch.setattr(connector, "STAGGER_SECONDS", 0.001)
    connect = connector._connect
    tried, most = set(), 0

    async def connecting(address, port):
        nonlocal most
        if str(address) == "127.0.0.1":
            return await connect(address, port)
        tried.add(address)
        most = max(most, len(tried))
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            tried.remove(address)

    monkeypatch.setattr(connector, "_connect", connecting)
    silent = [f"127.0.1.{number}" for number in range(1, MAX_TRIED)]
    async with dialer(Names(a_example=[[*silent, "127.0.0.1"]])) as world:
        client = world.client(allow("a.example", upstream.port))
        assert await reached(client, "a.example", upstream.port) == "127.0.0.1"
        # The last is begun in the turn in which the oldest is told to end.
        assert MAX_TOGETHER - 1 <= most <= MAX_TOGETHER + 1
        await asyncio.sleep(0)
        assert not tried


async def test_all_attempts_end_with_the_time_that_the_grant_gives(silence):
    async with dialer(Names(a_example=[[SILENT]])) as world:
        # Long enough for the attempt to have begun, even where the loop gets no turn for a while.
        client = world.client("a.example", limits=Limits(connect_timeout_ms=500))
        assert await refused(client, "a.example", 443) is Denial.CONNECT_TIMEOUT
        assert silence == ["ended"]


async def test_hanging_up_ends_the_attempts(silence):
    async with dialer(Names(a_example=[[SILENT]])) as world:
        client = world.client("a.example")
        waiting = asyncio.create_task(client.dial("a.example", 443))
        async with asyncio.timeout(20):
            while not silence:  # noqa: ASYNC110 - filled by the loop's own steps
                await asyncio.sleep(0)
            waiting.cancel()
            while silence != ["ended"]:  # noqa: ASYNC110
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_two_connections_at_once_leave_one(upstream, monkeypatch):
    """Both come about in one turn of the loop; the one that is not used is closed."""
    monkeypatch.setattr(connector, "STAGGER_SECONDS", 0)
    connect = connector._connect
    together = asyncio.Barrier(2)

    async def connecting(address, port):
        made = await connect(address, port)
        await together.wait()
        return made

    monkeypatch.setattr(connector, "_connect", connecting)
    with socket.socket() as second:
        second.bind(("127.0.0.2", upstream.port))
        second.listen()
        async with dialer(Names(a_example=[["127.0.0.1", "127.0.0.2"]])) as world:
            client = world.client(allow("a.example", upstream.port))
            await reached(client, "a.example", upstream.port)
        for server in (upstream.socket, second):
            server.setblocking(True)
            with server.accept()[0] as connection:
                connection.settimeout(20)
                assert connection.recv(1) == b""


async def test_the_last_reason_is_told():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and not listening
        port = unused.getsockname()[1]
        async with dialer(Names(a_example=[["127.0.0.1"]])) as world:
            client = world.client(allow("a.example", port))
            assert await refused(client, "a.example", port) is Denial.CONNECT_FAILED


async def test_the_socket_is_set_up_for_a_proxy(upstream):
    async with dialer() as world:
        client = world.client(allow("127.0.0.1", upstream.port))
        dialed = await client.dial("127.0.0.1", upstream.port)
        with dialed.socket as made:
            assert made.gettimeout() == 0
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


async def test_ipv6_is_dialled():
    with contextlib.ExitStack() as owned:
        upstream = Upstream("::1")
        owned.enter_context(upstream.socket)
        async with dialer(Names(a_example=[["::1"]])) as world:
            client = world.client(allow("a.example", upstream.port))
            dialed = await client.dial("a.example", upstream.port)
            with dialed.socket as made:
                assert (dialed.address, made.family) == ("::1", socket.AF_INET6)
                assert made.getpeername()[:2] == ("::1", upstream.port)


async def test_slots_come_back_however_a_dial_ends(upstream, silence):
    names = Names(a_example=[["127.0.0.1"]], silent_example=[[SILENT]], bad_example=[["10.0.0.1"]])
    # What does answer must have done so by then, even where the loop gets no turn for a while.
    limits = Limits(max_concurrent=1, max_tunnels=1, connect_timeout_ms=1000)
    async with dialer(names) as world:
        hosts = ("a.example", "silent.example", "bad.example", "none.example")
        client = world.client(*(allow(host, upstream.port) for host in hosts), limits=limits)
        for _ in range(3):
            assert await refused(client, "silent.example", upstream.port) is Denial.CONNECT_TIMEOUT
            assert await refused(client, "bad.example", upstream.port) is Denial.ADDRESS_REFUSED
            assert await refused(client, "none.example", upstream.port) is Denial.DNS_FAILED
            waiting = asyncio.create_task(client.dial("silent.example", upstream.port))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await reached(client, "a.example", upstream.port)
        assert world.heard.empty()
