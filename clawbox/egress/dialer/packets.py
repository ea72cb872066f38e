"""One end of a SOCK_SEQPACKET pair on the event loop: messages, each a packet, some with a descriptor.

Neither end ever blocks on the other (docs/security.md, 63): a few packets are read at a turn, so that one
peer's many cannot keep others waiting, and what the socket does not take now is sent when it does.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox.egress.messages import MAX_PACKET_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

_PACKETS_AT_A_TURN = 16
_INT = struct.Struct("=i")


class PacketError(Exception):
    """What arrived is no message that the receiver accepts; the socket is closed."""


class End(enum.Enum):
    """Why a packet socket came to its end."""

    GONE = "gone"
    BROKEN = "broken"
    STALLED = "stalled"


@dataclass(frozen=True, slots=True)
class _Outgoing:
    packet: bytes
    attached: socket.socket | None
    instead: bytes
    sent: Callable[[], None] | None


class PacketSocket:
    """Owns ``sock`` until closed.

    ``received`` is called with each packet and its descriptor, which it then owns; it may raise
    :class:`PacketError`. Descriptors are taken only with ``descriptors``, and one for which this process has
    no room is None. ``ended`` is called once, unless :meth:`close` came first. ``stall_seconds``: how long
    a packet may wait for the peer to read.
    """

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[bytes, int | None], None],
        ended: Callable[[End], None],
        *,
        descriptors: bool,
        stall_seconds: float | None = None,
    ) -> None:
        sock.setblocking(False)  # noqa: FBT003
        self._sock = sock
        self._received = received
        self._ended = ended
        self._room = socket.CMSG_LEN(_INT.size) if descriptors else 0
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._outgoing: dict[int, _Outgoing] = {}
        self._writing = False
        self._stall: asyncio.TimerHandle | None = None
        self._open = True
        self._loop.add_reader(sock.fileno(), self._read)

    def send(
        self,
        key: int,
        packet: bytes,
        attached: socket.socket | None = None,
        *,
        instead: bytes = b"",
        sent: Callable[[], None] | None = None,
    ) -> None:
        """Queue a packet under a key that no waiting packet has; ``attached`` goes along and is closed here.

        ``instead`` is sent alone where the kernel holds too many unread descriptors already. ``sent`` is
        called once the kernel has the packet.
        """
        if not self._open:
            if attached is not None:
                attached.close()
            return
        self._outgoing[key] = _Outgoing(packet, attached, instead, sent)
        if not self._writing:
            self._write()

    def withdraw(self, key: int) -> bool:
        """Whether the packet was still waiting; then it is not sent."""
        waiting = self._outgoing.pop(key, None)
        if waiting is not None and waiting.attached is not None:
            waiting.attached.close()
        return waiting is not None

    def close(self) -> None:
        """Close now; what waits is not sent."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock.fileno())
        self._stop_writing()
        for key in list(self._outgoing):
            self.withdraw(key)
        self._sock.close()

    def _end(self, why: End) -> None:
        if self._open:
            self.close()
            self._ended(why)

    def _read(self) -> None:
        for _ in range(_PACKETS_AT_A_TURN):
            if not self._open:
                return
            try:
                # Not recv_fds, which leaves out the flags that it is given (Python 3.11).
                packet, ancillary, flags, _ = self._sock.recvmsg(
                    MAX_PACKET_BYTES, self._room, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._end(End.GONE)
                return
            # There is room for one, and beside a packet one message of them at most.
            descriptor = _INT.unpack(ancillary[0][2][: _INT.size])[0] if ancillary else None
            cut = flags & socket.MSG_TRUNC or (flags & socket.MSG_CTRUNC and not self._room)
            if not packet or cut:
                if descriptor is not None:
                    os.close(descriptor)
                self._end(End.BROKEN if packet else End.GONE)
                return
            try:
                self._received(packet, descriptor)
            except PacketError:
                self._end(End.BROKEN)

    def _write(self) -> None:
        while self._outgoing:
            key, waiting = next(iter(self._outgoing.items()))
            try:
                self._send(waiting)
            except (BlockingIOError, InterruptedError):
                self._wait_to_write()
                return
            except OSError:
                self._end(End.GONE)
                return
            self.withdraw(key)
            if self._stall is not None:
                self._stall.cancel()
                self._stall = None
            if waiting.sent is not None:
                waiting.sent()
        self._stop_writing()

    def _send(self, waiting: _Outgoing) -> None:
        if waiting.attached is None:
            self._sock.send(waiting.packet)
            return
        try:
            socket.send_fds(self._sock, [waiting.packet], [waiting.attached.fileno()])
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            self._sock.send(waiting.instead)

    def _wait_to_write(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._write)
        if self._stall is None and self._stall_seconds is not None:
            self._stall = self._loop.call_later(self._stall_seconds, self._end, End.STALLED)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
