"""What a RunCommand keeps of a process's output, and what it gives it to read."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from clawbox.containers.backend import EngineError, Stream
from clawbox.containers.execs.events import Cut
from clawbox.errors import ClawboxError

if TYPE_CHECKING:
    from clawbox.containers.backend import ExecStream


class Beginnings:
    """The beginning of each stream, at most so many bytes; the rest is counted and dropped."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept = {stream: bytearray() for stream in Stream}
        self._dropped = dict.fromkeys(Stream, 0)

    async def take(self, stream: Stream, data: bytes) -> None:
        """More was written."""
        kept = self._kept[stream]
        fits = data[: self._most - len(kept)]
        kept += fits
        self._dropped[stream] += len(data) - len(fits)

    def of(self, stream: Stream) -> bytes:
        """What was kept of a stream."""
        return bytes(self._kept[stream])

    def cuts(self) -> tuple[Cut, ...]:
        """The streams of which something was dropped."""
        return tuple(
            Cut(stream, len(self._kept[stream]), dropped)
            for stream, dropped in self._dropped.items()
            if dropped
        )


async def feed(stream: ExecStream, data: bytes) -> None:
    """Give a process everything that it may read, as fast as it does, and then the end of it."""
    with suppress(EngineError, ClawboxError):  # it reads no more, or has ended
        if data:
            await stream.write(data)
        await stream.close_input()
