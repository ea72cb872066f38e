import asyncio
from pathlib import Path

import pytest

from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.uids import UidRange
from clawbox.wasm.model import Abi, Limits, Run
from clawbox.wasm.pool import WorkerPool
from tests.unit.wasm.wat import Forge


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


LIMITS = Limits(timeout_ms=10_000, fuel=1_000_000_000, memory_bytes=32 << 20)


@pytest.fixture(scope="session")
def forge(tmp_path_factory):
    return Forge(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def uids():
    return UidRange(913_000, 100) if can_have_own_uids() else None


class Watched:
    """An observer that remembers, and lets a test wait for the death of workers."""

    def __init__(self):
        self.ended = []
        self._changed = asyncio.Event()

    def worker_started(self):
        pass

    def worker_ended(self, why):
        self.ended.append(why)
        self._changed.set()

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def observer():
    return Watched()


@pytest.fixture
async def pool(uids, observer):
    descriptors = open_descriptors()
    async with WorkerPool(workers=2, max_concurrent=6, uids=uids, observer=observer) as running:
        yield running
    assert open_descriptors() <= descriptors  # fewer: what an earlier test left to close by itself
    assert running.stats().busy == running.stats().idle == running.stats().spare == 0


@pytest.fixture
def execute(pool, forge):
    async def run(
        text, params=b"{}", *, abi=Abi.COMMAND_MODULE, owner="alice", limits=LIMITS, on_event=None, **tool
    ):
        return await pool.run(Run(forge.tool(text, abi=abi, **tool), owner, params, limits), on_event)

    return run
