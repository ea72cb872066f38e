"""How many messages a request consists of, counted before it is decoded (docs/security.md, 95).

Entries of maps and other messages within messages cost the decoder far more than their bytes say, and it
runs on the event loop and keeps the GIL: 8 MiB of map entries took 2.4 s. Here the bytes are walked by the
request's schema (protobuf.dev, "Encoding"), which a thread can do beside the loop, and only up to the limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from clawbox.errors import ClawboxError, Reason
from clawbox.json_text import MAX_NODES

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

UNCOUNTED_BYTES: Final = 256 << 10
"""A request up to this size is not counted: what it can hold is decoded in some 10 ms."""
MAX_ENTRIES: Final = MAX_NODES
"""Entries of maps in one request: no object of parameters may have more."""
MAX_MESSAGES: Final = 4 * MAX_NODES
"""Messages in one request: each value of parameters is in up to three."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Shape(NamedTuple):
    is_entry: bool
    fields: dict[int, _Shape]
    """The messages in it, by field number."""


class RequestShape:
    """The messages that requests of one type are made of."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._shape = _shape(descriptor, {})

    def check(self, raw: bytes) -> None:
        """Raise MESSAGE_TOO_LARGE for a request of too many messages.

        What is no protobuf ends the count: the decoder says what is wrong with it.
        """
        try:
            self._count(raw)
        except IndexError:
            return

    def _count(self, raw: bytes) -> None:
        entries = messages = at = 0
        shape, end = self._shape, len(raw)
        above: list[tuple[_Shape, int]] = []
        while True:
            while at >= end:
                if not above:
                    return
                shape, end = above.pop()
            tag, at = _varint(raw, at)
            kind = tag & 7
            if kind == _BYTES:
                size, at = _varint(raw, at)
                inner = shape.fields.get(tag >> 3)
                if inner is not None:
                    messages += 1
                    entries += inner.is_entry
                    if entries > MAX_ENTRIES:
                        raise _too_many("entries of maps", MAX_ENTRIES)
                    if messages > MAX_MESSAGES:
                        raise _too_many("messages", MAX_MESSAGES)
                    if inner.fields:
                        above.append((shape, end))
                        shape, end = inner, at + size
                        continue
                at += size
            elif kind == _VARINT:
                _, at = _varint(raw, at)
            elif kind == _FIXED64:
                at += 8
            elif kind == _FIXED32:
                at += 4
            else:  # groups, which no request of ours has
                return


def _shape(descriptor: Descriptor, known: dict[str, _Shape]) -> _Shape:
    if (found := known.get(descriptor.full_name)) is not None:
        return found
    made = known[descriptor.full_name] = _Shape(descriptor.GetOptions().map_entry, {})
    for field in descriptor.fields:
        if field.message_type is not None:
            made.fields[field.number] = _shape(field.message_type, known)
    return made


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number and where the next begins. Raises IndexError at the end, and for more than ten bytes."""
    byte = raw[at]
    if byte < 0x80:
        return byte, at + 1
    number, shift = byte & 0x7F, 7
    for at in range(at + 1, at + 10):  # noqa: B020, PLR1704
        byte = raw[at]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at + 1
        shift += 7
    raise IndexError


def _too_many(what: str, most: int) -> ClawboxError:
    return ClawboxError(
        Reason.MESSAGE_TOO_LARGE, "the request has more than {limit} {what}", what=what, limit=most
    )
