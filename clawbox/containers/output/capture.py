"""The output of every container: followed while it runs, kept in bounded files, read from there.

Nothing is shown that was not cleaned. While a container's sidecar is away, what the program writes waits in
the engine's own log, and readers wait with it; then it is read again from the last point at which nothing was
held back. The files, and what offsets count, outlive this process: the next one goes on where this one was,
also when this one was killed. What the engine threw away before it was read is told as a gap wherever it can
be known; see :mod:`clawbox.containers.output.place` for where it cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from clawbox.containers.backend import Stream
from clawbox.containers.output import reading
from clawbox.containers.output.findings import OutputFinding, findings
from clawbox.containers.output.following import Following
from clawbox.containers.output.kept import Kept
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection
    from pathlib import Path
    from types import TracebackType

    from clawbox.containers.backend import ContainerBackend
    from clawbox.containers.output.reading import Begin, Chunk, Gap
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.record import Container

DRAIN_SECONDS: Final = 20.0
"""How long what a container left may take to be read and cleaned after it ended."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of what a container wrote."""

    stdout: bytes
    stderr: bytes
    truncations: tuple[tuple[Stream, int], ...]
    """Streams of which there was more, with the bytes that are here."""
    found: tuple[OutputFinding, ...]
    """In everything that it wrote."""


class OutputCapture:
    """Keeps what containers write while entered; leaving lets go of their logs, and keeps the files.

    A :class:`clawbox.containers.quarters.Companion`. ``folder`` is made with mode 0700 where it is not there,
    and nobody else's; ``shapes``: see :mod:`clawbox.containers.output.cleaning`.
    """

    def __init__(self, backend: ContainerBackend, folder: Path, *, shapes: bool) -> None:
        self._backend = backend
        self._folder = folder
        self._shapes = shapes
        self._kept: dict[str, Kept] = {}
        self._following: dict[str, tuple[Following, asyncio.Task[None]]] = {}
        self._tasks = asyncio.TaskGroup()
        self._stack = contextlib.AsyncExitStack()
        self._open = False
        self._begun: set[str] = set()
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        await self._stack.enter_async_context(self._tasks)
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._tell()
        for _, task in self._following.values():
            task.cancel()
        for kept in self._kept.values():
            await kept.written()
            kept.wake()
        # Not told of an error of the body, which the task group would put into an ExceptionGroup.
        await self._stack.__aexit__(None, None, None)

    # A container's life

    async def began(self, container: Container, quarters: Quarters, *, adopted: bool) -> None:
        """Follow its log, from the beginning or from where an earlier process was. Raises OSError."""
        container_id = container.container_id
        if container_id in self._begun:
            # It is taken over anew: the sidecar that it had the first time was let go.
            kept = self._kept[container_id]
            _, earlier = self._following.get(container_id, (None, None))
            if earlier is not None:
                await _stop(earlier)
            await kept.written()
        else:
            kept = Kept(self._folder / container_id)
            if not adopted or not await asyncio.to_thread(kept.load):
                await asyncio.to_thread(kept.make, quarters.max_output_bytes)
        self._kept[container_id] = kept
        self._begun.add(container_id)
        self._tell()
        if kept.ended:
            return
        following = Following(self._backend, quarters, kept, shapes=self._shapes)
        task = self._tasks.create_task(following.run(), name=f"output of {container_id}")
        self._following[container_id] = (following, task)

    async def ended(self, container: Container, quarters: Quarters) -> None:
        """Keep what is left, for as long as :data:`DRAIN_SECONDS`; what is not there then is a gap."""
        following, task = self._following.pop(container.container_id, (None, None))
        if following is None or task is None:
            return
        door = quarters.door
        hopeless = following.unclean and door is not None and door.failure
        try:
            await asyncio.wait([task], timeout=0 if hopeless else DRAIN_SECONDS)
        finally:
            await _stop(task)
        if not self._kept[container.container_id].ended:
            await following.give_up()

    async def forgotten(self, container_id: str) -> None:
        """Remove everything of it. Readers end."""
        self._begun.discard(container_id)
        _, task = self._following.pop(container_id, (None, None))
        if task is not None:
            await _stop(task)
        kept = self._kept.pop(container_id, None)
        await (kept or Kept(self._folder / container_id)).forget()

    async def abandoned(self, known: Collection[str]) -> None:
        """Remove what is kept of all others. Raises OSError."""
        for container_id in await asyncio.to_thread(os.listdir, self._folder):
            if container_id not in known:
                await self.forgotten(container_id)

    # What callers ask

    async def begun(self, container_id: str) -> None:
        """Return once a reader that follows is told all that it writes, or nobody is any more.

        Before, while it is made or not taken over from an earlier process yet, reading would end at once.
        """
        while self._open and container_id not in self._begun:
            await self._news.wait()

    async def read(
        self, container_id: str, streams: Collection[Stream], begin: Begin, *, follow: bool
    ) -> AsyncGenerator[Chunk | Gap]:
        """What the container wrote, both streams by time; with ``follow`` until nothing comes any more.

        ``streams``: which; empty: both. Without ``follow`` it ends with what is kept when it begins. A reader
        that is slower than the files go is told gaps. Of a container of which nothing is known nothing comes.
        """
        kept = await self._find(container_id)
        if kept is None:
            return
        files = {stream: kept.files[stream] for stream in Stream if not streams or stream in streams}
        cursors = await asyncio.to_thread(reading.begin, files, begin, follow=follow)
        while True:
            changed, over = kept.changed, kept.ended or kept.gone or not self._open
            event = await asyncio.to_thread(reading.take, cursors)
            if event is not None:
                yield event
            elif over or not follow:
                return
            else:
                await changed.wait()

    async def tail(self, container_id: str, max_bytes: int) -> Tail:
        """The last ``max_bytes`` of each stream, as far as they were cleaned.

        Raises REDACTION_UNAVAILABLE where something was written and nothing of it could be cleaned.
        """
        kept = await self._find(container_id)
        if kept is None:
            return Tail(b"", b"", (), ())
        following, _ = self._following.get(container_id, (None, None))
        unclean = kept.point.unclean or (following is not None and following.unclean)
        if unclean and not any(files.end for files in kept.files.values()):
            raise ClawboxError(
                Reason.REDACTION_UNAVAILABLE,
                "the sidecar of this sandbox does not run, so its output cannot be cleaned of secrets",
                retry_after=1.0,
            )
        texts = {stream: await asyncio.to_thread(_tail, kept, stream, max_bytes) for stream in Stream}
        cut = tuple(
            (stream, len(text))
            for stream, text in texts.items()
            if unclean or kept.point_of(stream).lost or len(text) < kept.files[stream].end
        )
        return Tail(texts[Stream.STDOUT], texts[Stream.STDERR], cut, findings(kept.found))

    def _tell(self) -> None:
        """Wake who waits for a container."""
        self._news.set()
        self._news = asyncio.Event()

    async def _find(self, container_id: str) -> Kept | None:
        """What is kept, also by an earlier process."""
        kept = self._kept.get(container_id)
        if kept is None:
            found = Kept(self._folder / container_id)
            if await asyncio.to_thread(found.load):
                # Nobody follows it: what is there is all that there will be.
                found.point = found.point.over()
                kept = self._kept.setdefault(container_id, found)
        return kept


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _tail(kept: Kept, stream: Stream, max_bytes: int) -> bytes:
    files = kept.files[stream]
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):  # went meanwhile
            end = files.end
            return files.range(max(end - max_bytes, 0), end)
    return b""
