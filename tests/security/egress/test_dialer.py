"""Properties 10 to 19, 61 and 63 where names are resolved and connections made: in the dialer."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import itertools
import os
import socket
from pathlib import Path

import msgspec
import pytest

from clawbox.egress import messages
from clawbox.egress.dialer import connector, resolver
from clawbox.egress.dialer.messages import Closed, Dismiss, Enrol, Why, dials_at_once
from clawbox.egress.dialer.packets import PacketSocket
from clawbox.egress.dialer.resolver import LOOKUPS_AT_ONCE, MAX_ANSWERS, look_up
from clawbox.egress.dialer.routes import Routes, open_netlink
from clawbox.egress.messages import Dial, Hang, Limits, NotDialed
from clawbox.egress.refusal import Denial
from tests.security.egress.dialing import PATIENCE, Names, Upstream, dialer, reached, refused


@pytest.fixture
def upstream():
    made = Upstream()
    with made.socket:
        yield made


def allow(host, *ports):
    return {"host": host, "ports": list(ports)}


raw = msgspec.msgpack.encode


async def denial_of(peer, message):
    peer.say(message)
    answer, descriptor = await peer.hear()
    assert descriptor is None
    assert isinstance(answer, NotDialed)
    return Denial[answer.denial]


# 10 to 13: what resolvers answer


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "fe80::1%lo",
        "LOCALHOST",
        "a.example.",
        "",
        "a b",
    ],
)
async def test_rule_10_what_is_no_canonical_host_is_neither_looked_up_nor_dialled(host, upstream):
    names = Names()
    async with dialer(names) as world:
        peer = world.peer(allow("*", upstream.port))

        assert await denial_of(peer, Dial(1, host, upstream.port)) is Denial.BAD_HOST

    assert names.asked == []
    assert upstream.untouched()


async def test_rule_11_a_name_with_a_special_address_is_refused():
    names = Names(metadata_example=[["169.254.169.254"]], azure_example=[["168.63.129.16"]])
    async with dialer(names) as world:
        client = world.client("metadata.example", "azure.example")

        assert await refused(client, "metadata.example", 80) is Denial.ADDRESS_REFUSED
        assert await refused(client, "azure.example", 80) is Denial.ADDRESS_REFUSED


@pytest.mark.parametrize("answer", ["::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%1"])
async def test_rule_12_what_stands_for_another_address_is_refused_though_all_is_trusted(answer):
    async with dialer(Names(a_example=[[answer]]), trusted=["0.0.0.0/0", "::/0"]) as world:
        assert await refused(world.client("a.example"), "a.example", 443) is Denial.ADDRESS_REFUSED


def test_rule_12_the_zone_of_an_answer_is_kept(monkeypatch):
    found = (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("fe80::1", 0, 0, 2))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])

    assert look_up("a.example") == (ipaddress.ip_address("fe80::1%2"),)


@pytest.mark.parametrize("bad", ["10.0.0.1", "169.254.169.254", "::1", "fd00::1"])
@pytest.mark.parametrize("place", [0, 1, 20])
async def test_rule_13_one_bad_answer_among_many_refuses_the_host(bad, place, upstream):
    answers = [f"127.0.0.{number}" for number in range(1, 21)]
    answers.insert(place, bad)
    async with dialer(Names(a_example=[answers]), trusted=["127.0.0.0/8"]) as world:
        client = world.client(allow("a.example", upstream.port))

        assert await refused(client, "a.example", upstream.port) is Denial.ADDRESS_REFUSED

    assert upstream.untouched()


async def test_rule_13_more_addresses_than_can_be_checked_are_refused(upstream):
    answers = [f"127.0.{number // 256}.{number % 256}" for number in range(1, MAX_ANSWERS + 2)]
    names = Names(many_example=[answers], fewer_example=[answers[:-1]])
    async with dialer(names) as world:
        client = world.client(allow("many.example", upstream.port), allow("fewer.example", upstream.port))

        assert await refused(client, "many.example", upstream.port) is Denial.ADDRESS_REFUSED
        assert await reached(client, "fewer.example", upstream.port) == "127.0.0.1"


async def test_rule_13_a_name_without_an_address_is_refused():
    async with dialer(Names(a_example=[[]])) as world:
        client = world.client("a.example", "b.example")

        assert await refused(client, "a.example", 443) is Denial.NO_ADDRESS
        assert await refused(client, "b.example", 443) is Denial.DNS_FAILED


# 14: the address that was checked is the one that is connected to


async def test_rule_14_a_second_answer_is_never_used_for_the_same_connection(upstream):
    names = Names(a_example=[["127.0.0.1"], ["10.0.0.1"]])
    async with dialer(names) as world:
        client = world.client(allow("a.example", upstream.port))

        assert await reached(client, "a.example", upstream.port) == "127.0.0.1"
        assert names.asked == ["a.example"]


async def test_rule_14_every_connection_has_its_answers_checked(upstream):
    names = Names(a_example=[["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1"]])
    async with dialer(names) as world:
        client = world.client(allow("a.example", upstream.port))

        assert await reached(client, "a.example", upstream.port) == "127.0.0.1"
        assert await refused(client, "a.example", upstream.port) is Denial.ADDRESS_REFUSED
        assert await reached(client, "a.example", upstream.port) == "127.0.0.1"


async def test_rule_14_a_connection_to_anything_but_a_checked_address_is_closed(upstream, monkeypatch):
    connect = connector._connect
    elsewhere = Upstream("127.0.0.3")
    monkeypatch.setattr(
        connector, "_connect", lambda _, __: connect(ipaddress.ip_address("127.0.0.3"), elsewhere.port)
    )
    with elsewhere.socket:
        async with dialer(Names(a_example=[["127.0.0.1"], ["127.0.0.3"]])) as world:
            client = world.client(allow("a.example", upstream.port))

            # Another address, then the right one but another port.
            assert await refused(client, "a.example", upstream.port) is Denial.ADDRESS_REFUSED
            assert await refused(client, "a.example", upstream.port) is Denial.ADDRESS_REFUSED
            for _ in range(2):
                with await elsewhere.accepted() as connection:
                    assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""


async def test_rule_14_the_peer_is_checked_again_when_it_is_connected(upstream):
    asked = []

    def own(addresses):
        asked.append(tuple(map(str, addresses)))
        if len(asked) == 2:
            raise OSError
        return frozenset(addresses)

    async with dialer(Names(a_example=[["127.0.0.1", "127.0.0.2"]]), own=own) as world:
        client = world.client(allow("a.example", upstream.port))

        assert await refused(client, "a.example", upstream.port) is Denial.CONNECT_FAILED
        with await upstream.accepted() as connection:
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
        assert asked == [("127.0.0.1", "127.0.0.2"), ("127.0.0.1",)]


# 15 and 18: this machine, its listeners, internal networks


def test_rule_15_the_kernel_says_which_addresses_are_this_machines_own():
    trie = Path("/proc/net/fib_trie").read_text().splitlines()
    # "|-- ADDRESS" above "/32 host LOCAL".
    mine = {
        ipaddress.ip_address(above.split()[-1])
        for above, line in itertools.pairwise(trie)
        if line.strip() == "/32 host LOCAL"
    }
    inet6 = Path("/proc/net/if_inet6")
    lines = inet6.read_text().splitlines() if inet6.exists() else []
    mine |= {ipaddress.ip_address(bytes.fromhex(line.split()[0])) for line in lines}
    # Addresses between that nobody has: documentation's, and one of a network that is not routed here.
    others = {ipaddress.ip_address("203.0.113.77"), ipaddress.ip_address("2001:db8:77::1")} - mine
    routes = Routes(open_netlink())

    try:
        assert ipaddress.ip_address("127.0.0.1") in mine
        assert routes.own(mine | others) == mine
    finally:
        routes.close()


async def test_rule_15_an_address_of_this_machine_needs_trust_that_means_it_alone():
    own = ipaddress.ip_address("10.9.8.7")

    def owned(addresses):
        return frozenset(addresses) & {own}

    async with dialer(Names(a_example=[[str(own)]]), trusted=["10.0.0.0/8"], own=owned) as world:
        assert await refused(world.client("a.example"), "a.example", 443) is Denial.ADDRESS_REFUSED


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::"])
async def test_rule_15_clawboxs_own_listeners_cannot_be_dialled_though_trusted(bound, upstream):
    async with dialer(listeners=[(bound, upstream.port)]) as world:
        client = world.client(allow("127.0.0.1", upstream.port))

        assert await refused(client, "127.0.0.1", upstream.port) is Denial.ADDRESS_REFUSED

    assert upstream.untouched()


async def test_rule_15_a_new_policy_holds_for_the_next_dial(upstream):
    async with dialer() as world:
        client = world.client(allow("127.0.0.1", upstream.port))
        assert await reached(client, "127.0.0.1", upstream.port)

        world.allow_addresses(trusted=["127.0.0.0/8"], denied=["127.0.0.1/32"])

        assert await refused(client, "127.0.0.1", upstream.port) is Denial.ADDRESS_REFUSED


async def test_rule_15_when_the_kernel_does_not_say_nothing_is_dialled(upstream):
    def silent(_):
        raise OSError

    async with dialer(own=silent) as world:
        client = world.client(allow("127.0.0.1", upstream.port))

        assert await refused(client, "127.0.0.1", upstream.port) is Denial.CONNECT_FAILED

    assert upstream.untouched()


async def test_rule_18_trusted_networks_are_reached_where_a_rule_names_the_host(upstream):
    names = Names(a_example=[["127.0.0.1"]])
    port = upstream.port
    async with dialer(names) as world:
        assert await refused(world.client(allow("*", port)), "a.example", port) is Denial.ADDRESS_REFUSED
        # Whichever of the rules comes first.
        both = world.client(allow("*", port), allow("a.example", port))
        assert await reached(both, "a.example", port) == "127.0.0.1"
        # A rule that names the host for another port does not count.
        other = world.client(allow("*", port), allow("a.example", 1))
        assert await refused(other, "a.example", port) is Denial.ADDRESS_REFUSED
    async with dialer(names, trusted=()) as world:
        client = world.client(allow("a.example", port))
        assert await refused(client, "a.example", port) is Denial.ADDRESS_REFUSED


# 16, 19, 61: what the sidecar says does not count, nor does the environment


async def test_rule_16_a_name_that_the_grant_refuses_is_never_looked_up():
    names = Names()
    async with dialer(names) as world:
        peer = world.peer("a.example", "*.b.example")

        assert await denial_of(peer, Dial(1, "secret.evil.example", 443)) is Denial.HOST_NOT_ALLOWED
        assert await denial_of(peer, Dial(2, "b.example", 443)) is Denial.HOST_NOT_ALLOWED
        assert await denial_of(peer, Dial(3, "a.example", 22)) is Denial.PORT_NOT_ALLOWED
        assert await denial_of(world.peer(), Dial(1, "a.example", 443)) is Denial.NO_RULES
        assert names.asked == []
        assert await denial_of(peer, Dial(4, "x.b.example", 443)) is Denial.DNS_FAILED
        assert names.asked == ["x.b.example"]


async def test_rule_16_a_literal_is_never_looked_up(upstream):
    names = Names()
    async with dialer(names) as world:
        assert await reached(world.client(allow("127.0.0.1", upstream.port)), "127.0.0.1", upstream.port)
        assert await refused(world.client("8.8.8.8", "::1"), "::1", 81) is Denial.PORT_NOT_ALLOWED
        assert await refused(world.client("10.0.0.1"), "10.0.0.1", 80) is Denial.ADDRESS_REFUSED

    assert names.asked == []


async def test_rule_19_the_environments_proxies_are_ignored(upstream, monkeypatch):
    proxy = Upstream()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    with proxy.socket:
        async with dialer(Names(a_example=[["127.0.0.1"]])) as world:
            client = world.client(allow("a.example", upstream.port))
            dialed = await client.dial("a.example", upstream.port)
            with dialed.socket, await upstream.accepted() as accepted:
                assert dialed.socket.getpeername() == ("127.0.0.1", upstream.port)
                assert dialed.socket.getsockname() == accepted.getpeername()
        assert proxy.untouched()


async def test_rule_61_a_sidecar_reaches_what_its_own_grant_says_and_nothing_else(upstream):
    names = Names(a_example=[["127.0.0.1"]], b_example=[["127.0.0.1"]])
    port = upstream.port
    async with dialer(names) as world:
        one, other = world.client(allow("a.example", port)), world.client(allow("b.example", port))

        assert await reached(one, "a.example", port)
        assert await refused(one, "b.example", port) is Denial.HOST_NOT_ALLOWED
        assert await reached(other, "b.example", port)
        assert await refused(other, "a.example", port) is Denial.HOST_NOT_ALLOWED


async def test_rule_61_before_control_named_a_policy_nothing_is_dialled(upstream):
    async with dialer() as world:
        world.service._connector = None
        peer = world.peer(allow("127.0.0.1", upstream.port))
        peer.say(Dial(1, "127.0.0.1", upstream.port))

        answer, _ = await peer.hear()
        assert answer == NotDialed(1, "INTERNAL", "the dialer knows no address policy yet")

    assert upstream.untouched()


# 17: look-ups


def quick(milliseconds=PATIENCE * 1000, **others):
    return Limits(connect_timeout_ms=milliseconds, **others)


async def test_rule_17_a_slow_name_server_of_one_sandbox_keeps_no_other_waiting(upstream):
    port = upstream.port
    names = Names(slow_example=[["127.0.0.1"]], a_example=[["127.0.0.1"]])
    release = names.hold("slow.example")
    async with dialer(names) as world:
        slow = world.client(allow("slow.example", port), allow("127.0.0.1", port), limits=quick())
        waiting = [asyncio.create_task(slow.dial("slow.example", port)) for _ in range(4 * LOOKUPS_AT_ONCE)]
        await names.until(lambda: len(names.asked) >= LOOKUPS_AT_ONCE)

        assert await reached(world.client(allow("a.example", port)), "a.example", port)
        assert await reached(slow, "127.0.0.1", port)
        assert names.asked.count("slow.example") == LOOKUPS_AT_ONCE
        assert not any(task.done() for task in waiting)

        release.set()
        for dialed in await asyncio.gather(*waiting):
            dialed.socket.close()


async def test_rule_17_a_look_up_has_a_deadline(upstream):
    names = Names(slow_example=[["127.0.0.1"]])
    release = names.hold("slow.example")
    async with dialer(names) as world:
        client = world.client(allow("slow.example", upstream.port), limits=quick(50))

        waits = [refused(client, "slow.example", upstream.port) for _ in range(LOOKUPS_AT_ONCE + 1)]
        assert set(await asyncio.gather(*waits)) == {Denial.DNS_TIMEOUT}

        release.set()
        patient = world.client(allow("slow.example", upstream.port), limits=quick())
        assert await reached(patient, "slow.example", upstream.port)


async def test_rule_17_look_ups_that_nobody_waits_for_still_count(upstream):
    """Else a sidecar could have any number of them under way by asking and hanging up."""
    names = Names(slow_example=[["127.0.0.1"]])
    release = names.hold("slow.example")
    rule = allow("slow.example", upstream.port)
    async with dialer(names) as world:
        number, grant, sock = world.enrol(rule, limits=quick())
        for dial in range(1, 101):
            sock.send(raw(Dial(dial, "slow.example", upstream.port)))
            sock.send(raw(Hang(dial)))
        sock.send(raw(Dial(1000, "slow.example", upstream.port)))
        await names.until(lambda: len(names.asked) >= 1)
        # A sidecar that was started anew shares them, too.
        world.dismiss(number)
        again = world.enrol(grant=grant)[2]
        for dial in range(1, 101):
            again.send(raw(Dial(dial, "slow.example", upstream.port)))
        other = world.client(allow("127.0.0.1", upstream.port))
        assert await reached(other, "127.0.0.1", upstream.port)
        await names.until(lambda: len(names.asked) == LOOKUPS_AT_ONCE)
        assert not world.service._resolvers.take(grant.sandbox)._threads._work_queue.qsize()

        release.set()
        await names.until(lambda: len(names.asked) > LOOKUPS_AT_ONCE)


async def test_rule_17_threads_end_with_the_last_that_uses_them(upstream, monkeypatch):
    ended = asyncio.Event()
    end = resolver.Resolver._end

    def ending(self):
        end(self)
        ended.set()

    monkeypatch.setattr(resolver.Resolver, "_end", ending)
    names = Names(slow_example=[["127.0.0.1"]])
    release = names.hold("slow.example")
    async with dialer(names) as world:
        number, _, sock = world.enrol(allow("slow.example", upstream.port))
        sock.send(raw(Dial(1, "slow.example", upstream.port)))
        await names.until(lambda: bool(names.asked))
        world.dismiss(number)
        assert len(world.service._resolvers) == 1

        release.set()

        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        assert len(world.service._resolvers) == 0


# 63: peers


def padded(size):
    """A good message that long."""
    message = {"type": "dial", "id": 1, "host": "a.example", "port": 443, "padding": ""}
    message["padding"] = "x" * (size - len(raw(message)) - 2)
    assert len(raw(message)) == size
    assert msgspec.msgpack.decode(raw(message), type=messages.ToDialer) == Dial(1, "a.example", 443)
    return raw(message)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def read_end(peer):
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(peer.socket, ready.set)
    try:
        async with asyncio.timeout(PATIENCE):
            await ready.wait()
    finally:
        loop.remove_reader(peer.socket)
    try:
        return peer.socket.recv(1) == b""
    except ConnectionResetError:
        return True


async def test_rule_63_a_peer_that_asks_for_more_than_it_may_is_closed(upstream):
    names = Names(slow_example=[["127.0.0.1"]])
    release = names.hold("slow.example")
    limits = quick(max_concurrent=3, max_tunnels=2)
    async with dialer(names) as world:
        peer = world.peer(allow("slow.example", upstream.port), limits=limits)
        for number in range(dials_at_once(limits)):
            peer.say(Dial(number, "slow.example", upstream.port))
        await names.until(lambda: len(names.asked) == 5)
        assert world.heard.empty()

        peer.say(Dial(99, "slow.example", upstream.port))

        assert await world.closed() == Closed(1, Why.FLOODED)
        assert await read_end(peer)
        # Others go on as before.
        release.set()
        assert await reached(
            world.client(allow("slow.example", upstream.port)), "slow.example", upstream.port
        )


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"\x00" * 100,
        raw(["dial", 1, "a.example", 443]),
        raw({"type": "dial", "id": 1, "host": "a.example"}),
        raw({"type": "dial", "id": 1, "host": "a.example", "port": 0}),
        raw({"type": "dial", "id": 1, "host": "a.example", "port": "443"}),
        raw({"type": "dial", "id": 1, "host": "a" * 256, "port": 443}),
        raw({"type": "dialed", "id": 1, "address": "10.0.0.1"}),
        raw({"type": "dial", "id": 1, "host": "a.example", "port": 443}) + b"\x00",
        b"\x91" * 5000,
        b"\x83\xa4type\xa4dial\xa1x" + b"\x91" * 5000 + b"\x00",
        b"\x85\xa4type\xa4dial\xa2id\x01\xa4host\xa3\xed\xa0\x80\xa4port\x01",
        b"x" * (messages.MAX_PACKET_BYTES + 1),
        padded(messages.MAX_PACKET_BYTES) + b"\xc0",
    ],
    ids=range(14),
)
async def test_rule_63_a_peer_that_sends_garbage_is_closed(packet, upstream):
    async with dialer(Names(a_example=[["10.0.0.1"]])) as world:
        bystander = world.client(allow("127.0.0.1", upstream.port))
        peer = world.peer("a.example")

        peer.socket.send(packet)

        assert await world.closed() == Closed(2, Why.MALFORMED)
        assert await read_end(peer)
        assert await reached(bystander, "127.0.0.1", upstream.port)


async def test_rule_63_a_number_in_use_is_garbage(upstream):
    names = Names(slow_example=[["127.0.0.1"]])
    names.hold("slow.example")
    async with dialer(names) as world:
        peer = world.peer(allow("slow.example", upstream.port))
        peer.say(Dial(1, "slow.example", upstream.port))
        peer.say(Dial(1, "slow.example", upstream.port))

        assert await world.closed() == Closed(1, Why.MALFORMED)


async def test_rule_63_descriptors_of_a_peer_are_not_taken(upstream):
    async with dialer() as world:
        peer = world.peer(allow("127.0.0.1", upstream.port))
        reading, writing = os.pipe()
        before = open_descriptors()
        socket.send_fds(peer.socket, [raw(Dial(1, "127.0.0.1", upstream.port))], [reading] * 8)

        assert await world.closed() == Closed(1, Why.MALFORMED)
        assert open_descriptors() <= before
        os.close(reading)
        os.close(writing)


async def test_rule_63_a_peer_that_does_not_read_its_answers_is_closed_and_keeps_nobody_waiting(upstream):
    limits = Limits(max_concurrent=2000, max_tunnels=1)
    async with dialer(stall_seconds=0.1) as world:
        peer = world.peer(limits=limits)
        bystander = world.client(allow("127.0.0.1", upstream.port))
        number = 0
        # Refused at once, each of them, until the kernel holds no more unread answers.
        while world.heard.empty():
            try:
                peer.say(Dial(number, "a.example", 443))
                number += 1
            except BlockingIOError:
                await asyncio.sleep(0)
            except BrokenPipeError:
                break
            if number % 100 == 0:
                assert await reached(bystander, "127.0.0.1", upstream.port)

        assert (await world.closed()).why in {Why.STALLED, Why.FLOODED}
        assert await reached(bystander, "127.0.0.1", upstream.port)


async def test_rule_63_a_stalled_peer_is_closed_with_the_connections_that_it_did_not_take(
    upstream, monkeypatch
):
    def full(*_):
        raise BlockingIOError

    monkeypatch.setattr(PacketSocket, "_send", full)
    async with dialer(stall_seconds=0.05) as world:
        peer = world.peer(allow("127.0.0.1", upstream.port))
        peer.say(Dial(1, "127.0.0.1", upstream.port))

        assert await world.closed() == Closed(1, Why.STALLED)
        with await upstream.accepted() as connection:
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""


async def test_rule_63_where_no_descriptor_can_be_passed_a_reason_is(upstream, monkeypatch):
    """The kernel counts the descriptors that nobody has read yet, for all peers together (unix(7))."""

    def full(*_):
        raise OSError(errno.ETOOMANYREFS, "Too many references")

    async with dialer() as world:
        peer = world.peer(allow("127.0.0.1", upstream.port))
        monkeypatch.setattr(socket, "send_fds", full)

        assert await denial_of(peer, Dial(1, "127.0.0.1", upstream.port)) is Denial.CONNECT_FAILED
        with await upstream.accepted() as connection:
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""


async def test_rule_63_hanging_up_takes_back_an_answer_that_still_waits_to_be_read(upstream, monkeypatch):
    waits = asyncio.Event()

    def full(*_):
        waits.set()
        raise BlockingIOError

    monkeypatch.setattr(PacketSocket, "_send", full)
    limits = Limits(max_concurrent=1, max_tunnels=0)
    async with dialer() as world:
        peer = world.peer(allow("127.0.0.1", upstream.port), limits=limits)
        for number in range(1, 6):
            peer.say(Dial(number, "127.0.0.1", upstream.port))
            with await upstream.accepted() as connection:
                waits.clear()
                await waits.wait()
                peer.say(Hang(number))
                assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
        assert world.heard.empty()


async def test_rule_63_what_is_under_way_ends_with_its_peer(upstream):
    names = Names(slow_example=[["127.0.0.1"]])
    release = names.hold("slow.example")
    async with dialer(names) as world:
        peer = world.peer(allow("slow.example", upstream.port))
        peer.say(Dial(1, "slow.example", upstream.port))
        await names.until(lambda: bool(names.asked))

        peer.socket.close()

        assert await world.closed() == Closed(1, Why.GONE)
        release.set()
    assert upstream.untouched()


async def test_rule_63_many_packets_of_one_peer_do_not_keep_another_waiting(upstream, monkeypatch):
    """A few are read at a turn: the other is served while the flood still waits to be read."""
    served = []
    quiet_served = asyncio.Event()
    judge = connector.permitted

    def judged(grant, host, port):
        served.append(grant.sandbox)
        if grant.sandbox == "quiet":
            quiet_served.set()
        return judge(grant, host, port)

    monkeypatch.setattr(connector, "permitted", judged)
    async with dialer() as world:
        loud, quiet = world.enrol(sandbox="loud")[2], world.enrol(sandbox="quiet")[2]
        loud.setblocking(False)
        try:
            for number in range(100):
                loud.send(raw(Dial(number, "a.example", 443)))
        except BlockingIOError:
            pass
        quiet.send(raw(Dial(1, "a.example", 443)))

        async with asyncio.timeout(PATIENCE):
            await quiet_served.wait()

        assert served.count("loud") < 100


async def test_rule_63_descriptors_and_grants_come_in_either_order_and_are_joined_by_number(upstream):
    async with dialer() as world:
        grant = messages.Grant("s", "o")
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        world.service.hand(70, pairs[0][1])
        world.service.take(Enrol(70, grant))
        # Dismissed before its socket came, which must then not stay open.
        world.service.take(Enrol(71, grant))
        world.service.take(Dismiss(71))
        world.service.hand(71, pairs[1][1])
        world.service.hand(72, pairs[2][1])
        world.service.take(Dismiss(72))

        for (ours, _), ended in zip(pairs, (False, True, True), strict=True):
            ours.setblocking(False)
            if ended:
                assert ours.recv(1) == b""
            else:
                with pytest.raises(BlockingIOError):
                    ours.recv(1)
            ours.close()


def test_the_resolver_is_the_machines_own():
    assert ipaddress.ip_address("127.0.0.1") in look_up("localhost")
    assert resolver.look_up("127.0.0.1") == (ipaddress.ip_address("127.0.0.1"),)
