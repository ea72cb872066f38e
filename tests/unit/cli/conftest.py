from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from clawbox.cli.app import run
from tests.integration.client.fakes import TOKEN, FakeServer, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME as the current folder, and no variable of the machine's own."""
    for name in [name for name in os.environ if name.startswith("CLAWBOX_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeServer]:
    """A fake server that the command line finds, with its token."""
    async with serving() as fake:
        monkeypatch.setenv("CLAWBOX_ADDRESS", fake.address)
        monkeypatch.setenv("CLAWBOX_TOKEN", TOKEN)
        yield fake


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    """Runs a command line in this process, beside the event loop."""

    async def call(*args: str) -> Ended:
        code = await asyncio.to_thread(run, args)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture
def spawn():
    """Runs a command line as a process of its own."""

    async def call(*args: str | bytes, stdin: bytes = b"", **variables: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "clawbox",
            *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **variables},
        )
        out, err = await asyncio.wait_for(process.communicate(stdin), 60)
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())

    return call
