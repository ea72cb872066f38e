"""Following one container's log: read from the engine, cleaned, kept; begun anew wherever that breaks off.

What is held for it is at most :data:`WAITING_BYTES`; when that is full, the engine is not read, and its own
files go on without us.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import EngineError, NotThereError, Stream
from clawbox.containers.output.cleaning import CleanedStream
from clawbox.containers.output.kept import StreamState, Written
from clawbox.containers.output.place import Finder, LogPlace, Verdict, since
from clawbox.errors import ClawboxError, Reason
from clawbox.uninterrupted import together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clawbox.containers.backend import ContainerBackend, LogEntry
    from clawbox.containers.output.findings import Counts
    from clawbox.containers.output.kept import Kept
    from clawbox.containers.quarters import Quarters

WAITING_BYTES: Final = 256 << 10
"""What may wait to be cleaned."""
WAITING_ENTRIES: Final = 4096
BATCH_BYTES: Final = 64 << 10
BATCH_NS: Final = 10_000_000
"""Lines of one stream that came within 10 ms are cleaned and kept together."""
FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 1.0
"""Seconds before the log is followed again, after it broke off."""
_BUSY_ENTRIES: Final = 64  # waiting: then the order of lines of both streams within BATCH_NS is given up
_CONTEXT_BYTES: Final = 64  # that a new scanner is shown of what went before, as an old one would know it

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """Entries of one stream that are cleaned at once."""

    stream: Stream
    time_ns: int
    """Of the first."""
    place: LogPlace
    """Behind the last."""
    lost: bool
    """Something before the first is missing."""
    parts: list[bytes] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """An entry, and what became of the search for the place from which its log is read again."""

    entry: LogEntry
    behind_gap: bool


class Waiting:
    """Entries between the reader of the log and what keeps them."""

    def __init__(self) -> None:
        self._entries: deque[Seen] = deque()
        self._bytes = 0
        self._over = False
        self._some = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, seen: Seen) -> None:
        """Add one, once there is room."""
        while self._bytes >= WAITING_BYTES or len(self._entries) >= WAITING_ENTRIES:
            self._room.clear()
            await self._room.wait()
        self._entries.append(seen)
        self._bytes += len(seen.entry.data)
        self._some.set()

    def end(self) -> None:
        """No more come."""
        self._over = True
        self._some.set()

    async def take(self) -> list[Seen]:
        """All that wait, at least one; none when no more come."""
        while not self._entries and not self._over:
            self._some.clear()
            await self._some.wait()
        taken = list(self._entries)
        self._entries.clear()
        self._bytes = 0
        self._room.set()
        return taken


def batches(seen: Sequence[Seen], places: dict[Stream, LogPlace]) -> list[Batch]:
    """Entries put together; ``places`` are moved on behind them."""
    busy = len(seen) > _BUSY_ENTRIES
    made: list[Batch] = []
    open_: dict[Stream, Batch] = {}
    for one in seen:
        entry = one.entry
        places[entry.stream] = place = places[entry.stream].after(entry.time_ns)
        batch = open_.get(entry.stream)
        if (
            batch is None
            or one.behind_gap
            or batch.size >= BATCH_BYTES
            or not 0 <= entry.time_ns - batch.time_ns <= BATCH_NS
        ):
            batch = Batch(entry.stream, entry.time_ns, place, one.behind_gap)
            if not busy:
                open_.clear()
            open_[entry.stream] = batch
            made.append(batch)
        batch.parts.append(entry.data)
        batch.size += len(entry.data)
        batch.place = place
    return made


class _StreamCleaning:
    """One stream from the last clean point on."""

    def __init__(self, stream: Stream, kept: Kept, cleaned: CleanedStream) -> None:
        self.state = StreamState.of(kept.point_of(stream))
        self._stream = stream
        self._kept = kept
        self._cleaned = cleaned
        self._before: Counts = Counter(self.state.found)
        self._given = self.state.offset
        self._repeated = kept.files[stream].end - self.state.offset  # was kept already
        self._held_ns: int | None = None

    async def warm_up(self) -> None:
        """Show the new scanner the text before the point, as far as it could matter."""
        offset = self.state.offset
        files = self._kept.files[self._stream]
        text = await asyncio.to_thread(files.range, max(offset - _CONTEXT_BYTES, 0), offset)
        if text.endswith(b"\n"):
            await self._cleaned.feed(text)
            self._cleaned.findings.clear()

    async def take(self, batch: Batch) -> Written:
        """What is to be written for a batch."""
        if batch.lost:
            self._repeated = 0
            self.state.lost = True
        data = await self._cleaned.feed(b"".join(batch.parts))
        ends_line = batch.parts[-1].endswith(b"\n")
        time_ns = batch.time_ns if self._held_ns is None else self._held_ns
        if ends_line:
            self._held_ns = None
        elif data or self._held_ns is None:
            self._held_ns = batch.time_ns
        written = self._written(data, time_ns, lost=batch.lost)
        if ends_line and self._cleaned.rests and not self._repeated:
            self.state.offset, self.state.place = self._given, batch.place
            self.state.found = self.found()
        return written

    async def end(self) -> Written:
        """What is left."""
        data = await self._cleaned.end()
        written = self._written(data, self._held_ns or 0, lost=False)
        self.state.offset, self.state.found = self._given, self.found()
        return written

    def found(self) -> Counts:
        """Everything that was found, of what came before the point too."""
        return self._before + self._cleaned.findings

    def close(self) -> None:
        self._cleaned.close()

    def _written(self, data: bytes, time_ns: int, *, lost: bool) -> Written:
        repeated = min(self._repeated, len(data))
        self._repeated -= repeated
        self._given += len(data)
        if lost:
            self._given = self._kept.files[self._stream].end + len(data)
        return Written(self._stream, time_ns, data[repeated:], lost)


class Following:
    """Follows one container until its log is complete."""

    def __init__(self, backend: ContainerBackend, quarters: Quarters, kept: Kept, *, shapes: bool) -> None:
        self.unclean = False
        """Whether what came last waits for a sidecar that cleans it."""
        self._backend = backend
        self._quarters = quarters
        self._kept = kept
        self._shapes = shapes

    async def run(self) -> None:
        """Keep everything; returns once the log is complete, and never raises but when it is cancelled."""
        clock, pause, name = asyncio.get_running_loop().time, FIRST_PAUSE, self._quarters.container_id
        while not self._kept.ended and not self._kept.gone:
            began = clock()
            try:
                await self._session()
            except NotThereError:
                await self.give_up()
            except ClawboxError as error:
                self.unclean = self.unclean or error.reason is Reason.REDACTION_UNAVAILABLE
                _log.debug("the log of %s broke off: %s", name, error)
            except (EngineError, OSError) as error:
                _log.warning("the log of %s broke off: %s", name, error)
            except Exception:  # noqa: BLE001 - one container's trouble is not the others'
                _log.exception("the log of %s broke off", name)
            if not self._kept.ended:
                pause = FIRST_PAUSE if clock() - began > LAST_PAUSE else min(2 * pause, LAST_PAUSE)
                await asyncio.sleep(pause)

    async def give_up(self) -> None:
        """Nothing more is waited for: say that something is missing."""
        lost = [Written(stream, 0, lost=True) for stream in Stream]
        points = {}
        for stream in Stream:
            state = StreamState.of(self._kept.point_of(stream))
            state.lost, state.found = True, self._kept.found[stream]
            points[stream] = state.point()
        try:
            await self._kept.write(lost, points, ended=True, unclean=self.unclean)
        except OSError as error:
            # Readers are told that it ends all the same.
            _log.warning("that the log of %s ended is not kept: %s", self._quarters.container_id, error)
            self._kept.end()

    async def _session(self) -> None:
        door = self._quarters.door
        if self.unclean and door is not None:
            await door.ready()
        streams = {
            stream: _StreamCleaning(stream, self._kept, CleanedStream(door, self._shapes))
            for stream in Stream
        }
        try:
            for one in streams.values():
                await one.warm_up()
            self.unclean = False
            waiting = Waiting()
            complete, _ = await together(self._read(waiting), self._keep(waiting, streams))
            if complete:
                await self._end(streams)
        finally:
            for one in streams.values():
                one.close()

    async def _read(self, waiting: Waiting) -> bool:
        """Read the log from the point on until the engine says that it ends; whether it is complete.

        An engine may end a log that is followed before the last of it (seen of Docker 20.10, in every other
        container): once the container has ended, what is left is read again.
        """
        places = {stream: self._kept.point_of(stream).place for stream in Stream}
        await self._read_on(waiting, places, follow=True)
        complete = await self._complete()
        if complete:
            with contextlib.suppress(NotThereError):  # it was removed, and what was read is all there is
                await self._read_on(waiting, places, follow=False)
        waiting.end()
        return complete

    async def _read_on(self, waiting: Waiting, places: dict[Stream, LogPlace], *, follow: bool) -> None:
        """Read the log behind ``places``, which are moved on."""
        since_ns = since(*places.values())
        finders = {stream: Finder(place, since_ns) for stream, place in places.items()}
        log = self._backend.logs(self._quarters.engine_id, since_ns=since_ns, follow=follow)
        async with contextlib.aclosing(log):
            async for entry in log:
                verdict = finders[entry.stream].see(entry.time_ns)
                if verdict is not Verdict.SKIP:
                    places[entry.stream] = places[entry.stream].after(entry.time_ns)
                    await waiting.put(Seen(entry, verdict is Verdict.TAKE_BEHIND_GAP))

    async def _keep(self, waiting: Waiting, streams: dict[Stream, _StreamCleaning]) -> None:
        places = {stream: self._kept.point_of(stream).place for stream in Stream}
        while seen := await waiting.take():
            writings = [await streams[batch.stream].take(batch) for batch in batches(seen, places)]
            await self._write(writings, streams)

    async def _complete(self) -> bool:
        """Whether the log ended because the container did, and not its engine."""
        facts = await self._backend.inspect(self._quarters.engine_id)
        return facts is None or facts.status in {"exited", "dead", "removing"}

    async def _end(self, streams: dict[Stream, _StreamCleaning]) -> None:
        await self._write([await one.end() for one in streams.values()], streams, ended=True)

    async def _write(
        self, writings: Sequence[Written], streams: dict[Stream, _StreamCleaning], *, ended: bool = False
    ) -> None:
        for stream, one in streams.items():
            self._kept.found[stream] = one.found()
        points = {stream: one.state.point() for stream, one in streams.items()}
        await self._kept.write(writings, points, ended=ended)
