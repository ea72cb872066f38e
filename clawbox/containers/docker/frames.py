"""The engine's multiplexed streams: what a program writes, told apart. Pure.

Each frame begins with eight bytes: which stream, three zeros, and the length of what follows, big-endian
(Engine API, "Stream format" of ``POST /containers/ID/attach``).
"""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import EngineError, LogEntry, Stream
from clawbox.containers.docker.connection import not_understood

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER_BYTES: Final = 8
MAX_ENTRY_BYTES: Final = 4 << 20
"""Docker cuts entries at 16 KiB; others that speak its API cut later."""
PIECE_BYTES: Final = 16 << 10
"""Of a piece of a long line, but its last."""
_HEADER: Final = struct.Struct(">BxxxL")
_STREAMS: Final = {0: Stream.STDOUT, 1: Stream.STDOUT, 2: Stream.STDERR}
_SYSTEM_ERROR: Final = 3
_TIME: Final = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)


def read_header(header: bytes) -> tuple[Stream | None, int]:
    """Whose the next frame is, and how many bytes it has; None: it is the engine's own error.

    Raises :class:`EngineError` for bytes that are no header.
    """
    number, length = _HEADER.unpack(header)
    if number == _SYSTEM_ERROR:
        return None, length
    stream = _STREAMS.get(number)
    if stream is None or header[1:4] != b"\0\0\0":
        raise not_understood("what should be a frame of a stream is none")
    return stream, length


class LineEnds:
    """Gives long lines of a log the ends that Docker 20.10 does not tell, with the driver ``local``.

    A line is cut into pieces of :data:`PIECE_BYTES`, all with the time of the first. That version ends none
    of them, not even the last, so that the next line would go on where the long one was. The last is known
    by being shorter. What a program wrote last without a line end looks the same, if it is longer than one
    piece: it is given an end, too.
    """

    def __init__(self) -> None:
        self._within: dict[Stream, int] = {}

    def mended(self, entry: LogEntry) -> LogEntry:
        """The same, with the end that it had."""
        whole = entry.data.endswith(b"\n") or len(entry.data) > PIECE_BYTES
        if not whole and len(entry.data) == PIECE_BYTES:
            self._within[entry.stream] = entry.time_ns
            return entry
        begun_ns = self._within.pop(entry.stream, None)
        if whole or begun_ns != entry.time_ns:
            return entry
        return LogEntry(entry.stream, entry.time_ns, entry.data + b"\n")


class LogReader:
    """A log's bytes, cut wherever, to its entries. Holds at most one entry that is not whole."""

    def __init__(self, line_ends: LineEnds | None = None) -> None:
        self._rest = bytearray()
        self._clock = _Clock()
        self._line_ends = line_ends

    @property
    def within(self) -> bool:
        """Whether the bytes so far end within an entry."""
        return bool(self._rest)

    def feed(self, data: bytes) -> Iterator[LogEntry]:
        """Give it what came and take what is whole.

        Raises :class:`EngineError` for what is no log, and for the engine's own words that it cannot go on.
        """
        self._rest += data
        begin = 0
        try:
            while len(self._rest) - begin >= HEADER_BYTES:
                stream, length = read_header(bytes(self._rest[begin : begin + HEADER_BYTES]))
                if length > MAX_ENTRY_BYTES:
                    raise not_understood(f"an entry of {length} bytes")
                end = begin + HEADER_BYTES + length
                if end > len(self._rest):
                    break
                entry = bytes(self._rest[begin + HEADER_BYTES : end])
                begin = end
                if stream is None:
                    raise EngineError(500, entry.decode(errors="replace").strip())
                time, space, said = entry.partition(b" ")
                if not space:
                    raise not_understood("an entry of a log without its time")
                read = LogEntry(stream, self._clock.nanoseconds(time), said)
                yield read if self._line_ends is None else self._line_ends.mended(read)
        finally:
            del self._rest[:begin]


def nanoseconds(time: bytes) -> int | None:
    """Since 1970, of a time as RFC 3339 (section 5.6) writes it; None for the year 1, which is Go's "never".

    Raises :class:`EngineError` for anything else.
    """
    matched = _TIME.fullmatch(time)
    if matched is None:
        raise not_understood(f"{time[:40]!r} is no time")
    seconds, fraction, offset = matched.groups()
    if seconds.startswith(b"0001-"):
        return None
    at = datetime.fromisoformat((seconds + offset).decode()).astimezone(UTC)
    return round(at.timestamp()) * 1_000_000_000 + int((fraction or b"").ljust(9, b"0"))


class _Clock:
    """Reads times that mostly share their second."""

    def __init__(self) -> None:
        self._second = b""
        self._base = 0

    def nanoseconds(self, time: bytes) -> int:
        # 2026-01-02T03:04:05.123456789Z, which is how Docker writes all of them.
        if len(time) == 30 and time[19:20] == b"." and time[29:] == b"Z" and time[20:29].isdigit():
            if time[:19] != self._second:
                self._base = nanoseconds(time[:19] + b"Z") or 0
                self._second = time[:19]
            return self._base + int(time[20:29])
        return nanoseconds(time) or 0
