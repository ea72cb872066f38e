"""A sidecar's side of the dialer: asks over a packet socket and gets connected sockets.

It makes no socket and names no address: a descriptor comes from the dialer, connected.
"""

from __future__ import annotations

import asyncio
import os
import socket

import msgspec

from clawbox.egress import messages
from clawbox.egress.dialer.messages import dials_at_once
from clawbox.egress.dialer.packets import End, PacketError, PacketSocket
from clawbox.egress.proxy.ports import Dialed
from clawbox.egress.refusal import Denial, RefusedError

_GONE = "the dialer is gone"


class DialerClient:
    """Implements ``clawbox.egress.proxy.ports.Dialer`` over ``sock``, which it owns.

    ``limits`` are the grant's. When the dialer's end closes, waiting and further dials fail, until
    :meth:`replace` brings the socket of another.
    """

    def __init__(self, sock: socket.socket, limits: messages.Limits) -> None:
        self._room = asyncio.Semaphore(dials_at_once(limits))
        self._waiting: dict[int, asyncio.Future[Dialed]] = {}
        self._last = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder: msgspec.msgpack.Decoder[messages.FromDialer] = msgspec.msgpack.Decoder(
            messages.FromDialer
        )
        self._peer: PacketSocket | None = None
        self.replace(sock)

    async def dial(self, host: str, port: int) -> Dialed:
        """A connection to a host as ``network_rules.canonical_host`` writes it. Raises RefusedError."""
        async with self._room:
            if self._peer is None:
                raise RefusedError(Denial.CONNECT_FAILED, _GONE)
            peer = self._peer
            self._last += 1
            number = self._last
            answer: asyncio.Future[Dialed] = asyncio.get_running_loop().create_future()
            self._waiting[number] = answer
            peer.send(number, self._encode(messages.Dial(number, host, port)))
            try:
                return await answer
            except asyncio.CancelledError:
                self._forsake(peer, number, answer)
                raise
            finally:
                self._waiting.pop(number, None)

    def replace(self, sock: socket.socket) -> None:
        """Ask at ``sock`` from now on; what waits for the former dialer fails."""
        self.close()
        self._peer = PacketSocket(sock, self._received, self._ended, descriptors=True)

    def close(self) -> None:
        """Fail what waits, and close the socket."""
        if self._peer is not None:
            self._peer.close()
            self._ended(End.GONE)

    def _forsake(self, peer: PacketSocket, number: int, answer: asyncio.Future[Dialed]) -> None:
        """Nobody waits for the answer any more, which may have come this very moment."""
        if answer.done() and not answer.cancelled():
            if answer.exception() is None:
                answer.result().socket.close()
        elif not peer.withdraw(number):
            peer.send(-number, self._encode(messages.Hang(number)))

    def _received(self, packet: bytes, descriptor: int | None) -> None:
        try:
            answer = self._decoder.decode(packet)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if descriptor is not None:
                os.close(descriptor)
            raise PacketError from None
        connection = None
        if descriptor is not None:
            # All is said, so that nothing has to be asked of the kernel.
            connection = socket.socket(
                _family(answer), socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=descriptor
            )
        waiting = self._waiting.pop(answer.id, None)
        if waiting is None or waiting.done():
            if connection is not None:
                connection.close()
            return
        match answer:
            case messages.Dialed(address=address) if connection is not None:
                connection.setblocking(False)  # noqa: FBT003
                waiting.set_result(Dialed(connection, address))
            case messages.Dialed():
                waiting.set_exception(RefusedError(Denial.CONNECT_FAILED, "no descriptor is left"))
            case messages.NotDialed(denial=name, detail=detail):
                if connection is not None:
                    connection.close()
                waiting.set_exception(RefusedError(_DENIALS.get(name, Denial.INTERNAL), detail))

    def _ended(self, _: End) -> None:
        self._peer = None
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(RefusedError(Denial.CONNECT_FAILED, _GONE))


def _family(answer: messages.FromDialer) -> socket.AddressFamily:
    ipv6 = isinstance(answer, messages.Dialed) and ":" in answer.address
    return socket.AF_INET6 if ipv6 else socket.AF_INET


_DENIALS = {denial.name: denial for denial in Denial}
