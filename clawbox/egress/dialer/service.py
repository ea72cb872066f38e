"""The peers of the dialer: who may ask, for what, and how much at once (docs/security.md, 63)."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import TYPE_CHECKING, Self

import msgspec

from clawbox.children.channel import UNDECODABLE
from clawbox.egress import messages
from clawbox.egress.addresses import AddressPolicy
from clawbox.egress.dialer.connector import Connector
from clawbox.egress.dialer.messages import (
    AddressPolicySpec,
    Closed,
    Dismiss,
    Enrol,
    ToDialer,
    Why,
    dials_at_once,
)
from clawbox.egress.dialer.packets import End, PacketError, PacketSocket
from clawbox.egress.dialer.resolver import Lookup, Resolvers
from clawbox.egress.refusal import Denial, Refusal, RefusedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from types import TracebackType

    from clawbox.egress.addresses import Address
    from clawbox.egress.dialer.resolver import Resolver

STALL_SECONDS = 10.0
"""How long an answer may wait for its peer to read."""
_MAX_DETAIL = 300
_WHY = {End.GONE: Why.GONE, End.BROKEN: Why.MALFORMED, End.STALLED: Why.STALLED}

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode


class DialerService:
    """Serves its peers while entered; leaving ends all that is under way.

    ``own`` says which of some addresses are this machine's, ``lookup`` what a name's addresses are, and
    ``closed`` is told of each peer that is served no longer though nobody dismissed it.
    """

    def __init__(
        self,
        own: Callable[[Iterable[Address]], frozenset[Address]],
        lookup: Lookup,
        closed: Callable[[Closed], None],
        *,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._own = own
        self._closed = closed
        self._stall_seconds = stall_seconds
        self._connector: Connector | None = None
        self._resolvers = Resolvers(lookup)
        self._tasks = asyncio.TaskGroup()
        self._peers: dict[int, _Peer] = {}
        self._enrolled: dict[int, messages.Grant] = {}  # their sockets are still to come
        self._arrived: dict[int, socket.socket] = {}  # their grants are still to come
        self._dismissed: set[int] = set()  # their sockets are still to come, to be closed

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in [*self._peers, *self._arrived]:
            self._dismiss(number)
        await self._tasks.__aexit__(kind, error, trace)

    def take(self, message: ToDialer) -> None:
        """Do what control says."""
        match message:
            case AddressPolicySpec():
                self._connector = Connector(policy_of(message), self._own)
            case Enrol(number=number, grant=grant):
                self._enrolled[number] = grant
                self._join(number)
            case Dismiss(number=number):
                self._dismiss(number)

    def hand(self, number: int, sock: socket.socket) -> None:
        """Take the dialer's end of the pair with the peer of that number."""
        if number in self._dismissed:
            self._dismissed.remove(number)
            sock.close()
            return
        self._arrived[number] = sock
        self._join(number)

    def _join(self, number: int) -> None:
        if number in self._enrolled and number in self._arrived:
            grant, sock = self._enrolled.pop(number), self._arrived.pop(number)
            resolver = self._resolvers.take(grant.sandbox)

            def dial(host: str, port: int) -> Coroutine[None, None, tuple[socket.socket, Address]]:
                return self._dial(host, port, grant, resolver)

            self._peers[number] = _Peer(
                sock,
                grant,
                dial,
                self._tasks,
                lost=lambda why: self._lost(number, why),
                stall_seconds=self._stall_seconds,
            )

    async def _dial(
        self, host: str, port: int, grant: messages.Grant, resolver: Resolver
    ) -> tuple[socket.socket, Address]:
        if self._connector is None:
            raise RefusedError(Denial.INTERNAL, "the dialer knows no address policy yet")
        return await self._connector.dial(host, port, grant, resolver)

    def _dismiss(self, number: int) -> None:
        peer = self._peers.pop(number, None)
        if peer is not None:
            peer.close()
            self._resolvers.give_back(peer.grant.sandbox)
        elif number in self._arrived:
            self._arrived.pop(number).close()
        elif self._enrolled.pop(number, None) is not None:
            self._dismissed.add(number)

    def _lost(self, number: int, why: Why) -> None:
        self._dismiss(number)
        self._closed(Closed(number, why))


class _Peer:
    """One sidecar. A dial is under way until the kernel has its answer, so that answers are bounded too."""

    def __init__(
        self,
        sock: socket.socket,
        grant: messages.Grant,
        dial: Callable[[str, int], Awaitable[tuple[socket.socket, Address]]],
        tasks: asyncio.TaskGroup,
        *,
        lost: Callable[[Why], None],
        stall_seconds: float,
    ) -> None:
        self.grant = grant
        self._dial = dial
        self._lost = lost
        self._tasks = tasks
        self._most = dials_at_once(grant.limits)
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._flooded = False
        self._packets = PacketSocket(
            sock, self._received, self._ended, descriptors=False, stall_seconds=stall_seconds
        )

    def close(self) -> None:
        """End what is under way."""
        self._packets.close()
        for task in self._under_way.values():
            task.cancel()
        self._under_way.clear()

    def _received(self, packet: bytes, _: int | None) -> None:
        try:
            message = _decoder.decode(packet)
        except UNDECODABLE:
            raise PacketError from None
        number = message.id
        match message:
            case messages.Dial(host=host, port=port):
                if number in self._under_way:
                    raise PacketError
                if len(self._under_way) >= self._most:
                    self._flooded = True
                    raise PacketError
                self._under_way[number] = self._tasks.create_task(self._serve(number, host, port))
            case messages.Hang():
                task = self._under_way.pop(number, None)
                if task is not None:
                    task.cancel()
                    self._packets.withdraw(number)

    async def _serve(self, number: int, host: str, port: int) -> None:
        try:
            connection, address = await self._dial(host, port)
        except RefusedError as error:
            self._refuse(number, error.refusal)
        except Exception:  # noqa: BLE001 - it may be of any kind
            # One dial's failure must not end every sandbox's way out.
            _log.exception("a dial failed")
            self._refuse(number, Refusal(Denial.INTERNAL))
        else:
            self._answer(
                number,
                messages.Dialed(number, str(address)),
                connection,
                Refusal(Denial.CONNECT_FAILED, "too many connections were handed over and not taken"),
            )

    def _refuse(self, number: int, refusal: Refusal) -> None:
        self._answer(number, _not_dialed(number, refusal))

    def _answer(
        self,
        number: int,
        answer: messages.FromDialer,
        connection: socket.socket | None = None,
        otherwise: Refusal | None = None,
    ) -> None:
        self._packets.send(
            number,
            _encode(answer),
            connection,
            instead=_encode(_not_dialed(number, otherwise)) if otherwise is not None else b"",
            sent=lambda: self._answered(number),
        )

    def _answered(self, number: int) -> None:
        del self._under_way[number]

    def _ended(self, end: End) -> None:
        self._lost(Why.FLOODED if self._flooded else _WHY[end])


_decoder: msgspec.msgpack.Decoder[messages.ToDialer] = msgspec.msgpack.Decoder(messages.ToDialer)


def _not_dialed(number: int, refusal: Refusal) -> messages.NotDialed:
    return messages.NotDialed(number, refusal.denial.name, refusal.detail[:_MAX_DETAIL])


def policy_of(spec: AddressPolicySpec) -> AddressPolicy:
    """The policy that control's message says. Raises ValueError for what is no address."""
    return AddressPolicy(
        trusted=tuple(map(ipaddress.ip_network, spec.trusted)),
        denied=tuple(map(ipaddress.ip_network, spec.denied)),
        listeners=frozenset((ipaddress.ip_address(address), port) for address, port in spec.listeners),
    )
