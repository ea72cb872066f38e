"""A dialer on the test's own event loop: names are the test's, addresses, sockets and the kernel are real."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import TYPE_CHECKING

import msgspec

from clawbox.egress import messages
from clawbox.egress.dialer.client import DialerClient
from clawbox.egress.dialer.messages import AddressPolicySpec, Closed, Dismiss, Enrol
from clawbox.egress.dialer.routes import Routes, open_netlink
from clawbox.egress.dialer.service import DialerService
from clawbox.egress.messages import Grant, Limits
from clawbox.egress.refusal import Denial, RefusedError
from clawbox.network_rules import NetworkRule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from clawbox.egress.addresses import Address

LOOPBACK = ("127.0.0.0/8", "::1/128")
PATIENCE = 20


class Names:
    """A resolver: each name has answers, one for each time that it is asked; the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []
        self.held: dict[str, threading.Event] = {}
        """Names that are answered once the event is set."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was asked is as the test wants it."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def hold(self, name: str) -> threading.Event:
        return self.held.setdefault(name, threading.Event())

    def __call__(self, name: str) -> tuple[Address, ...]:
        self.asked.append(name)
        self._loop.call_soon_threadsafe(self._changed.set)
        if name in self.held:
            assert self.held[name].wait(PATIENCE)
        given = self.answers.get(name)
        if given is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return tuple(map(ipaddress.ip_address, given.pop(0) if len(given) > 1 else given[0]))


class Upstream:
    """A port of 127.0.0.1 that something listens on."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.bind((address, 0))
        self.socket.listen(64)
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]

    async def accepted(self) -> socket.socket:
        async with asyncio.timeout(PATIENCE):
            connection, _ = await asyncio.get_running_loop().sock_accept(self.socket)
        return connection

    def untouched(self) -> bool:
        """Whether no connection came."""
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return True
        return False


class Peer:
    """A sidecar that says whatever the test wants."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)

    def say(self, message: object) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    async def hear(self) -> tuple[messages.FromDialer, int | None]:
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.socket, ready.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await ready.wait()
        finally:
            loop.remove_reader(self.socket)
        packet, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 16, 8)
        answer = msgspec.msgpack.decode(packet, type=messages.FromDialer)
        return answer, descriptors[0] if descriptors else None


class World:
    """The dialer, its sandboxes and what control hears of it."""

    def __init__(self, service: DialerService, heard: asyncio.Queue[Closed]) -> None:
        self.service = service
        self.heard = heard
        self.owned = contextlib.ExitStack()
        self._last = 0

    def enrol(
        self, *rules: object, sandbox: str = "", limits: Limits | None = None, grant: Grant | None = None
    ) -> tuple[int, Grant, socket.socket]:
        """A new peer: its number, its grant and its end of the pair."""
        self._last += 1
        if grant is None:
            parsed = tuple(NetworkRule.parse(rule, any_host=True) for rule in rules)
            grant = Grant(sandbox or f"sandbox {self._last}", "owner", parsed, limits=limits or Limits())
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.owned.callback(ours.close)
        self.service.take(Enrol(self._last, grant))
        self.service.hand(self._last, theirs)
        return self._last, grant, ours

    def client(self, *rules: object, sandbox: str = "", limits: Limits | None = None) -> DialerClient:
        _, grant, ours = self.enrol(*rules, sandbox=sandbox, limits=limits)
        client = DialerClient(ours, grant.limits)
        self.owned.callback(client.close)
        return client

    def peer(self, *rules: object, limits: Limits | None = None) -> Peer:
        return Peer(self.enrol(*rules, limits=limits)[2])

    def allow_addresses(self, *, trusted: Iterable[str], denied: Iterable[str]) -> None:
        self.service.take(AddressPolicySpec(tuple(trusted), tuple(denied)))

    def dismiss(self, number: int) -> None:
        self.service.take(Dismiss(number))

    async def closed(self) -> Closed:
        async with asyncio.timeout(PATIENCE):
            return await self.heard.get()


@contextlib.asynccontextmanager
async def dialer(
    names: Names | None = None,
    *,
    trusted: Iterable[str] = LOOPBACK,
    denied: Iterable[str] = (),
    listeners: Iterable[tuple[str, int]] = (),
    own=None,
    stall_seconds: float = PATIENCE,
) -> AsyncIterator[World]:
    """A dialer; ``own`` is the kernel's word on its own addresses where the test has none."""
    heard: asyncio.Queue[Closed] = asyncio.Queue()
    names = names or Names()
    with contextlib.closing(Routes(open_netlink())) as routes:
        service = DialerService(own or routes.own, names, heard.put_nowait, stall_seconds=stall_seconds)
        try:
            async with service:
                service.take(AddressPolicySpec(tuple(trusted), tuple(denied), tuple(listeners)))
                world = World(service, heard)
                with world.owned:
                    yield world
        finally:
            for held in names.held.values():
                held.set()


async def refused(client: DialerClient, host: str, port: int) -> Denial:
    """Why a dial is refused."""
    try:
        async with asyncio.timeout(PATIENCE):
            dialed = await client.dial(host, port)
    except RefusedError as error:
        return error.refusal.denial
    dialed.socket.close()
    raise AssertionError(f"{host} was dialled at {dialed.address}")


async def reached(client: DialerClient, host: str, port: int) -> str:
    """The address at which a host is reached."""
    async with asyncio.timeout(PATIENCE):
        dialed = await client.dial(host, port)
    with dialed.socket:
        return dialed.address
