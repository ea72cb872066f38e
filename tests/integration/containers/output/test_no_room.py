"""The disk is full when a container ends: its output ends for readers, too."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from clawbox.containers.backend import Stream
from clawbox.containers.output import capture
from clawbox.containers.output.capture import OutputCapture
from clawbox.containers.output.kept import Kept
from clawbox.containers.output.reading import Oldest
from tests.integration.containers.output.test_taken_over_again import Log

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_who_follows_is_told_of_the_end_though_that_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container: Any = SimpleNamespace(container_id="c")
    quarters: Any = SimpleNamespace(container_id="c", engine_id="e", max_output_bytes=1000, door=None)
    log: Any = Log()
    monkeypatch.setattr(capture, "DRAIN_SECONDS", 0.1)
    came: list[object] = []
    async with asyncio.timeout(30), OutputCapture(log, tmp_path / "output", shapes=False) as output:
        await output.began(container, quarters, adopted=False)
        first = asyncio.Event()

        async def follow() -> None:
            async for piece in output.read("c", frozenset(Stream), Oldest(), follow=True):
                came.append(piece)
                first.set()

        following = asyncio.create_task(follow())
        await first.wait()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Kept, "_write", full)
        await output.ended(container, quarters)
        await following
    assert came
