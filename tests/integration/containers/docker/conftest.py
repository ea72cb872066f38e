"""A backend on the real engine, containers that go when a test does, and a door in front of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clawbox.containers.docker import DockerBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LABEL = f"clawbox-test.backend={secrets.token_hex(8)}"


async def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What the condition says once that is true; it may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)


class Door:
    """A socket in front of the engine that can be slammed, and be silent, as an engine that hangs is."""

    def __init__(self, engine_url: str, path: Path) -> None:
        self._engine = engine_url.removeprefix("unix://")
        self._path = path
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.silent = False
        """Whether what is asked is kept from the engine."""
        self.waiting = 0
        """Questions that were kept."""
        self.url = f"unix://{path}"

    @property
    def connections(self) -> int:
        return len(self._open) // 2

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def slam(self) -> None:
        """The engine is gone: nobody listens, and every connection breaks."""
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._open):
            writer.transport.abort()
        self._path.unlink(missing_ok=True)
        await until(lambda: not self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner = await asyncio.open_unix_connection(self._engine)
        self._open |= {writer, inner}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, inner, to_engine=True))
                group.create_task(self._copy(inner_reader, writer, to_engine=False))
        finally:
            for end in (writer, inner):
                end.transport.abort()
                with contextlib.suppress(OSError):
                    await end.wait_closed()
            self._open -= {writer, inner}

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_engine: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.silent and to_engine:
                    self.waiting += 1
                    continue
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            if to_engine:
                return
            writer.transport.abort()


@pytest.fixture
async def backend(engine_url: str, nothing_left: None) -> AsyncIterator[DockerBackend]:
    async with DockerBackend(engine_url) as opened:
        yield opened


@pytest.fixture
async def door(engine_url: str, nothing_left: None, tmp_path: Path) -> AsyncIterator[Door]:
    made = Door(engine_url, tmp_path / "engine.sock")
    await made.open()
    try:
        yield made
    finally:
        await made.slam()


@pytest.fixture
async def behind(door: Door) -> AsyncIterator[DockerBackend]:
    """A backend that knows the engine by the door."""
    async with DockerBackend(door.url) as opened:
        yield opened


@pytest.fixture
async def make(
    engine_url: str, busybox_image: str, nothing_left: None
) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """``await make("sh", "-c", …)``: a container that runs; with ``start=False`` one that does not yet."""
    key, _, value = LABEL.partition("=")
    made: list[str] = []
    async with DockerBackend(engine_url) as backend:

        async def make(*command: str, start: bool = True, **more: Any) -> str:
            body = {
                "Image": busybox_image,
                "Cmd": list(command),
                "Labels": {key: value},
                "HostConfig": {"NetworkMode": "none", "Init": True},
                **more,
            }
            made.append(await backend.create(f"clawbox-test-{secrets.token_hex(6)}", body))
            if start:
                await backend.start(made[-1])
            return made[-1]

        try:
            yield make
        finally:
            for engine_id in made:
                await backend.remove(engine_id)


def sockets() -> list[str]:
    """What sockets this process has."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:"):
                found.append(target)
    return sorted(found)


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Around all that a test opens. Fails one after which there is a task or a socket more than before."""
    before = set(sockets())
    yield
    own = {asyncio.current_task()}
    await until(lambda: not (asyncio.all_tasks() - own) and set(sockets()) <= before)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
