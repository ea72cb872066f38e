"""Workers in the hands of what they run: whatever they say, the server kills them and goes on.

docs/security.md, 92 and 93: nothing that a worker says is believed beyond the limits of its run.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from clawbox_client.v1 import sandbox_pb2

from clawbox.rpc import convert
from clawbox.wasm import pool as pool_module
from clawbox.wasm.executor import Execution
from clawbox.wasm.model import Abi, Limits, Outcome, Run, RunResult
from clawbox.wasm.output import OutputScanner
from clawbox.wasm.pool import WorkerPool
from tests.security.hostile_kind import AFTERWARDS, ATTACKS, LIES, SILENCE
from tests.unit.wasm import wat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Says = Callable[..., Awaitable[RunResult]]

LIMITS = Limits(timeout_ms=60_000, fuel=10**9, memory_bytes=32 << 20)
"""With time enough that what ends a worker is what it said, however slowly that is read."""


@pytest.fixture
async def hostile(uids: Any, observer: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerPool]:
    monkeypatch.setattr(pool_module, "KIND", "tests.security.hostile_kind:KIND")
    async with WorkerPool(workers=1, max_concurrent=2, uids=uids, observer=observer) as pool:
        yield pool


@pytest.fixture
def says(hostile: WorkerPool, forge: Any) -> Says:
    code = forge.tool(wat.COMPONENT_OK, abi=Abi.COMPONENT)

    async def say(what: str, *, streamed: bool = False, limits: Limits = LIMITS) -> RunResult:
        seen: list[object] = []
        run = Run(code, "alice", json.dumps(what).encode(), limits)
        return await hostile.run(run, seen.append if streamed else None)

    return say


async def works(says: Says) -> bool:
    """Whether somebody who comes next is served, by a worker that does as it should."""
    return (await says("work")).output == b"1"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_breaks_the_protocol_ends_the_worker(
    hostile: WorkerPool, says: Says, attack: str, streamed: bool
) -> None:
    await works(says)
    tracemalloc.start()
    busy = time.process_time()
    try:
        result = await says(attack, streamed=streamed)
        busy = time.process_time() - busy
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.outcome is Outcome.SANDBOX_LOST
    assert hostile.stats().lost_total == 1
    assert await works(says)
    assert peak < 32 << 20
    assert busy < 2  # the loop is everybody's; traced, it is several times as slow as usual


@pytest.mark.parametrize("attack", SILENCE)
async def test_what_is_never_finished_ends_at_its_time(says: Says, observer: Any, attack: str) -> None:
    limits = msgspec.structs.replace(LIMITS, timeout_ms=1000)
    assert (await says(attack, limits=limits)).outcome is Outcome.TIMEOUT
    assert await works(says)
    assert "overstayed" in observer.ended


@pytest.mark.parametrize("attack", AFTERWARDS)
async def test_what_comes_after_a_result_costs_the_next_run_nothing(
    says: Says, observer: Any, attack: str
) -> None:
    assert (await says(attack)).outcome in {Outcome.OK, Outcome.SANDBOX_LOST}
    assert await works(says)
    await observer.until(lambda: "lost" in observer.ended)


@pytest.mark.parametrize("attack", LIES)
async def test_lies_fit_into_the_reply(says: Says, attack: str) -> None:
    scanned = await OutputScanner().scan(await says(attack))
    metadata = convert.execution_metadata(Execution("digest", scanned), queued_us=0)
    assert min(metadata.fuel_consumed, metadata.peak_memory_bytes, metadata.host_calls) >= 0
    reply = sandbox_pb2.ExecuteResponse(message=scanned.result.message, metadata=metadata)
    assert reply.ByteSize() < 64 << 10
