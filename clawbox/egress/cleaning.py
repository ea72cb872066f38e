"""Streams of output that a sidecar takes its sandbox's known secrets out of, as control asks for it.

Only the sidecar knows them. A stream belongs to one process, which holds back what may be the beginning of a
secret; when that process ends, the stream cannot go on, and nothing of it is shown uncleaned.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from clawbox.children.channel import ChannelClosedError, FrameError
from clawbox.egress.messages import Clean, Cleaned, Found
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES: Final = 128 << 10
"""Most output in one message; as many bytes may become somewhat more."""
ANSWER_SECONDS: Final = 30.0
"""How long a piece may take: a process that is stuck, or was taken over, keeps nobody waiting for ever."""


class CleanOutput(NamedTuple):
    """What may be shown of a stream now, and what was found in it since it was last asked for."""

    data: bytes
    found: tuple[Found, ...]
    rests: bool
    """Nothing is held back: behind a line end, another process could go on from here."""


class Cleaning(Protocol):
    """The process that cleans."""

    @property
    def alive(self) -> bool:
        """Whether it can still be told something."""

    def send(self, message: object) -> None:
        """Tell it something."""


class OutputCleaner:
    """The streams of one sandbox, over one process at a time."""

    def __init__(self, seconds: float = ANSWER_SECONDS) -> None:
        self._seconds = seconds
        self._asked: deque[tuple[int, asyncio.Future[Cleaned]]] = deque()
        self._streams: dict[int, Cleaning] = {}

    async def clean(
        self,
        process: Cleaning | None,
        stream: int,
        data: bytes,
        *,
        end: bool,
        shapes: bool,
        flush: bool = False,
    ) -> CleanOutput:
        """What may be shown now that ``data`` came, with ``end`` or ``flush`` all that was held back.

        Raises REDACTION_UNAVAILABLE when there is no process, it ends, or the stream began with another one.
        A stream that failed, or whose caller went away, is over.
        """
        if process is None or not process.alive or self._streams.get(stream, process) is not process:
            self._streams.pop(stream, None)
            raise _unavailable()
        self._streams[stream] = process
        over = True
        try:
            cleaned = [
                await self._ask(process, Clean(stream, piece, end and last, shapes, flush and last))
                for piece, last in _pieces(data)
            ]
            over = end
        except (ChannelClosedError, TimeoutError) as error:
            raise _unavailable() from error
        finally:
            if over and not end:
                self.forget(stream)
            elif over:
                self._streams.pop(stream, None)
        return CleanOutput(
            b"".join(one.data for one in cleaned),
            tuple(found for one in cleaned for found in one.found),
            cleaned[-1].rests,
        )

    def has_begun(self, stream: int) -> bool:
        """Whether a process holds back something of a stream, or did before it ended."""
        return stream in self._streams

    def forget(self, stream: int) -> None:
        """Nobody wants the rest of a stream."""
        process = self._streams.pop(stream, None)
        if process is not None and process.alive:
            self._send(process, Clean(stream, b"", end=True))

    def answered(self, answer: Cleaned) -> None:
        """The process answered. Raises FrameError when that is not what was asked next."""
        if not self._asked or self._asked[0][0] != answer.stream:
            raise FrameError("an answer to what was not asked")
        _, waiting = self._asked.popleft()
        if not waiting.done():
            waiting.set_result(answer)

    def lost(self) -> None:
        """The process ended: nothing that was asked will be answered.

        Which streams were its own is not forgotten: another process would not know what this one held back.
        """
        while self._asked:
            _, waiting = self._asked.popleft()
            if not waiting.done():
                waiting.set_exception(ChannelClosedError())
                waiting.exception()  # whoever forgot a stream does not wait

    async def _ask(self, process: Cleaning, question: Clean) -> Cleaned:
        if not process.alive:
            raise ChannelClosedError
        async with asyncio.timeout(self._seconds):
            return await self._send(process, question)

    def _send(self, process: Cleaning, question: Clean) -> asyncio.Future[Cleaned]:
        answer: asyncio.Future[Cleaned] = asyncio.get_running_loop().create_future()
        self._asked.append((question.stream, answer))
        process.send(question)
        return answer


def _pieces(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Pieces of ``data``, at least one, and whether each is the last."""
    for start in range(0, max(len(data), 1), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES], start + PIECE_BYTES >= len(data)


def _unavailable() -> ClawboxError:
    return ClawboxError(
        Reason.REDACTION_UNAVAILABLE,
        "the sidecar of this sandbox does not run, so its output cannot be cleaned of secrets",
        retry_after=1.0,
    )
