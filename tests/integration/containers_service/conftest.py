"""A real gRPC server with the Containers service over containers that are values."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from clawbox_client.v1 import containers_pb2, containers_pb2_grpc

from clawbox.auth import Principal, TokenTable
from clawbox.children.files.folder import KIND, KIND_OBJECT
from clawbox.children.launcher import Launcher
from clawbox.config import ServerSettings
from clawbox.containers.files import ContainerFiles
from clawbox.rpc.containers import ContainersServicer
from clawbox.rpc.server import RpcServer
from clawbox.rpc.services import serve_containers
from clawbox.store import Store, sqlite_url
from clawbox.telemetry import Metrics
from tests.integration.rpc.conftest import details

from .fakes import OFFER, UID, FakeBackend, FakeExecs, FakeManager, FakeOutput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PEOPLE = {
    "root": frozenset({"*"}),
    "ann": frozenset({"containers:read", "containers:write"}),
    "bob": frozenset({"containers:read", "containers:write"}),
    "eve": frozenset({"sandbox:execute"}),
}


class Rows:
    """An audit log that is a list."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def require(self) -> None:
        pass

    def append(self, kind: str, **row: Any) -> int:
        self.rows.append({"kind": kind, **row})
        return len(self.rows)


@dataclass
class Service:
    server: RpcServer
    containers: Any
    manager: FakeManager
    execs: FakeExecs
    output: FakeOutput
    audit: Rows
    metrics: Metrics
    launcher: Launcher

    def as_(self, name: str) -> dict[str, Any]:
        """Metadata of somebody, and a deadline."""
        return {"metadata": (("authorization", f"Bearer {name}-token-0123456789"),), "timeout": 20}

    async def spawned(self, who: str = "ann", **fields: Any) -> Any:
        request = containers_pb2.SpawnRequest(**{"task": "a test", "hold": True, **fields})
        made = await self.containers.Spawn(request, **self.as_(who))
        workspace = self.manager.folder / made.workspace.workspace_id
        if not workspace.exists():
            workspace.mkdir()
            os.chown(workspace, UID, UID)
        return made

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once something holds, at most 10 s from now."""
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)

    async def refused(self, call: Any) -> Any:
        """The details of what a call is refused with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _end_of(call)
        found = details(caught.value)
        assert caught.value.code().value[0] == found.status.code
        return found


async def _end_of(call: Any) -> None:
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call


@pytest.fixture
def grace_ms() -> int:
    """What a server that drains gives calls that go on."""
    return 2_000


@pytest.fixture
async def service(tmp_path: Any, grace_ms: int) -> AsyncIterator[Service]:
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    folder = tmp_path / "workspaces"
    folder.mkdir()
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    tokens = TokenTable(
        (hashlib.sha256(f"{name}-token-0123456789".encode()).hexdigest(), Principal(name, scopes))
        for name, scopes in PEOPLE.items()
    )
    metrics, audit = Metrics(), Rows()
    manager, execs, output = FakeManager(folder), FakeExecs(), FakeOutput()
    async with AsyncExitStack() as stack:
        launcher = await stack.enter_async_context(Launcher({KIND: KIND_OBJECT}, None))
        store = await stack.enter_async_context(Store(sqlite_url(state / "state.db")))
        server = await stack.enter_async_context(
            RpcServer(ServerSettings(port=0, grace_ms=grace_ms), tokens, metrics)
        )
        servicer = ContainersServicer(
            manager,
            execs=execs,
            output=output,
            backend=FakeBackend(),  # type: ignore[arg-type]
            files=ContainerFiles(launcher),
            request_ids=store.request_ids,
            ceiling=OFFER.ceiling,
            audit=audit,
            metrics=metrics,
            max_message_bytes=10 << 20,
        )
        serve_containers(server, servicer)
        await server.start()
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(
                f"127.0.0.1:{server.port}", options=[("grpc.max_receive_message_length", 64 << 20)]
            )
        )
        made = Service(
            server,
            containers_pb2_grpc.ContainersStub(channel),
            manager,
            execs,
            output,
            audit,
            metrics,
            launcher,
        )
        yield made
        # One whose call was cancelled while it was forked is killed once it is known.
        await made.until(lambda: launcher.children == 0)
