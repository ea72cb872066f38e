"""A container is taken over twice, since something else broke off the first time: its output goes on."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from clawbox.containers.backend import LogEntry, Stream
from clawbox.containers.output.capture import OutputCapture
from clawbox.containers.output.kept import Kept
from clawbox.containers.output.reading import Chunk, Oldest
from clawbox.egress.cleaning import CleanOutput
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

WRITTEN = b"a line\n"


class Log:
    """An engine whose one log has a line, and never ends."""

    async def logs(
        self, engine_id: str, since_ns: int = 0, *, follow: bool = False
    ) -> AsyncIterator[LogEntry]:
        yield LogEntry(Stream.STDOUT, 5, WRITTEN)
        await asyncio.Event().wait()

    async def inspect(self, engine_id: str) -> None:
        """It is gone."""


class Door:
    """A sidecar, as far as output goes."""

    def __init__(self, *, let_go: bool) -> None:
        self._let_go = let_go
        self.asked = asyncio.Event()
        self.failure = ""

    def new_stream(self) -> int:
        return 1

    async def ready(self) -> None:
        self._answer()

    async def scan(self, stream: int, data: bytes, **_: Any) -> CleanOutput:
        self._answer()
        return CleanOutput(data, (), rests=True)

    def forget_stream(self, stream: int) -> None:
        """It has nothing of it."""

    def _answer(self) -> None:
        self.asked.set()
        if self._let_go:
            raise ClawboxError(Reason.REDACTION_UNAVAILABLE, "it was let go")


async def test_what_was_not_cleaned_the_first_time_is_the_next_time(tmp_path: Path) -> None:
    container: Any = SimpleNamespace(container_id="c")

    def quarters(door: Door) -> Any:
        return SimpleNamespace(container_id="c", engine_id="e", max_output_bytes=1000, door=door)

    log: Any = Log()
    first = Door(let_go=True)
    async with asyncio.timeout(30), OutputCapture(log, tmp_path / "output", shapes=False) as output:
        await output.began(container, quarters(first), adopted=True)
        await first.asked.wait()
        await output.began(container, quarters(Door(let_go=False)), adopted=True)
        async for piece in output.read("c", frozenset({Stream.STDOUT}), Oldest(), follow=True):
            assert isinstance(piece, Chunk)
            assert piece.data == WRITTEN
            break


async def test_who_reads_while_it_is_taken_over_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container: Any = SimpleNamespace(container_id="c")
    quarters: Any = SimpleNamespace(container_id="c", engine_id="e", max_output_bytes=1000, door=None)
    log: Any = Log()
    async with asyncio.timeout(30), OutputCapture(log, tmp_path / "output", shapes=False) as output:
        await output.began(container, quarters, adopted=False)
    load, may_go_on = Kept.load, threading.Event()
    looking = threading.Event()

    def slowly(kept: Kept) -> bool:
        loaded = load(kept)
        if not looking.is_set():
            looking.set()
            may_go_on.wait(20)
        return loaded

    monkeypatch.setattr(Kept, "load", slowly)
    async with asyncio.timeout(30), OutputCapture(log, tmp_path / "output", shapes=False) as output:
        reading = asyncio.create_task(output.tail("c", 1000))
        await asyncio.to_thread(looking.wait, 20)
        await output.began(container, quarters, adopted=True)
        may_go_on.set()
        await reading
        assert not output._kept["c"].ended
