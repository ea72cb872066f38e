"""A body of 1 GiB, either way, and the memory of a process while it passes."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.egress_world.upstream import before_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.egress_world import Exchange, Handler

SIZE = 1 << 30
BLOCK = random.Random(1).randbytes(1 << 20)
_SAMPLED = 16 << 20


def digest() -> str:
    """SHA-256 of the whole: ``BLOCK`` over and over."""
    whole = hashlib.sha256()
    for _ in range(SIZE // len(BLOCK)):
        whole.update(BLOCK)
    return whole.hexdigest()


class Memory:
    """Resident bytes of a process, looked at whenever 16 MiB have passed."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._passed = 0
        self.before = self.most = self._resident()

    def _resident(self) -> int:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", self._status.read_text(), re.MULTILINE)
        assert found
        return int(found[1]) << 10

    def passed(self, size: int) -> None:
        """So many bytes more."""
        self._passed += size
        if self._passed >= _SAMPLED:
            self._passed -= _SAMPLED
            self.most = max(self.most, self._resident())

    @property
    def growth(self) -> int:
        return self.most - self.before


def download(memory: Memory) -> Handler:
    """Gives all of it."""

    async def handler(exchange: Exchange) -> None:
        await exchange.head(
            200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(SIZE))]
        )
        for _ in range(SIZE // len(BLOCK)):
            await exchange.send(BLOCK)
            memory.passed(len(BLOCK))

    return handler


def upload(memory: Memory) -> Handler:
    """Takes a chunked body, and answers with its length and SHA-256."""

    @before_body
    async def handler(exchange: Exchange) -> None:
        exchange.keep_alive = False  # the body was read here
        if exchange.request.header("expect") is not None:
            await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        whole, length = hashlib.sha256(), 0
        async for data in _chunks(exchange):
            whole.update(data)
            length += len(data)
            memory.passed(len(data))
        await exchange.answer(f"{length} {whole.hexdigest()}".encode())

    return handler


async def _chunks(exchange: Exchange) -> AsyncIterator[bytes]:
    reader = exchange.reader
    assert exchange.request.header("transfer-encoding") == "chunked"
    while size := int(await reader.readuntil(b"\r\n"), 16):
        data = await reader.readexactly(size + 2)
        yield data[:-2]
    await reader.readuntil(b"\r\n")
