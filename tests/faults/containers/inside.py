"""Containers of a real engine served from the test's own process, where a test can stop them at any step."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clawbox.audit import AuditLog
from clawbox.auth import Principal
from clawbox.children.uids import server_uids
from clawbox.config import Config
from clawbox.containers.calls import ContainerFilter, SpawnCall
from clawbox.containers.service import container_service
from clawbox.egress.keeper.bootstrap import identity_folder, open_keys
from clawbox.egress.setup import egress_setup
from clawbox.egress.supervisor import EgressSupervisor
from clawbox.sandboxes import Sandboxes
from clawbox.telemetry import Metrics
from tests.containers_world import Leftovers, settings
from tests.faults.containers.world import ControlGroups, World
from tests.footprint import children
from tests.live import init

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from clawbox.containers.record import Container
    from clawbox.containers.service import ContainerService
    from tests.engine import EngineApi

ANN = Principal("ann", frozenset({"*"}))


@dataclass
class Inside:
    """Containers, and what they hold."""

    service: ContainerService
    world: World

    async def spawn(self, **fields: Any) -> Container:
        """One that holds unless ``fields`` has a command."""
        fields.setdefault("hold", "command" not in fields)
        call = SpawnCall(task="inside", image=self.world.image, **fields)
        return await self.service.manager.spawn(call, ANN)

    async def remove(self, container: Container) -> None:
        """Kill and forget one."""
        await self.service.manager.remove(container.container_id, ANN, force=True)

    async def nothing_is_left(self) -> None:
        """Wait until all is as it was, the rows too."""
        await asyncio.to_thread(self.world.nothing_is_left)
        assert await self.service.store.containers.all() == []


@contextlib.asynccontextmanager
async def serving(
    home: Path, engine: EngineApi, image: str, containers: str = ""
) -> AsyncIterator[ContainerService]:
    """What a server has for its containers, with settings as the tests' other servers have them."""
    config = Config.load(init(home, settings(home, engine.url, containers)))
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        uids = stack.enter_context(server_uids(config.children.uid_first, config.children.uid_count))
        assert uids is not None, "these tests need root"
        container_uids = uids.upper_half()
        audit = await stack.enter_async_context(AuditLog(config.logging.audit_dir))
        keys = stack.enter_context(open_keys(identity_folder(config), None, {}))
        supervisor = await stack.enter_async_context(
            EgressSupervisor(egress_setup(config), keys, audit=audit, metrics=metrics, uids=uids)
        )
        yield await stack.enter_async_context(
            container_service(
                config,
                identity_folder(config),
                ways_out=supervisor,
                uids=container_uids,
                audit=audit,
                sandboxes=Sandboxes(),
            )
        )


@contextlib.asynccontextmanager
async def inside(home: Path, engine: EngineApi, image: str, containers: str = "") -> AsyncIterator[Inside]:
    """Containers that live in a task of their own, as in a program, and that have had one container."""
    ready: asyncio.Future[ContainerService] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def serve() -> None:
        async with serving(home, engine, image, containers) as service:
            ready.set_result(service)
            await done.wait()

    task = asyncio.create_task(serve())
    task.add_done_callback(lambda _: ready.done() or ready.cancel())
    try:
        service = await ready
    except asyncio.CancelledError:
        await task  # which says why
        raise
    try:
        call = SpawnCall(task="first", image=image, hold=True)
        first = await service.manager.spawn(call, ANN)
        groups = await asyncio.to_thread(ControlGroups, engine, first.engine_id)
        await service.manager.remove(first.container_id, ANN, force=True)

        def known() -> list[str]:
            wanted = ContainerFilter(include_finished=True)
            return [one.container_id for one in service.manager.list(ANN, wanted)]

        left = Leftovers(home, engine)
        yield Inside(service, await asyncio.to_thread(World, left, groups, image, _descendants, known))
    finally:
        done.set()
        await task


def _descendants(pid: int = 0) -> list[int]:
    found = children(pid or os.getpid())
    return [*found, *(deeper for child in found for deeper in _descendants(child))]


@dataclass
class Step:
    """A place at which a test stops work, by patching what does it."""

    when: str
    """``before`` it begins, until told to go on; or ``during`` it, from its first suspension on."""
    turn: int = 1
    """Which of its calls is meant."""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def at(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        """Stop in what ``owner`` calls so, a coroutine function."""
        real, calls = getattr(owner, name), 0

        async def stopped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != self.turn:
                return await real(*args, **kwargs)
            self.reached.set()
            if self.when == "before":
                await self.go_on.wait()
            return await real(*args, **kwargs)

        monkeypatch.setattr(owner, name, stopped)
