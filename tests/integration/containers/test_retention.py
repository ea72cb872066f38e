"""What is kept of finished containers, for how long and of how many; the engine is a value here."""

import asyncio
import contextlib
import uuid
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from clawbox.containers import lifecycle as lifecycles
from clawbox.containers.backend import ContainerFacts
from clawbox.containers.calls import Forgotten
from clawbox.containers.entry import Entry
from clawbox.containers.host.folders import StateFolder
from clawbox.containers.host.workspaces import Workspaces
from clawbox.containers.labels import Identity
from clawbox.containers.lifecycle import Lifecycle
from clawbox.containers.narrowing import ContainerGrant, ContainerLimits, Isolation
from clawbox.containers.persistence import from_row
from clawbox.containers.quarters import quarters_of
from clawbox.containers.record import Container
from clawbox.containers.registry import Registry
from clawbox.containers.states import State, Status
from clawbox.containers.users import User
from clawbox.errors import ClawboxError, Reason
from clawbox.policy import NetworkGrant

USER = User(912_345, 912_345)
HOUR_MS = 3_600_000
GRANT = ContainerGrant(
    isolation=Isolation.CONTAINER,
    network=NetworkGrant((), 8),
    credentials=frozenset(),
    limits=ContainerLimits(memory_mb=64, pids=64, cpu_shares=1024, max_output_bytes=1),
)


class Rows:
    """Rows that are values; ``away``: they cannot be written."""

    def __init__(self):
        self.rows = {}
        self.away = False
        self.deleting = asyncio.Event()
        self.may_delete = asyncio.Event()
        self.may_delete.set()

    async def save(self, row):
        self.rows[row.container_id] = row

    async def delete(self, container_id):
        self.deleting.set()
        await self.may_delete.wait()
        if self.away:
            raise ClawboxError(Reason.STATE_UNAVAILABLE, "the disk is full")
        self.rows.pop(container_id, None)

    async def all(self):
        return list(self.rows.values())


class Engine:
    """All that its containers do is to have ended."""

    def __init__(self):
        self.finished = {}

    async def inspect(self, engine_id):
        return ContainerFacts(
            engine_id, engine_id, "exited", exit_code=0, finished_ms=self.finished.get(engine_id)
        )


class Output:
    """What goes along with containers, and is told when they are no more."""

    def __init__(self):
        self.forgot = []
        self.forgetting = asyncio.Event()
        self.may_forget = asyncio.Event()
        self.may_forget.set()

    async def ended(self, container, quarters):
        pass

    async def forgotten(self, container_id):
        self.forgetting.set()
        await self.may_forget.wait()
        self.forgot.append(container_id)


@dataclass
class World:
    """Containers' lives, and what is kept of them."""

    around: Any
    rows: Rows
    engine: Engine
    output: Output
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self):
        self.lifecycle = Lifecycle(self.around, self._start)

    def _start(self, work, name):
        self.tasks.append(asyncio.create_task(work, name=name))
        return self.tasks[-1]

    @property
    def registry(self):
        return self.around.registry

    async def running(self, owner="ann", name=""):
        """A container that runs, with a workspace."""
        container_id = str(uuid.uuid4())
        workspace = await self.around.workspaces.acquire(owner, name, container_id=container_id, user=USER)
        identity = Identity(
            installation="here",
            container_id=container_id,
            owner=owner,
            task="a test",
            image="alpine",
            image_id="sha256:" + "a" * 64,
            uid=USER.uid,
            gid=USER.gid,
            created_ms=1_700_000_000_000,
            grant=GRANT,
            workspace_id=workspace.workspace_id,
            workspace_kept=bool(name),
            workspace_goes=not name,
        )
        made = Container(
            identity=identity, status=Status(State.RUNNING, "it runs"), engine_id=f"e-{container_id}"
        )
        entry = Entry(container_id)
        entry.lasting.add("its workspace", lambda: self.around.workspaces.release(workspace))
        folder = self.around.folders.container(container_id)
        entry.quarters = quarters_of(identity, made.engine_id, folder, workspace)
        self.lifecycle.entries[container_id] = entry
        await self.registry.put(made)
        return made, workspace

    async def ends(self, made, finished_ms=None):
        """Its program ends, and callers are told."""
        self.engine.finished[made.engine_id] = finished_ms
        self.lifecycle.began(self.lifecycle.entries[made.container_id], made)
        return await self.registry.until(made.container_id, lambda one: not one.active)

    async def ended(self, owner="ann", name="", finished_ms=None):
        """One that ran and ended; its id, and its workspace."""
        made, workspace = await self.running(owner, name)
        await self.ends(made, finished_ms)
        return made.container_id, workspace

    async def gone(self, container_id):
        """Return when it is forgotten."""
        with pytest.raises(ClawboxError, match="there is no container"):
            await self.registry.until(container_id, lambda _: False)
        await self.done()

    async def done(self):
        """Return when nothing goes on."""
        await asyncio.gather(*self.tasks)

    def there(self):
        """Ids of the containers that callers can find."""
        assert set(self.lifecycle.entries) == {one.container_id for one in self.registry}
        assert set(self.rows.rows) == {one.container_id for one in self.registry}
        return {one.container_id for one in self.registry}


@contextlib.asynccontextmanager
async def keeping(tmp_path, *, max_finished=2, max_kept=100, retention_ms=HOUR_MS):
    rows, engine, output = Rows(), Engine(), Output()
    async with Workspaces(tmp_path / "workspaces", 1 << 20, max_kept=max_kept) as workspaces:
        around = SimpleNamespace(
            backend=engine,
            registry=Registry(rows),
            folders=StateFolder(tmp_path / "containers"),
            workspaces=workspaces,
            companions=(output,),
            retention_ms=retention_ms,
            max_finished=max_finished,
        )
        world = World(around, rows, engine, output)
        try:
            yield world
        finally:
            for entry in world.lifecycle.entries.values():
                entry.cancel_timer()
            await world.done()


async def test_with_one_too_many_the_one_of_its_owner_that_ended_first_is_forgotten_whole(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path) as world:
        (first, workspace), (second, other), (bobs, _) = [
            await world.ended("ann"),
            await world.ended("ann"),
            await world.ended("bob"),
        ]
        assert world.there() == {first, second, bobs}
        watch = world.registry.watch(lambda _: True)
        await anext(watch)

        third, _ = await world.ended("ann")
        await world.gone(first)

        assert world.there() == {second, third, bobs}
        assert world.output.forgot == [first]
        assert not workspace.path.exists()
        assert other.path.exists()
        told = [await anext(watch) for _ in range(3)]
        assert (told[-1].container_id, type(told[-1])) == (first, Forgotten)
        await watch.aclose()


async def test_first_is_who_ended_first_whenever_it_was_made(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path) as world:
        made, _ = await world.running()
        second, _ = await world.ended(finished_ms=1_800_000_000_000)
        third, _ = await world.ended(finished_ms=1_800_000_000_001)

        await world.ends(made, finished_ms=1_800_000_000_002)
        await world.gone(second)

        assert world.there() == {made.container_id, third}


async def test_a_kept_workspace_stays_when_its_container_is_forgotten(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path, max_finished=1) as world:
        first, workspace = await world.ended(name="mine")

        await world.ended()
        await world.gone(first)

        assert workspace.path.exists()


async def test_who_starts_with_more_than_are_kept_forgets_the_oldest(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path, max_finished=100) as world:
        ids = [(await world.ended(finished_ms=1_800_000_000_000 - number))[0] for number in range(4)]
        bobs, _ = await world.ended("bob")
        kept = [from_row(row) for row in await world.rows.all()]
        for entry in world.lifecycle.entries.values():
            entry.cancel_timer()
        around = SimpleNamespace(
            **{**vars(world.around), "registry": Registry(world.rows), "max_finished": 2}
        )
        restarted = World(around, world.rows, world.engine, world.output)
        for container in kept:
            restarted.registry.restore(container)
            restarted.lifecycle.restored(container)

        restarted.lifecycle.bound()
        for container_id in ids[2:]:
            await restarted.gone(container_id)

        assert restarted.there() == {*ids[:2], bobs}
        for entry in restarted.lifecycle.entries.values():
            entry.cancel_timer()


async def test_while_nothing_can_be_written_it_stays_and_then_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(lifecycles, "AGAIN_SECONDS", 0.01)
    async with asyncio.timeout(60), keeping(tmp_path, max_finished=1) as world:
        first, workspace = await world.ended()
        world.rows.away = True
        second, _ = await world.ended()
        await world.rows.deleting.wait()
        world.rows.deleting.clear()
        await world.rows.deleting.wait()  # once more
        assert world.there() == {first, second}
        assert workspace.path.exists()

        world.rows.away = False
        await world.gone(first)

        assert world.there() == {second}
        assert not workspace.path.exists()


async def test_no_retention_leaves_nothing_to_be_too_many(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path, max_finished=1, retention_ms=0) as world:
        made = [await world.running() for _ in range(4)]
        await asyncio.gather(*(world.ends(container) for container, _ in made))
        for container, _ in made:
            await world.gone(container.container_id)

        assert world.there() == set()
        assert sorted(world.output.forgot) == sorted(container.container_id for container, _ in made)


@pytest.mark.parametrize("delete", [True, False])
async def test_what_remove_says_of_the_workspace_holds_also_when_time_forgets_it(tmp_path, delete):
    """The one that is too many is just going when its owner removes it."""
    async with asyncio.timeout(60), keeping(tmp_path, max_finished=1) as world:
        first, workspace = await world.ended(name="mine" if delete else "")
        entry = world.lifecycle.entries[first]
        world.rows.may_delete.clear()
        await world.ended()
        await world.rows.deleting.wait()

        removing = asyncio.create_task(world.lifecycle.forget(entry, delete_workspace=delete))
        await asyncio.sleep(0)
        world.rows.may_delete.set()
        await removing
        await world.gone(first)

        assert workspace.path.exists() is not delete
        assert world.output.forgot == [first]
        await world.around.workspaces.delete_abandoned(())
        assert workspace.path.exists() is not delete


async def test_who_is_cancelled_while_it_is_forgotten_leaves_nothing_of_it(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path) as world:
        first, workspace = await world.ended()
        world.output.may_forget.clear()
        removing = asyncio.create_task(world.lifecycle.forget(world.lifecycle.entries[first]))
        await world.output.forgetting.wait()

        removing.cancel()
        await asyncio.sleep(0)
        world.output.may_forget.set()
        with pytest.raises(asyncio.CancelledError):
            await removing

        assert world.there() == set()
        assert world.output.forgot == [first]
        assert not workspace.path.exists()


async def test_who_gives_up_waiting_has_said_nothing_of_the_workspace(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path) as world:
        first, workspace = await world.ended(name="mine")
        entry = world.lifecycle.entries[first]
        async with entry.lock:
            removing = asyncio.create_task(world.lifecycle.forget(entry, delete_workspace=True))
            await asyncio.sleep(0)
            removing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await removing
        assert world.there() == {first}

        await world.lifecycle.forget(entry)

        assert world.there() == set()
        assert workspace.path.exists()


async def test_a_workspace_that_may_not_be_kept_keeps_its_container(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path, max_kept=1) as world:
        named, _ = await world.ended(name="mine")
        first, workspace = await world.ended()
        entry = world.lifecycle.entries[first]

        with pytest.raises(ClawboxError) as caught:
            await world.lifecycle.forget(entry, delete_workspace=False)

        assert caught.value.reason is Reason.WORKSPACE_LIMIT
        assert world.there() == {named, first}
        await world.lifecycle.forget(world.lifecycle.entries[named], delete_workspace=True)
        await world.lifecycle.forget(entry, delete_workspace=False)
        assert world.there() == set()
        assert workspace.path.exists()


async def test_who_would_keep_one_too_many_while_time_forgets_it_is_told(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path, max_finished=1, max_kept=1) as world:
        await world.around.workspaces.acquire("ann", "mine", container_id="another", user=USER)
        first, _ = await world.ended()
        entry = world.lifecycle.entries[first]
        world.rows.may_delete.clear()
        await world.ended()
        await world.rows.deleting.wait()

        removing = asyncio.create_task(world.lifecycle.forget(entry, delete_workspace=False))
        await asyncio.sleep(0)
        world.rows.may_delete.set()
        with pytest.raises(ClawboxError) as caught:
            await removing

        assert caught.value.reason is Reason.WORKSPACE_LIMIT
        await world.gone(first)


def test_the_order_is_that_of_ending_and_each_owners_own():
    registry = Registry(Rows())
    made = Container(
        identity=Identity(
            installation="here",
            container_id="1",
            owner="ann",
            task="a test",
            image="alpine",
            image_id="",
            uid=1,
            gid=1,
            created_ms=5,
            grant=GRANT,
        ),
        status=Status(State.COMPLETED, "it ended"),
    )
    for container_id, owner, finished, state in (
        ("late", "ann", 9, State.COMPLETED),
        ("bobs", "bob", 1, State.COMPLETED),
        ("runs", "ann", None, State.RUNNING),
        ("early", "ann", 7, State.LOST),
    ):
        identity = replace(made.identity, container_id=container_id, owner=owner)
        registry.restore(replace(made, identity=identity, status=Status(state, "so"), finished_ms=finished))

    assert [one.container_id for one in registry.finished("ann")] == ["early", "late"]
