"""What is kept of one container's output, and who waits for more of it."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import Stream
from clawbox.containers.output import checkpoint
from clawbox.containers.output.checkpoint import Checkpoint, StreamPoint
from clawbox.containers.output.findings import Counts, FindingAction
from clawbox.containers.output.segments import StreamFiles, segment_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from clawbox.containers.output.place import LogPlace

_CHECKPOINT: Final = "checkpoint"


@dataclass(frozen=True, slots=True)
class Written:
    """Something for the files: bytes, or that some are missing before them."""

    stream: Stream
    time_ns: int
    data: bytes = field(default=b"", repr=False)
    lost: bool = False


@dataclass(slots=True)
class StreamState:
    """One stream since the last point from which it could be cleaned anew."""

    offset: int
    place: LogPlace
    found: Counts
    lost: bool

    @classmethod
    def of(cls, point: StreamPoint) -> StreamState:
        """As it is at a point."""
        found: Counts = Counter({(name, FindingAction(action)): count for name, action, count in point.found})
        return cls(point.offset, point.place, found, point.lost)

    def point(self) -> StreamPoint:
        """The point that it is at."""
        found = tuple((name, action.value, count) for (name, action), count in self.found.items())
        return StreamPoint(self.offset, self.place, found, self.lost)


class Kept:
    """The files of one container and the point to go on from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: Mapping[Stream, StreamFiles] = {}
        self.point = Checkpoint()
        """As it is in the files."""
        self.found: dict[Stream, Counts] = {stream: Counter() for stream in Stream}
        """Everything that was found."""
        self.gone = False
        """Whether it was forgotten."""
        self._changed = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more."""
        return self.point.ended

    def make(self, max_output_bytes: int) -> None:
        """Begin, with nothing. Blocks; raises OSError."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True)
        self._open(Checkpoint(sequence=1, max_output_bytes=max_output_bytes))
        checkpoint.write(self.folder / _CHECKPOINT, self.point)

    def load(self) -> bool:
        """Take up what an earlier process left; whether there is any. Blocks; raises OSError."""
        point = checkpoint.read(self.folder / _CHECKPOINT)
        if point is None:
            return False
        self._open(point)
        for stream, files in self.files.items():
            files.load()
            of_stream = self.point_of(stream)
            if files.end < of_stream.offset:  # the machine died, and not all had reached its disk
                files.begin_at(of_stream.offset)
            self.found[stream] = StreamState.of(of_stream).found
        return True

    def _open(self, point: Checkpoint) -> None:
        size = segment_bytes(point.max_output_bytes)
        self.files = {stream: StreamFiles(self.folder, stream.value, size) for stream in Stream}
        self.point = point

    def point_of(self, stream: Stream) -> StreamPoint:
        """Where a stream can be gone on with."""
        return self.point.stdout if stream is Stream.STDOUT else self.point.stderr

    async def write(
        self,
        writings: Iterable[Written],
        points: Mapping[Stream, StreamPoint],
        *,
        ended: bool = False,
        unclean: bool = False,
    ) -> None:
        """Append, then say from where to go on, and wake whoever waits. Raises OSError."""
        await self.written()
        point = Checkpoint(
            sequence=self.point.sequence + 1,
            stdout=points.get(Stream.STDOUT, self.point.stdout),
            stderr=points.get(Stream.STDERR, self.point.stderr),
            max_output_bytes=self.point.max_output_bytes,
            ended=ended,
            unclean=unclean,
        )
        # A thread cannot be cancelled: whoever writes next waits for it.
        self._writing = asyncio.create_task(asyncio.to_thread(self._write, tuple(writings), point))
        await asyncio.shield(self._writing)
        self.wake()

    def end(self) -> None:
        """Nothing comes any more, though the files do not say so."""
        self.point = self.point.over()
        self.wake()

    async def written(self) -> None:
        """Return once nothing is being written."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def forget(self) -> None:
        """Remove everything; readers find nothing more."""
        self.gone = True
        await self.written()
        for files in self.files.values():
            files.segments = ()
        self.wake()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    def _write(self, writings: tuple[Written, ...], point: Checkpoint) -> None:
        for one in writings:
            if one.lost:
                self.files[one.stream].mark_lost(one.time_ns)
            if one.data:
                self.files[one.stream].append(one.data, one.time_ns)
        checkpoint.write(self.folder / _CHECKPOINT, point)
        self.point = point

    def wake(self) -> None:
        """Something changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set when something changes after this was asked for."""
        return self._changed
