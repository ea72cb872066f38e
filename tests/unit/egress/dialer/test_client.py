"""The sidecar's side of the dialer, against a dialer that the test plays."""

from __future__ import annotations

import asyncio
import os
import socket

import msgspec
import pytest

from clawbox.egress.dialer.client import DialerClient
from clawbox.egress.dialer.messages import dials_at_once
from clawbox.egress.messages import Dial, Dialed, Hang, Limits, NotDialed, ToDialer
from clawbox.egress.refusal import Denial, RefusedError

LIMITS = Limits(max_concurrent=2, max_tunnels=1)


class Played:
    """The dialer's end of the pair."""

    def __init__(self, sock):
        self.socket = sock
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()

    async def heard(self):
        async with asyncio.timeout(20):
            packet = await self._loop.sock_recv(self.socket, 1 << 16)
        return msgspec.msgpack.decode(packet, type=ToDialer)

    def silent(self):
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        return False

    def say(self, message, *descriptors):
        packet = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        if descriptors:
            socket.send_fds(self.socket, [packet], descriptors)
        else:
            self.socket.send(packet)


@pytest.fixture
async def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = DialerClient(ours, LIMITS)
    with theirs:
        yield client, Played(theirs)
    client.close()


@pytest.fixture
def connection():
    """Both ends of a connection; the first is handed over."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as near:
        near.connect(server.getsockname())
        far, _ = server.accept()
        with far:
            yield near, far


def denial(error):
    return error.value.refusal.denial


async def gone(far):
    """Whether the other end of the connection was closed."""
    far.setblocking(False)
    async with asyncio.timeout(20):
        return await asyncio.get_running_loop().sock_recv(far, 1) == b""


async def test_a_connected_socket_comes_with_its_address(pair, connection):
    client, dialer = pair
    near, far = connection
    waiting = asyncio.create_task(client.dial("a.example", 443))
    assert await dialer.heard() == Dial(1, "a.example", 443)

    dialer.say(Dialed(1, "127.0.0.1"), near.fileno())
    dialed = await waiting

    with dialed.socket:
        assert dialed.address == "127.0.0.1"
        assert dialed.socket.gettimeout() == 0
        assert dialed.socket.family == socket.AF_INET
        assert not os.get_inheritable(dialed.socket.fileno())
        far.send(b"hello")
        assert await asyncio.get_running_loop().sock_recv(dialed.socket, 5) == b"hello"


async def test_a_reason_comes_as_a_refusal(pair):
    client, dialer = pair
    waiting = asyncio.create_task(client.dial("a.example", 443))
    await dialer.heard()

    dialer.say(NotDialed(1, "ADDRESS_REFUSED", "10.0.0.1: private"))

    with pytest.raises(RefusedError) as error:
        await waiting
    assert denial(error) is Denial.ADDRESS_REFUSED
    assert error.value.refusal.detail == "10.0.0.1: private"


async def test_an_unknown_reason_is_an_internal_one(pair):
    client, dialer = pair
    waiting = asyncio.create_task(client.dial("a.example", 443))
    await dialer.heard()
    dialer.say(NotDialed(1, "SOMETHING", ""))
    with pytest.raises(RefusedError) as error:
        await waiting
    assert denial(error) is Denial.INTERNAL


async def test_answers_come_in_any_order(pair, connection):
    client, dialer = pair
    first = asyncio.create_task(client.dial("a.example", 443))
    second = asyncio.create_task(client.dial("b.example", 443))
    asked = {(await dialer.heard()).host: number for number in (1, 2)}
    dialer.say(NotDialed(asked["b.example"], "DNS_FAILED", ""))
    dialer.say(Dialed(asked["a.example"], "127.0.0.1"), connection[0].fileno())

    (await first).socket.close()
    with pytest.raises(RefusedError):
        await second


async def test_who_does_not_wait_any_more_hangs_up_and_what_comes_late_is_closed(pair, connection):
    client, dialer = pair
    near, far = connection
    waiting = asyncio.create_task(client.dial("a.example", 443))
    await dialer.heard()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await dialer.heard() == Hang(1)

    dialer.say(Dialed(1, "127.0.0.1"), near.fileno())
    near.close()

    assert await gone(far)


async def test_a_socket_that_comes_as_the_wait_is_cancelled_is_closed(pair, connection):
    client, dialer = pair
    near, far = connection
    waiting = asyncio.create_task(client.dial("a.example", 443))
    await dialer.heard()
    dialer.say(Dialed(1, "127.0.0.1"), near.fileno())
    near.close()

    # As the loop would, but with the answer and the cancellation in the same turn.
    client._peer._read()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert await gone(far)
    assert dialer.silent()


async def test_no_more_are_asked_for_than_the_dialer_takes(pair):
    client, dialer = pair
    waiting = [asyncio.create_task(client.dial("a.example", 443)) for _ in range(5)]
    for number in range(1, dials_at_once(LIMITS) + 1):
        assert (await dialer.heard()).id == number
    assert dialer.silent()

    dialer.say(NotDialed(2, "DNS_FAILED", ""))
    assert await dialer.heard() == Dial(4, "a.example", 443)
    waiting[0].cancel()
    assert await dialer.heard() == Hang(1)
    assert await dialer.heard() == Dial(5, "a.example", 443)

    client.close()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ended] == [asyncio.CancelledError, *[RefusedError] * 4]


async def test_while_the_dialer_does_not_read_dials_wait_and_can_be_taken_back(pair):
    client, dialer = pair
    client._peer._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    filled = 0
    while True:
        try:
            client._peer._sock.send(b"\x00")
        except BlockingIOError:
            break
        filled += 1
    given_up = asyncio.create_task(client.dial("a.example", 443))
    kept = asyncio.create_task(client.dial("b.example", 443))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up

    for _ in range(filled):
        dialer.socket.recv(1)

    assert await dialer.heard() == Dial(2, "b.example", 443)
    dialer.say(NotDialed(2, "DNS_FAILED", ""))
    with pytest.raises(RefusedError):
        await kept
    assert dialer.silent()


@pytest.mark.parametrize("how", ["close", "garbage", "too much"])
async def test_a_dialer_that_is_gone_or_raves_fails_what_waits_and_what_comes(pair, how):
    client, dialer = pair
    waiting = asyncio.create_task(client.dial("a.example", 443))
    await dialer.heard()

    if how == "close":
        dialer.socket.close()
    else:
        dialer.say(b"\xc1" if how == "garbage" else bytes(1 << 14))

    with pytest.raises(RefusedError) as error:
        await waiting
    assert (denial(error), error.value.refusal.detail) == (Denial.CONNECT_FAILED, "the dialer is gone")
    with pytest.raises(RefusedError) as error:
        await client.dial("a.example", 443)
    assert denial(error) is Denial.CONNECT_FAILED


async def test_another_dialer_takes_over(pair, connection):
    client, dialer = pair
    waiting = asyncio.create_task(client.dial("a.example", 443))
    await dialer.heard()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        client.replace(ours)
        another = Played(theirs)
        with pytest.raises(RefusedError):
            await waiting
        again = asyncio.create_task(client.dial("a.example", 443))
        asked = await another.heard()
        another.say(Dialed(asked.id, "127.0.0.1"), connection[0].fileno())
        (await again).socket.close()


async def test_a_connection_without_its_descriptor_is_a_refusal(pair):
    client, dialer = pair
    waiting = asyncio.create_task(client.dial("a.example", 443))
    await dialer.heard()
    dialer.say(Dialed(1, "127.0.0.1"))
    with pytest.raises(RefusedError) as error:
        await waiting
    assert denial(error) is Denial.CONNECT_FAILED


async def test_a_descriptor_beside_garbage_or_a_reason_is_closed(pair, connection):
    client, dialer = pair
    near, far = connection
    waiting = asyncio.create_task(client.dial("a.example", 443))
    await dialer.heard()
    dialer.say(NotDialed(1, "DNS_FAILED", ""), near.fileno())
    dialer.say(b"\xc1", near.fileno())
    near.close()
    with pytest.raises(RefusedError):
        await waiting
    assert await gone(far)
