"""The newest output of one stream, by absolute offsets. No I/O."""

from __future__ import annotations

from typing import Final

BUFFER_BYTES: Final = 1 << 20
"""Kept of each stream, for a caller that attaches again."""
PIECE_BYTES: Final = 1 << 16


class OutputBuffer:
    """A window over a stream of (redacted) bytes, whose beginning moves on when it is full."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._end = 0

    @property
    def end(self) -> int:
        """How many bytes there were so far."""
        return self._end

    @property
    def begin(self) -> int:
        """Offset of the oldest byte that is still there."""
        return self._end - len(self._kept)

    def append(self, data: bytes) -> None:
        """More was written; what has no room any more goes."""
        self._kept += data
        self._end += len(data)
        if len(self._kept) > BUFFER_BYTES:
            del self._kept[: len(self._kept) - BUFFER_BYTES]

    @property
    def kept(self) -> int:
        """How many bytes are still there."""
        return len(self._kept)

    def drop(self) -> None:
        """Keep nothing of what was written."""
        self._kept = bytearray()

    def read(self, offset: int) -> bytes:
        """At most 64 KiB from ``offset``, which is between :attr:`begin` and :attr:`end`."""
        at = offset - self.begin
        return bytes(self._kept[at : at + PIECE_BYTES])

    def would_drop(self, size: int, offset: int) -> bool:
        """Whether as many bytes more would push out some that a reader at ``offset`` has not read."""
        return self._end > offset and self._end + size - offset > BUFFER_BYTES
