"""How control hands a child a descriptor: one packet of a SOCK_SEQPACKET pair, with a message beside it.

The same serves between children. Whatever arrives beside the one descriptor that is expected is closed.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from clawbox.children.channel import UNDECODABLE, ChannelClosedError, FrameError, described

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PACKET_BYTES: Final = 8 << 10
_INT_BYTES: Final = array.array("i").itemsize
_ROOM: Final = socket.CMSG_SPACE(8 * _INT_BYTES)
"""Enough to see that there are too many. What does not fit the kernel never makes into descriptors."""

_encoder = msgspec.msgpack.Encoder()

Message = TypeVar("Message")


def hand(to: socket.socket, message: object, descriptor: int) -> None:
    """Send one descriptor, of which the receiver gets a duplicate, and what it is. Never waits.

    Raises :class:`~clawbox.children.channel.ChannelClosedError` when the receiver is gone, and
    BlockingIOError when it has left so much unread that there is no room.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    try:
        to.sendmsg([_encoder.encode(message)], rights, flags)
    except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError) as error:
        raise ChannelClosedError from error


def receive_handed(
    descriptors: int, decoder: msgspec.msgpack.Decoder[Message], *, wait: bool = True
) -> tuple[Message, int] | None:
    """What was handed next, and the descriptor, close-on-exec; None when the other end is gone.

    ``descriptors`` is the receiver's end. Raises :class:`~clawbox.children.channel.FrameError` when the
    packet is none, or does not have exactly one descriptor, and without ``wait`` BlockingIOError when there
    is nothing.
    """
    # All three are named, so that no call has to ask the socket for them.
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=descriptors)
    try:
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        packet, ancillary, found, _ = end.recvmsg(MAX_PACKET_BYTES, _ROOM, flags)
    except ConnectionResetError:
        return None
    finally:
        end.detach()
    received = _descriptors(ancillary)
    if not packet and not received:
        return None
    try:
        return _decode(packet, found, len(received), decoder), received.pop()
    finally:
        for descriptor in received:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _decode(
    packet: bytes, found: int, descriptors: int, decoder: msgspec.msgpack.Decoder[Message]
) -> Message:
    if found & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise FrameError("a packet that is too large, or has more descriptors than there is room for")
    if descriptors != 1:
        raise FrameError(f"a packet with {descriptors} descriptors")
    try:
        return decoder.decode(packet)
    except UNDECODABLE as error:
        raise FrameError(described(error)) from error


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    received = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return received.tolist()
