"""Up to where the log of a container was kept: what the next process goes on from.

It is written after the bytes that it tells of, in two places by turns, each with a checksum, so that whatever
instant this process dies at, one of the two is whole and tells of no byte that is not there.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.containers.output.place import LogPlace

if TYPE_CHECKING:
    from pathlib import Path

_SLOT_BYTES: Final = 16 << 10
_HEAD: Final = struct.Struct("<II")


class StreamPoint(msgspec.Struct, frozen=True):
    """One stream at a point at which nothing of it was held back, behind a line end."""

    offset: int = 0
    """Bytes that were kept up to there, cleaned."""
    place: LogPlace = LogPlace()
    found: tuple[tuple[str, str, int], ...] = ()
    """Pattern, action and count of what was found up to there."""
    lost: bool = False
    """Whether something before it is missing that was never kept."""


class Checkpoint(msgspec.Struct, frozen=True):
    """Both streams, and whether they are over."""

    sequence: int = 0
    stdout: StreamPoint = StreamPoint()
    stderr: StreamPoint = StreamPoint()
    max_output_bytes: int = 0
    ended: bool = False
    """Nothing comes any more."""
    unclean: bool = False
    """What came last could not be cleaned of secrets, and was not kept."""

    def over(self) -> Checkpoint:
        """The same, and nothing comes any more."""
        return msgspec.structs.replace(self, ended=True)


_decoder = msgspec.msgpack.Decoder(Checkpoint)


def read(path: Path) -> Checkpoint | None:
    """The latest that was written; None: none was. Blocks."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    found = [one for slot in range(2) if (one := _decode(data[slot * _SLOT_BYTES :])) is not None]
    return max(found, key=lambda one: one.sequence, default=None)


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write one whose sequence is one more than the one before. Blocks; raises OSError."""
    body = msgspec.msgpack.encode(checkpoint)
    data = _HEAD.pack(len(body), zlib.crc32(body)) + body
    if len(data) > _SLOT_BYTES:
        raise OSError(f"a checkpoint of {len(data)} bytes")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, data, checkpoint.sequence % 2 * _SLOT_BYTES)
    finally:
        os.close(descriptor)


def _decode(slot: bytes) -> Checkpoint | None:
    if len(slot) < _HEAD.size:
        return None
    size, checksum = _HEAD.unpack_from(slot)
    body = slot[_HEAD.size : _HEAD.size + size]
    if len(body) != size or zlib.crc32(body) != checksum:
        return None
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError:
        return None
