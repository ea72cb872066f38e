"""Real workers, whose runs have a stand-in for a sidecar."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.uids import UidRange
from clawbox.network_rules import NetworkRule
from clawbox.policy import NetworkGrant, ToolGrant
from clawbox.wasm.model import Limits, Run, RunResult
from clawbox.wasm.pool import WorkerPool
from tests.tool_door import StandInCall, StandInDoor
from tests.unit.wasm import wat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMITS = Limits(timeout_ms=10_000, fuel=10**9, memory_bytes=32 << 20)
# What comes on stdin is the host call, whose reply is the output.
RELAY = wat.module(
    "",
    pages=80,
    start="""(local $n i32)
      (local.set $n (call $host (i32.const 1024) (call $in (i32.const 1024)) (i32.const 1048576) (i32.const 4194304)))
      (drop (call $out (i32.const 1) (i32.const 1048576) (local.get $n)))""",  # noqa: E501
)


def request(url: str = "https://a.example/", **params: object) -> bytes:
    return json.dumps({"method": "http_request", "params": {"url": url, **params}}).encode()


class Bench:
    """A pool, a door, and one tool that passes host calls on."""

    def __init__(self, pool: WorkerPool, forge: wat.Forge, door: StandInDoor) -> None:
        self.pool = pool
        self.door = door
        self._forge = forge

    @asynccontextmanager
    async def way_out(self, owner: str = "alice") -> AsyncIterator[StandInCall]:
        grant = ToolGrant(NetworkGrant((NetworkRule("a.example"),)), frozenset(), LIMITS)
        async with self.door.call(owner, grant, "r1") as call:
            yield call

    async def run(
        self,
        params: bytes,
        call: StandInCall | None = None,
        *,
        owner: str = "alice",
        limits: Limits = LIMITS,
        text: str = RELAY,
        **tool: Any,
    ) -> RunResult:
        return await self.pool.run(Run(self._forge.tool(text, **tool), owner, params, limits), None, call)

    async def send(self, params: bytes = request(), **options: Any) -> Any:
        """The reply to one host call of a run of its own."""
        async with self.way_out(options.get("owner", "alice")) as call:
            result = await self.run(params, call, **options)
            assert result.output is not None, result
            return json.loads(result.output)


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> wat.Forge:
    return wat.Forge(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
async def bench(forge: wat.Forge) -> AsyncIterator[Bench]:
    uids = UidRange(914_000, 100) if can_have_own_uids() else None
    async with WorkerPool(workers=1, max_concurrent=2, uids=uids) as pool:
        yield Bench(pool, forge, StandInDoor())
