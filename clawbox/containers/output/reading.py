"""Reading what is kept of a container's output: both streams by time, from where a caller wants to begin.

Nothing is kept for a reader but its place: it reads the files, and when it is slower than they go, a gap
tells it what it missed. All functions block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import Stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clawbox.containers.output.segments import Piece, StreamFiles

CHUNK_BYTES: Final = 64 << 10
"""Most bytes of one chunk."""
CHUNK_NS: Final = 10_000_000
"""Most nanoseconds between the first and the last byte of one chunk's pieces."""
_TRIES: Final = 4  # when files go while they are read; beyond that somebody else removed them


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that were written to a stream, without secrets."""

    stream: Stream
    data: bytes
    offset: int
    """How many such bytes of this stream came before these."""
    time_ns: int
    """When the engine received their first byte, since 1970; of what was held back, at the latest."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Output that is not kept any more, or never was."""

    stream: Stream
    offset: int
    """Of the first byte that is missing."""
    length: int
    """How many are; 0: unknown ones that never came, which no offset counts."""


@dataclass(frozen=True, slots=True)
class Oldest:
    """Begin at the oldest that is kept."""


@dataclass(frozen=True, slots=True)
class TailLines:
    """Begin so many lines of all wanted streams, by time, before the newest."""

    lines: int


@dataclass(frozen=True, slots=True)
class Since:
    """Begin with what was written at that time or later."""

    time_ns: int


@dataclass(frozen=True, slots=True)
class Offsets:
    """Begin behind what the caller has; an offset that was not reached yet is waited for."""

    stdout: int = 0
    stderr: int = 0


Begin = Oldest | TailLines | Since | Offsets


class Cursor:
    """A reader's place in one stream."""

    def __init__(self, stream: Stream, files: StreamFiles, offset: int, until: int | None = None) -> None:
        """``until``: the offset at which it ends; None: it goes on with what is appended."""
        self.stream = stream
        self.offset = offset
        self._files = files
        self._until = until
        self._segment = -1  # the start of the one that is read, or -1
        self._number = 0
        self._first = 0  # the number of the first of those that were read at once
        self._pieces: list[Piece] = []

    def peek(self) -> Piece | Gap | None:
        """What comes next; None: nothing (yet)."""
        for _ in range(_TRIES):
            try:
                return self._peek()
            except FileNotFoundError:
                self._segment = -1  # it went while it was read
        return None

    def passed(self, offset: int) -> None:
        """Everything before ``offset`` was told."""
        self.offset = offset

    def told(self) -> None:
        """The mark that is next was told."""
        self._number += 1

    def read(self, end: int) -> bytes:
        """The bytes up to ``end``. Raises FileNotFoundError when they went meanwhile."""
        data = self._files.range(self.offset, end)
        if len(data) != end - self.offset:
            raise FileNotFoundError
        return data

    def _peek(self) -> Piece | Gap | None:
        if self._until is not None and self.offset > self._until:
            return None
        for segment in self._files.segments:
            if segment.start > self.offset:
                return Gap(self.stream, self.offset, segment.start - self.offset)
            if segment.end < self.offset or (segment.end == self.offset and self._behind(segment.start)):
                continue
            if self._segment != segment.start:
                self._number = self._files.number_at(segment, self.offset) if segment.pieces else 0
                self._segment, self._pieces = segment.start, []
            piece = self._piece_of(segment.start)
            if piece is not None:
                return piece if piece.lost or self.offset != self._until else None
        return None

    def _behind(self, start: int) -> bool:
        """Whether there is a newer segment than the one that starts there."""
        return self._files.segments[-1].start > start

    def _piece_of(self, start: int) -> Piece | None:
        segment = next((one for one in self._files.segments if one.start == start), None)
        if segment is None:
            raise FileNotFoundError
        while self._number < segment.pieces:
            if not self._pieces or not self._first <= self._number < self._first + len(self._pieces):
                self._pieces, self._first = self._files.pieces(segment, self._number), self._number
            piece = self._pieces[self._number - self._first]
            if piece.end > self.offset or (piece.lost and piece.start >= self.offset):
                return piece
            self._number += 1
        return None


def take(cursors: Sequence[Cursor]) -> Chunk | Gap | None:
    """What comes next of some streams, by time; None: nothing (yet)."""
    for _ in range(_TRIES):
        following = [(cursor, piece) for cursor in cursors if (piece := cursor.peek()) is not None]
        if not following:
            return None
        for cursor, piece in following:
            if isinstance(piece, Gap):
                cursor.passed(piece.offset + piece.length)
                return piece
        pieces = [(cursor, piece) for cursor, piece in following if not isinstance(piece, Gap)]
        cursor, piece = min(pieces, key=lambda one: one[1].time_ns)
        if piece.lost:
            cursor.told()
            return Gap(cursor.stream, cursor.offset, 0)
        others = [other.time_ns for one, other in pieces if one is not cursor]
        try:
            return _chunk(cursor, piece, min(others, default=None))
        except FileNotFoundError:
            continue
    return None


def _chunk(cursor: Cursor, first: Piece, before_ns: int | None) -> Chunk:
    """The first piece, and those that follow it before ``before_ns``."""
    offset, end = cursor.offset, min(first.end, cursor.offset + CHUNK_BYTES)
    parts = [cursor.read(end)]
    cursor.passed(end)
    while end - offset < CHUNK_BYTES:
        piece = cursor.peek()
        if piece is None or isinstance(piece, Gap):
            break
        if piece.lost or piece.start != end or (before_ns is not None and piece.time_ns > before_ns):
            break
        if piece.end - offset > CHUNK_BYTES or piece.time_ns - first.time_ns > CHUNK_NS:
            break
        try:
            parts.append(cursor.read(piece.end))
        except FileNotFoundError:
            break
        end = piece.end
        cursor.passed(end)
    return Chunk(cursor.stream, b"".join(parts), offset, first.time_ns)


def begin(files: Mapping[Stream, StreamFiles], at: Begin, *, follow: bool) -> list[Cursor]:
    """Cursors of the wanted streams; without ``follow`` they end where the streams do now."""
    ends = {stream: one.end for stream, one in files.items()}
    match at:
        case Oldest():
            offsets = {stream: one.begin for stream, one in files.items()}
        case TailLines(lines):
            offsets = _tail(files, lines)
        case Since(time_ns):
            offsets = {stream: _since(one, time_ns) for stream, one in files.items()}
        case Offsets(stdout, stderr):
            wanted = {Stream.STDOUT: stdout, Stream.STDERR: stderr}
            offsets = {stream: wanted[stream] for stream in files}
    return [
        Cursor(stream, one, offsets[stream], None if follow else ends[stream])
        for stream, one in files.items()
    ]


def _since(files: StreamFiles, time_ns: int) -> int:
    for segment in files.segments:
        try:
            number = files.number_since(segment, time_ns)
            if number < segment.pieces:
                return files.pieces(segment, number)[0].start
        except FileNotFoundError:
            continue
    return files.end


def _tail(files: Mapping[Stream, StreamFiles], lines: int) -> dict[Stream, int]:
    """Where so many lines begin, the latest of all streams."""
    offsets = {stream: one.end for stream, one in files.items()}
    backwards = {stream: one.backwards() for stream, one in files.items()}
    latest = {stream: next(backwards[stream], None) for stream in files}
    while lines > 0 and any(latest.values()):
        stream, piece = max(
            ((stream, piece) for stream, piece in latest.items() if piece is not None),
            key=lambda one: one[1].time_ns,
        )
        starts = _line_starts(files[stream], piece, offsets[stream])
        if starts:
            offsets[stream] = starts[-min(lines, len(starts))]
            lines -= len(starts)
        latest[stream] = next(backwards[stream], None)
    return offsets


def _line_starts(files: StreamFiles, piece: Piece, end: int) -> list[int]:
    """Where lines begin in a piece, of what is before ``end``."""
    low, high = piece.start, min(piece.end, end)
    try:
        before = files.range(low - 1, low) if low > files.begin else b""
        data = files.range(low, high)
    except FileNotFoundError:
        return []
    starts = [low] if data and before in {b"", b"\n"} else []
    position = data.find(b"\n")
    while position >= 0 and low + position + 1 < high:
        starts.append(low + position + 1)
        position = data.find(b"\n", position + 1)
    return starts
