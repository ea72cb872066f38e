"""Messages between control and a child: msgpack behind a length of four bytes, decoded into declared types.

Control never trusts what a child sends: a frame has a largest size that the receiver sets, only declared
types come out of it, and whatever breaks that is a :class:`FrameError`, after which the child is killed.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER_BYTES = 4

_encoder = msgspec.msgpack.Encoder()

Message = TypeVar("Message")


class FrameError(Exception):
    """What arrived is no frame that the receiver accepts: too large, or not of a declared type."""


class ChannelClosedError(Exception):
    """The other end is gone."""


UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no message; the last for lists in lists in lists."""
_DESCRIBED: Final = 200


def described(error: Exception) -> str:
    """What is wrong with a message, for the log: it may quote what a child sent, so it is cut and escaped."""
    return ascii(f"{error}"[:_DESCRIBED])[1:-1]


def encode_frame(message: object) -> bytearray:
    """The bytes of one frame: the length of the payload, big-endian, then the payload."""
    frame = bytearray(HEADER_BYTES)
    _encoder.encode_into(message, frame, HEADER_BYTES)
    frame[:HEADER_BYTES] = (len(frame) - HEADER_BYTES).to_bytes(HEADER_BYTES, "big")
    return frame


class FrameReader:
    """Cuts a stream of bytes into payloads of frames; holds at most one unfinished frame."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        """Largest payload that is accepted; may be changed between frames."""
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete once ``data`` arrived. Raises :class:`FrameError`."""
        if not self._pending and len(data) >= HEADER_BYTES:
            # The usual case by far: exactly one frame.
            size = int.from_bytes(data[:HEADER_BYTES], "big")
            if size == len(data) - HEADER_BYTES and size <= self.max_bytes:
                return [data[HEADER_BYTES:]]
        pending = self._pending
        pending += data
        payloads: list[bytes] = []
        start = 0
        while len(pending) - start >= HEADER_BYTES:
            size = int.from_bytes(pending[start : start + HEADER_BYTES], "big")
            if size > self.max_bytes:
                raise FrameError(f"a frame of {size} bytes, where {self.max_bytes} are accepted")
            end = start + HEADER_BYTES + size
            if end > len(pending):
                break
            payloads.append(bytes(pending[start + HEADER_BYTES : end]))
            start = end
        del pending[:start]
        return payloads


class FrameProtocol(asyncio.Protocol, Generic[Message]):
    """Control's end of a channel.

    ``on_message`` is called for each decoded message, in order. ``on_broken`` is called once, when the
    channel ended or the child broke the protocol (then with the :class:`FrameError`); no message follows.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Message],
        on_message: Callable[[Message], None],
        on_broken: Callable[[Exception | None], None],
        *,
        max_bytes: int,
    ) -> None:
        self._decode = decoder.decode
        self._on_message = on_message
        self._on_broken = on_broken
        self._reader = FrameReader(max_bytes)
        self._transport: asyncio.Transport | None = None
        self._broken = False

    @property
    def connected(self) -> bool:
        """Whether the channel was ever opened."""
        return self._transport is not None

    def limit(self, max_bytes: int) -> None:
        """Accept payloads of at most ``max_bytes`` from now on."""
        self._reader.max_bytes = max_bytes

    def send(self, message: object) -> None:
        """Queue one message. What a closed channel is given is lost; ``on_broken`` says so."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def close(self) -> None:
        """Close without a further call-back."""
        self._broken = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio)."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclasses

    def data_received(self, data: bytes) -> None:
        """Cut, decode and deliver what arrived (asyncio)."""
        if self._broken:
            return
        try:
            for payload in self._reader.feed(data):
                if not self._broken:
                    self._on_message(self._decode(payload))
        except (FrameError, *UNDECODABLE) as error:
            self._break(error if isinstance(error, FrameError) else FrameError(described(error)))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The child closed its end, or it died (asyncio)."""
        self._break(None)

    def _break(self, error: FrameError | None) -> None:
        if self._broken:
            return
        self.close()
        self._on_broken(error)


class BlockingChannel(Generic[Message]):
    """A child's end of a channel: plain reads and writes on one descriptor.

    Only ``read`` and ``write`` are used, so that a child needs no socket call at all.
    """

    def __init__(self, descriptor: int, decoder: msgspec.msgpack.Decoder[Message], *, max_bytes: int) -> None:
        self._descriptor = descriptor
        self._decode = decoder.decode
        self._max_bytes = max_bytes

    def receive(self) -> Message:
        """The next message. Raises :class:`ChannelClosedError` at the end, :class:`FrameError`."""
        size = int.from_bytes(self._read_exactly(HEADER_BYTES), "big")
        if size > self._max_bytes:
            raise FrameError(f"a frame of {size} bytes, where {self._max_bytes} are accepted")
        try:
            return self._decode(self._read_exactly(size))
        except UNDECODABLE as error:
            raise FrameError(described(error)) from error

    def send(self, message: object) -> None:
        """Write one message, whole. Raises :class:`ChannelClosedError`."""
        view = memoryview(encode_frame(message))
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosedError from error

    def _read_exactly(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) == size:
            return data
        parts = [data]
        missing = size - len(data)
        while missing:
            data = self._read(min(missing, 1 << 20))
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        if not size:
            return b""
        try:
            data = os.read(self._descriptor, size)
        except ConnectionResetError as error:
            raise ChannelClosedError from error
        if not data:
            raise ChannelClosedError
        return data
