"""One stream of a container's cleaned output in files of bounded size.

A stream is some segments, each named by the offset of its first byte; the oldest goes when there are too
many. Beside each lies an index: 16 bytes for each piece that was appended, where it begins and when it was
written. A piece's index entry is written before its bytes, so that after the death of this process at any
instant each byte has an entry and an entry without bytes is known. All functions block.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SEGMENTS: Final = 4
"""Files that are kept of a stream."""
SEGMENT_BYTES: Final = 4 << 20
"""Bytes after which the next file begins, at least."""
SEGMENT_PIECES: Final = 1 << 17
"""Pieces after which the next file begins: an index never has more than 2 MiB."""
PIECE_BYTES: Final = 64 << 10
"""Most bytes of one piece."""

_ENTRY: Final = struct.Struct("<QQ")
_BLOCK: Final = 512


def segment_bytes(max_output_bytes: int) -> int:
    """How large segments are where twice ``max_output_bytes`` must be kept, the oldest having just gone."""
    return max(SEGMENT_BYTES, -(-2 * max_output_bytes // (SEGMENTS - 1)))


class Piece(NamedTuple):
    """Bytes that were appended at once, or the mark of unknown ones that never came."""

    start: int
    end: int
    time_ns: int
    lost: bool
    """Before ``start`` something is missing, nobody knows how much; there are no bytes."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One file, as far as it was written when this was made."""

    start: int
    size: int
    pieces: int

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.start + self.size


class StreamFiles:
    """The files of one stream. One thread at a time appends; any number read what was there."""

    def __init__(self, folder: Path, name: str, segment_bytes: int) -> None:
        self._folder = folder
        self._name = name
        self._segment_bytes = segment_bytes
        self._time_ns = 0
        self.segments: tuple[Segment, ...] = ()
        """Oldest first; replaced as a whole, after what it says is in the files."""

    @property
    def begin(self) -> int:
        """The offset of the oldest byte that is kept."""
        return self.segments[0].start if self.segments else 0

    @property
    def end(self) -> int:
        """How many bytes the stream has."""
        return self.segments[-1].end if self.segments else 0

    # Writing

    def load(self) -> None:
        """Take up what an earlier process left, and mend what it was in the middle of."""
        starts = sorted(_starts(self._folder, self._name, "data"))
        for orphan in _starts(self._folder, self._name, "index") - set(starts):
            self._path(orphan, "index").unlink()
        segments = []
        for start in starts:
            size = self._path(start, "data").stat().st_size
            index = self._path(start, "index")
            entries = index.stat().st_size // _ENTRY.size if index.exists() else 0
            if entries or start == starts[-1]:
                segments.append(Segment(start, size, entries))
        if segments:
            segments[-1] = self._mend(segments[-1])
        self.segments = tuple(segments)

    def append(self, data: bytes, time_ns: int) -> None:
        """Write bytes that were received at ``time_ns``. Raises OSError; then some of it may be there."""
        self._time_ns = time_ns = max(time_ns, self._time_ns)
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            segment = self._current()
            try:
                self._write(segment.start, "index", _ENTRY.pack(segment.end, time_ns << 1))
                self._write(segment.start, "data", piece)
            except OSError:
                self.load()  # some may have been written
                raise
            self._replace(replace(segment, size=segment.size + len(piece), pieces=segment.pieces + 1))

    def mark_lost(self, time_ns: int) -> None:
        """Write down that something is missing here. Raises OSError."""
        segment = self._current()
        time_ns = max(time_ns, self._time_ns)
        self._write(segment.start, "index", _ENTRY.pack(segment.end, time_ns << 1 | 1))
        self._replace(replace(segment, pieces=segment.pieces + 1))

    def begin_at(self, offset: int) -> None:
        """Go on at an offset behind the end: bytes that were counted are not in the files any more."""
        self._begin_segment(offset)

    def _current(self) -> Segment:
        """The segment to append to."""
        last = self.segments[-1] if self.segments else None
        if last is None or last.size >= self._segment_bytes or last.pieces >= SEGMENT_PIECES:
            return self._begin_segment(self.end)
        return last

    def _begin_segment(self, start: int) -> Segment:
        self._write(start, "index", b"")
        self._write(start, "data", b"")
        segment = Segment(start, 0, 0)
        kept = (*self.segments, segment)
        self.segments = kept[-SEGMENTS:]
        for old in kept[:-SEGMENTS]:
            for kind in ("data", "index"):
                with contextlib.suppress(FileNotFoundError):
                    self._path(old.start, kind).unlink()
        return segment

    def _replace(self, segment: Segment) -> None:
        self.segments = (*self.segments[:-1], segment)

    def _mend(self, last: Segment) -> Segment:
        """Drop index entries that have no bytes, as the last one may not have, or that make no sense."""
        path = self._path(last.start, "index")
        index = path.read_bytes() if path.exists() else b""
        good, position = 0, last.start
        whole = len(index) - len(index) % _ENTRY.size
        for start, word in _ENTRY.iter_unpack(index[:whole]):
            lost = bool(word & 1)
            if start < position or start > last.end or (start == last.end and not lost):
                break
            if good == 0 and start != last.start:
                break
            good, position = good + 1, start
            self._time_ns = max(self._time_ns, word >> 1)
        os.truncate(path, good * _ENTRY.size) if path.exists() else None
        if last.size and not good:
            self._write(last.start, "index", _ENTRY.pack(last.start, self._time_ns << 1))
            good = 1
        return replace(last, pieces=good)

    def _write(self, start: int, kind: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path(start, kind), flags, 0o600)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)

    def _path(self, start: int, kind: str) -> Path:
        return self._folder / f"{self._name}-{start:020}.{kind}"

    # Reading

    def range(self, start: int, end: int) -> bytes:
        """What is kept of ``[start, end)``. Raises FileNotFoundError when a file went meanwhile."""
        parts = []
        for segment in self.segments:
            low, high = max(start, segment.start), min(end, segment.end)
            if low < high:
                parts.append(self._read(segment.start, "data", low - segment.start, high - low))
        return b"".join(parts)

    def pieces(self, segment: Segment, first: int) -> list[Piece]:
        """Some pieces of a segment from number ``first`` on. Raises FileNotFoundError when it went."""
        count = min(segment.pieces - first, _BLOCK)
        if count <= 0:
            return []
        more = first + count < segment.pieces
        entries = self._entries(segment.start, first, count + more)
        starts = [start for start, _ in entries]
        ends = [*starts[1:], segment.end][:count]
        return [
            Piece(start, end, word >> 1, lost=bool(word & 1))
            for (start, word), end in zip(entries[:count], ends, strict=True)
        ]

    def number_at(self, segment: Segment, offset: int) -> int:
        """The number of the first piece that has, or comes after, the byte at ``offset``."""
        view = _Index(lambda number: self._entries(segment.start, number, 1)[0][0], segment.pieces)
        number = bisect.bisect_left(view, offset)
        if number < segment.pieces and view[number] == offset:
            return number
        return max(number - 1, 0)

    def number_since(self, segment: Segment, time_ns: int) -> int:
        """The number of the first piece that was received at ``time_ns`` or later."""
        view = _Index(lambda number: self._entries(segment.start, number, 1)[0][1] >> 1, segment.pieces)
        return bisect.bisect_left(view, time_ns)

    def backwards(self) -> Iterator[Piece]:
        """Every piece that is kept, the newest first; ends early where a file went meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            for segment in reversed(self.segments):
                for first in range(0, segment.pieces, _BLOCK)[::-1]:
                    yield from reversed(self.pieces(segment, first))

    def _entries(self, start: int, first: int, count: int) -> list[tuple[int, int]]:
        data = self._read(start, "index", first * _ENTRY.size, count * _ENTRY.size)
        return list(_ENTRY.iter_unpack(data))

    def _read(self, start: int, kind: str, position: int, size: int) -> bytes:
        descriptor = os.open(self._path(start, kind), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, size, position)
        finally:
            os.close(descriptor)


class _Index:
    """What bisect looks at: one number of each entry of an index."""

    def __init__(self, number: Callable[[int], int], size: int) -> None:
        self._number = number
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: int) -> int:
        return self._number(number)


def _starts(folder: Path, name: str, kind: str) -> set[int]:
    return {int(path.stem.removeprefix(f"{name}-")) for path in folder.glob(f"{name}-{'[0-9]' * 20}.{kind}")}
