"""Containers on the real engine whose output is captured."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from clawbox.containers.backend import Stream
from clawbox.containers.docker import DockerBackend
from clawbox.containers.output.capture import OutputCapture
from clawbox.containers.output.reading import Begin, Chunk, Gap, Oldest
from clawbox.containers.quarters import Quarters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from clawbox.egress.sandbox_door import SandboxDoor

LABEL = "clawbox-test.output"


@dataclass
class Known:
    """What the capture wants to know of a container's record."""

    container_id: str


@dataclass
class Program:
    """A container, and what control holds of it."""

    backend: DockerBackend
    known: Any
    quarters: Quarters

    @property
    def id(self) -> str:
        return self.quarters.container_id

    async def start(self, capture: OutputCapture) -> None:
        """As a Spawn does: what is written is followed before the program runs."""
        await capture.began(self.known, self.quarters, adopted=False)
        await self.backend.start(self.quarters.engine_id)

    async def exited(self) -> None:
        async with asyncio.timeout(60):
            while True:
                facts = await self.backend.inspect(self.quarters.engine_id)
                if facts is None or not facts.runs:
                    return
                await asyncio.sleep(0.02)

    async def finish(self, capture: OutputCapture) -> None:
        """As the monitor does when the engine tells that it ended."""
        await self.exited()
        self.quarters.ended.set()
        await capture.ended(self.known, self.quarters)


class Maker:
    """Makes containers, and removes them."""

    def __init__(self, backend: DockerBackend, image: str) -> None:
        self._backend = backend
        self._image = image
        self._made: list[str] = []

    async def __call__(
        self,
        script: str,
        *,
        door: SandboxDoor | None = None,
        log: dict[str, str] | None = None,
        driver: str = "local",
    ) -> Program:
        body: dict[str, Any] = {
            "Image": self._image,
            "Cmd": ["sh", "-c", script],
            "Labels": {LABEL: "1"},
            "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": driver, "Config": log or {}}},
        }
        engine_id = await self._backend.create(f"clawbox-test-{secrets.token_hex(6)}", body)
        self._made.append(engine_id)
        container_id = str(uuid.uuid4())
        quarters = Quarters(
            container_id=container_id,
            engine_id=engine_id,
            user=None,  # type: ignore[arg-type]
            folder=None,  # type: ignore[arg-type]
            workspace=None,  # type: ignore[arg-type]
            door=door,
            max_output_bytes=1 << 20,
        )
        return Program(self._backend, Known(container_id), quarters)

    async def clear(self) -> None:
        for engine_id in self._made:
            await self._backend.remove(engine_id)


@pytest.fixture
async def backend(engine_url: str) -> AsyncIterator[DockerBackend]:
    async with DockerBackend(engine_url) as opened:
        yield opened


@pytest.fixture
async def program(backend: DockerBackend, busybox_image: str) -> AsyncIterator[Maker]:
    maker = Maker(backend, busybox_image)
    try:
        yield maker
    finally:
        await maker.clear()


@pytest.fixture
async def capture(backend: DockerBackend, tmp_path: Path) -> AsyncIterator[OutputCapture]:
    async with OutputCapture(backend, tmp_path / "output", shapes=True) as opened:
        yield opened


async def read_all(
    capture: OutputCapture,
    container_id: str,
    begin: Begin | None = None,
    *,
    streams: tuple[Stream, ...] = (),
    follow: bool = True,
) -> list[Chunk | Gap]:
    """Everything that there is."""
    async with asyncio.timeout(60):
        events = capture.read(container_id, streams, begin or Oldest(), follow=follow)
        return [event async for event in events]


def text(events: list[Chunk | Gap], stream: Stream = Stream.STDOUT) -> bytes:
    """The bytes of one stream; offsets must fit."""
    parts = [event for event in events if event.stream is stream]
    position = parts[0].offset if parts else 0
    data = b""
    for part in parts:
        assert part.offset == position
        if isinstance(part, Chunk):
            data += part.data
            position += len(part.data)
        else:
            position += part.length
    return data
