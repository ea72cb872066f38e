"""Ends of containers while something else is away, or somebody else ends them too; the engine is a stand-in.

The same with a real engine: tests/faults/containers_engine.
"""

import asyncio
import contextlib
import os
from types import SimpleNamespace
from typing import Any

import pytest

from clawbox.containers import spawning
from clawbox.containers.backend import ContainerFacts
from clawbox.containers.calls import SpawnCall
from clawbox.containers.lifecycle import AGAIN_SECONDS
from clawbox.containers.manager import ContainerManager
from clawbox.containers.spawning import Spawning
from clawbox.containers.states import Ending, State
from clawbox.containers.tasks import Tasks
from clawbox.errors import ClawboxError, Reason
from clawbox.sandboxes import Sandboxes
from tests.integration.containers.test_retention import GRANT, Rows, World, keeping


class Signals:
    """An engine whose containers run until they are killed, or are asked to end and do so."""

    def __init__(self, *, obedient: bool = True) -> None:
        self.sent: list[tuple[str, str]] = []
        self.removed: list[str] = []
        self._obedient = obedient
        self._codes: dict[str, int] = {}

    async def signal(self, engine_id: str, name: str) -> None:
        self.sent.append((engine_id, name))
        if name == "SIGKILL" or self._obedient:
            self._codes[engine_id] = 137 if name == "SIGKILL" else 0

    async def unpause(self, engine_id: str) -> None:
        """It was not frozen."""

    async def inspect(self, engine_id: str) -> ContainerFacts:
        if engine_id in self._codes:
            return ContainerFacts(engine_id, engine_id, "exited", exit_code=self._codes[engine_id])
        return ContainerFacts(engine_id, engine_id, "running", pid=os.getpid())


class Store(Rows):
    """Rows of a disk that can be full."""

    full = False
    tried = 0

    async def save(self, row: Any) -> None:
        self.tried += 1
        if self.full:
            raise ClawboxError(Reason.STATE_UNAVAILABLE, "the disk is full")
        await super().save(row)


@contextlib.asynccontextmanager
async def world_of(tmp_path, engine):
    async with asyncio.timeout(60), keeping(tmp_path, max_finished=9) as world:
        world.around.backend = engine
        store = Store()
        world.registry._rows = world.rows = store
        yield world, store
        # A shorter grace takes the place of a longer one.
        await asyncio.gather(*world.tasks, return_exceptions=True)
        world.tasks = [task for task in world.tasks if not task.cancelled()]


async def until(condition):
    while not condition():  # noqa: ASYNC110 - nothing announces these
        await asyncio.sleep(0.01)


def manager_of(world: World, stop_seconds: float) -> ContainerManager:
    """As much of a manager as stops them all."""
    manager = ContainerManager.__new__(ContainerManager)
    manager._registry, manager._lifecycle = world.registry, world.lifecycle
    manager._stop_seconds = stop_seconds
    return manager


async def begins(world):
    made, _ = await world.running()
    entry = world.lifecycle.entries[made.container_id]
    entry.lasting.add("its container", lambda: world.around.backend.removed.append(made.engine_id))
    world.lifecycle.began(entry, made)
    return made, entry


async def ends_unseen(world, made):
    """It ends by itself; only a look can tell."""
    world.around.backend._codes[made.engine_id] = 0
    world.lifecycle.look(made.container_id)


async def test_an_end_that_cannot_be_kept_is_told_later_and_the_engine_knows_it_until_then(
    tmp_path,
):
    async with world_of(tmp_path, Signals()) as (world, store):
        made, entry = await begins(world)
        store.full, store.tried = True, 0
        await ends_unseen(world, made)
        await until(lambda: store.tried >= 2)  # it is tried again and again
        assert world.registry.get(made.container_id).active
        assert world.around.backend.removed == []
        # Nobody who wants something of it waits for the disk.
        async with asyncio.timeout(AGAIN_SECONDS * 5), entry.lock:
            pass
        store.full = False
        ended = await world.registry.until(made.container_id, lambda one: not one.active)
        assert (ended.status.state, ended.status.exit_code) == (State.COMPLETED, 0)
        assert world.around.backend.removed == [made.engine_id]


async def test_all_are_asked_to_end_at_once_though_the_state_cannot_be_written(tmp_path):
    async with world_of(tmp_path, Signals()) as (world, store):
        done, _ = await begins(world)
        others = [(await begins(world))[0] for _ in range(2)]
        store.full, store.tried = True, 0
        await ends_unseen(world, done)
        await until(lambda: store.tried)
        stopping = asyncio.create_task(manager_of(world, 5)._stop_all())
        await until(lambda: len(world.around.backend.sent) >= 2)
        assert set(world.around.backend.sent) == {(one.engine_id, "SIGTERM") for one in others}
        store.full = False
        await stopping
        assert {one.status.state for one in world.registry} == {State.COMPLETED, State.STOPPED}


async def test_of_two_graces_the_one_that_is_over_first_holds(tmp_path):
    async with world_of(tmp_path, Signals(obedient=False)) as (world, _):
        made, entry = await begins(world)
        await world.lifecycle.end(entry, Ending.STOP, 600)
        await manager_of(world, 0.1)._stop_all()
        assert world.registry.get(made.container_id).status.state is State.STOPPED
        assert [name for _, name in world.around.backend.sent][-1] == "SIGKILL"


async def test_a_longer_grace_changes_nothing(tmp_path):
    async with world_of(tmp_path, Signals(obedient=False)) as (world, _):
        made, entry = await begins(world)
        await world.lifecycle.end(entry, Ending.STOP, 0.1)
        await world.lifecycle.end(entry, Ending.STOP, 600)
        ended = await world.registry.until(made.container_id, lambda one: not one.active)
        assert ended.status.state is State.STOPPED


async def test_it_is_killed_though_why_cannot_be_kept(tmp_path):
    async with world_of(tmp_path, Signals()) as (world, store):
        made, entry = await begins(world)
        store.full = True
        with pytest.raises(ClawboxError) as caught:
            await world.lifecycle.end(entry, Ending.STOP, 10)
        assert caught.value.reason is Reason.STATE_UNAVAILABLE
        assert world.around.backend.sent == []
        await world.lifecycle.end(entry, Ending.UNSAFE, 0)
        await until(lambda: world.around.backend.sent)
        assert world.around.backend.sent[0] == (made.engine_id, "SIGKILL")
        store.full = False
        ended = await world.registry.until(made.container_id, lambda one: not one.active)
        assert (ended.status.state, ended.status.exit_code) == (State.FAILED, 137)


async def test_a_failed_spawn_whose_caller_leaves_while_it_is_undone_leaves_nothing(tmp_path, monkeypatch):
    given_back: list[str] = []
    undoing = asyncio.Event()
    may_go_on = asyncio.Event()

    class Making:
        def __init__(self, around: object, entry: Any, *rest: object) -> None:
            self.entry = entry

        async def make(self, container: object) -> None:
            async def slowly() -> None:
                undoing.set()
                await may_go_on.wait()
                given_back.append("its sidecar")

            self.entry.lasting.add("its container", lambda: given_back.append("its container"))
            self.entry.local.add("its sidecar", slowly)
            raise ClawboxError(Reason.SANDBOX_UNAVAILABLE, "no")

    async def resolve(*_: object) -> None:
        return None

    monkeypatch.setattr(spawning, "Making", Making)
    async with world_of(tmp_path, Signals()) as (world, _):
        world.around.installation = "here"
        spawns = Spawning(
            world.around,
            world.lifecycle,
            Tasks(),
            max_containers=2,
            sandboxes=Sandboxes(),
            pull_policy="never",
        )
        spawns._images = SimpleNamespace(resolve=resolve)  # type: ignore[assignment]
        wanted: Any = SimpleNamespace(reference="alpine", grant=GRANT, template="")
        caller: Any = SimpleNamespace(name="ann", limits=SimpleNamespace(max_sandboxes=None))
        spawned = asyncio.create_task(spawns.spawn(wanted, SpawnCall(task="a test"), caller))
        await undoing.wait()
        spawned.cancel()
        await asyncio.sleep(0)  # it is told
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await spawned
        assert given_back == ["its sidecar", "its container"]
        assert world.there() == set()
