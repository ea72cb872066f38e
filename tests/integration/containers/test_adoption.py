"""What a server does with what an earlier one left; the engine is a value here."""

import asyncio
import contextlib
import os
import uuid
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from clawbox.children.uids import UidRange
from clawbox.containers import adoption
from clawbox.containers import lifecycle as lifecycles
from clawbox.containers import monitor as monitors
from clawbox.containers.adoption import Adoption
from clawbox.containers.backend import ContainerFacts, EngineError, EngineFacts, Listed
from clawbox.containers.host import trees
from clawbox.containers.labels import INSTALLATION, sealed, to_labels
from clawbox.containers.monitor import Monitor
from clawbox.containers.record import EgressState
from clawbox.containers.spec import engine_name
from clawbox.containers.states import State, Status
from clawbox.containers.users import User
from clawbox.errors import ClawboxError, Reason
from tests.integration.containers.test_retention import GRANT, USER, Engine, Output, World, keeping

OTHER = User(912_346, 912_346)


class NextEngine(Engine):
    """One that has nothing but what it is given."""

    def __init__(self):
        super().__init__()
        self.removed = []
        self.stuck = set()
        """What it calls those that it says nothing of."""
        self.listed = []
        self.facts = {}

    async def about(self):
        return EngineFacts("20.10.24", "1.41", ("runc",), "runc")

    async def list(self, label):
        return self.listed

    async def inspect(self, engine_id):
        if engine_id in self.stuck:
            raise EngineError(504, "it does not answer")
        if engine_id not in {one.engine_id for one in self.listed}:
            return None
        return self.facts.get(engine_id) or await super().inspect(engine_id)

    async def signal(self, engine_id, name):
        assert name == "SIGKILL"
        self.facts[engine_id] = ContainerFacts(engine_id, engine_id, "exited", exit_code=137)

    async def unpause(self, engine_id):
        pass

    async def remove(self, engine_id):
        self.removed.append(engine_id)

    async def events(self, since_ns):
        await asyncio.Event().wait()
        yield


class NextOutput(Output):
    """It finds nothing to be left."""

    async def began(self, container, quarters, *, adopted):
        pass

    async def abandoned(self, known):
        pass


class Next(World):
    """What the next server has, and its monitor."""

    def __post_init__(self):
        super().__post_init__()
        around: Any = self.around
        audit: Any = SimpleNamespace(append=lambda *_, **__: None)
        self.monitor = Monitor(around, self.lifecycle, audit)

    async def restore(self):
        rows: Any = self.rows
        await self.monitor.restore(rows)


@contextlib.asynccontextmanager
async def restarted(tmp_path, rows=None, **options):
    """The next server, with the rows that were kept; nothing was looked at yet."""
    (tmp_path / "containers").mkdir(exist_ok=True)
    async with keeping(tmp_path, **options) as world:
        engine, output = NextEngine(), NextOutput()
        around = SimpleNamespace(
            **vars(world.around)
            | {
                "backend": engine,
                "companions": (output,),
                "installation": "here",
                "uids": UidRange(USER.uid, 10),
            }
        )
        after = Next(around, world.rows, engine, output)
        after.rows.rows.update({} if rows is None else rows)
        await after.restore()
        try:
            yield after
        finally:
            for entry in after.lifecycle.entries.values():
                entry.cancel_timer()
            await after.done()


@contextlib.asynccontextmanager
async def serving(world):
    """Its monitor runs; yields once it has looked at everything."""
    running = asyncio.create_task(world.monitor.run())
    try:
        await world.monitor.first_look(30)
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


async def fresh(world, container_id=""):
    """A workspace that goes with a container."""
    container_id = container_id or str(uuid.uuid4())
    return await world.around.workspaces.acquire("ann", "", container_id=container_id, user=USER)


async def test_files_of_somebody_elses_among_workspaces_are_left_and_keep_nothing_from_serving(tmp_path):
    async with asyncio.timeout(60), restarted(tmp_path) as world:
        abandoned = await fresh(world)
        root, owner = world.around.workspaces.root, abandoned.path.parents[1]
        (root / "notes" / "mine").mkdir(parents=True)
        theirs = [root / "README", root / "notes" / "mine" / "text", root / ("f" * 64), owner / "README"]
        for path in theirs:
            path.write_text("mine")

        async with serving(world):
            assert world.monitor.problem == ""

        assert not abandoned.path.exists()
        assert all(path.read_text() == "mine" for path in theirs)


async def test_an_abandoned_workspace_that_cannot_be_removed_keeps_nothing_from_serving(
    tmp_path, monkeypatch
):
    async with asyncio.timeout(60), restarted(tmp_path) as world:
        made = [await fresh(world) for _ in range(3)]
        stuck = made[1].path.parent
        rename = type(stuck).rename

        def refused(path, target):
            if path == stuck:
                raise OSError(16, "something is mounted there")
            return rename(path, target)

        monkeypatch.setattr(type(stuck), "rename", refused)
        async with serving(world):
            assert world.monitor.problem == ""

        assert [one.path.exists() for one in made] == [False, True, False]


async def test_a_folder_that_cannot_be_removed_keeps_nothing_from_serving(tmp_path, monkeypatch):
    ids = sorted(str(uuid.uuid4()) for _ in range(3))
    folders = [tmp_path / "containers" / one for one in ids]
    for folder in folders:
        folder.mkdir(parents=True)
    folders[1].rmdir()
    folders[1].write_text("it is no folder")
    empty = trees.empty

    def refused(folder, *, until):
        if os.path.samestat(os.fstat(folder), folders[0].stat()):
            raise trees.TreeError("it is immutable")
        return empty(folder, until=until)

    monkeypatch.setattr(trees, "empty", refused)
    async with asyncio.timeout(60), restarted(tmp_path) as world, serving(world):
        assert world.monitor.problem == ""
        assert [folder.exists() for folder in folders] == [True, True, False]


async def test_one_that_was_being_made_goes_though_its_folder_cannot_be_removed(tmp_path, monkeypatch):
    async with asyncio.timeout(60), keeping(tmp_path) as before:
        made, _ = await before.running()
        await before.registry.put(replace(made, status=Status(), engine_id=""))
    (tmp_path / "containers" / made.container_id).mkdir(parents=True)

    def refused(folder, *, until):
        raise trees.TreeError("something in it is immutable")

    monkeypatch.setattr(trees, "empty", refused)
    async with asyncio.timeout(60), restarted(tmp_path, before.rows.rows) as world, serving(world):
        assert world.monitor.problem == ""
        assert world.there() == set()
        assert set(world.engine.removed) == {engine_name(made.container_id)}


def listed(made):
    """As the engine has it in its list."""
    return Listed(made.engine_id, engine_name(made.container_id), "running", {INSTALLATION: "here"})


async def test_the_workspace_of_one_that_is_not_taken_over_yet_is_nobody_elses(tmp_path):
    """The engine says nothing of that one, and the others are served all the same."""
    async with asyncio.timeout(60), keeping(tmp_path) as before:
        made, workspace = await before.running(name="mine")
    async with asyncio.timeout(60), restarted(tmp_path, before.rows.rows) as world:
        world.engine.listed = [listed(made)]
        world.engine.stuck = {made.engine_id}
        async with serving(world):
            assert world.monitor.problem == ""
            with pytest.raises(ClawboxError) as refused:
                await world.around.workspaces.acquire("ann", "mine", container_id="another", user=OTHER)
            assert refused.value.reason is Reason.WRONG_STATE
            assert workspace.path.stat().st_uid == USER.uid

            # Once it is known to have gone, another may have it.
            world.engine.listed, world.engine.stuck = [], set()
            await world.monitor._adoption.settle()
            await world.registry.until(made.container_id, lambda one: one.status.state is State.LOST)
            await world.around.workspaces.acquire("ann", "mine", container_id="another", user=OTHER)
            assert workspace.path.stat().st_uid == OTHER.uid


async def test_the_workspace_of_one_that_is_not_taken_over_yet_stays_when_another_is_removed(tmp_path):
    async with asyncio.timeout(60), keeping(tmp_path) as before:
        first, workspace = await before.ended(name="mine")
        made, _ = await before.running(name="mine")
    async with asyncio.timeout(60), restarted(tmp_path, before.rows.rows) as world:
        await world.lifecycle.forget(world.lifecycle.entries[first], delete_workspace=True)

        assert set(world.rows.rows) == {made.container_id}
        assert workspace.path.exists()


async def test_one_whose_time_is_over_takes_no_workspace_along_while_rows_are_still_restored(
    tmp_path, monkeypatch
):
    """Another container has that workspace by now, and its row comes later."""
    async with asyncio.timeout(60), keeping(tmp_path) as before:
        first, workspace = await before.running()
        over = replace(first, status=Status(State.STOPPED, "it ended"), finished_ms=1, purge_ms=1)
        await before.registry.put(over)
        before.around.workspaces.release(workspace)
        second, _ = await before.running(name=workspace.workspace_id)
    finished, runs = before.rows.rows.values()
    broken = replace(runs, container_id="broken", document=b"")
    rows = {one.container_id: one for one in (finished, broken, runs)}

    async with asyncio.timeout(60), keeping(tmp_path) as kept:
        kept.around.installation = "here"
        world = Next(kept.around, kept.rows, kept.engine, kept.output)
        delete = world.rows.delete

        async def slowly(container_id):
            if container_id == "broken":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(world.output.forgetting.wait(), 0.5)
                    await world.done()
            await delete(container_id)

        monkeypatch.setattr(world.rows, "delete", slowly)
        world.rows.rows.update(rows)
        await world.restore()
        await world.gone(first.container_id)

        assert world.rows.rows == {second.container_id: runs}
        assert workspace.path.exists()


@pytest.mark.parametrize("name", ["", "mine"])
async def test_of_one_that_was_being_made_only_a_workspace_with_a_name_stays(tmp_path, name):
    """Nobody was told the name of a fresh one, though it was to stay after its container."""
    async with asyncio.timeout(60), keeping(tmp_path) as before:
        made, workspace = await before.running(name=name)
        await before.around.workspaces.keep("ann", workspace.workspace_id)
        identity = replace(made.identity, workspace_goes=False)
        await before.registry.put(replace(made, identity=identity, status=Status(), engine_id=""))
    after = restarted(tmp_path, before.rows.rows, max_kept=1)
    async with asyncio.timeout(60), after as world, serving(world):
        assert world.monitor.problem == ""
        assert world.there() == set()
        assert workspace.path.exists() is bool(name)
        # It counts no more, and whoever knows its name may have it.
        await world.around.workspaces.acquire("ann", name or "other", container_id="another", user=USER)


@pytest.mark.parametrize("row_lost", [False, True])
async def test_one_that_is_taken_over_while_nothing_can_be_written_is_held_whole(
    tmp_path, monkeypatch, row_lost
):
    """Its time limit is over, so it is ended; its sidecar was opened once, and goes with it."""
    mac = b"m" * 32
    doors = []

    @contextlib.asynccontextmanager
    async def door():
        doors.append("opened")
        yield
        doors.append("closed")

    async def occupied(entry, pid, quarters):
        pass

    async def way_out(identity, quarters, held, around):
        await held.enter("the sidecar", door())

    async def ready(identity, quarters):
        return EgressState.PORT_TAKEN, "as never before"

    async def is_right(text):
        return mac

    async def full(row):
        raise ClawboxError(Reason.STATE_UNAVAILABLE, "the disk is full")

    monkeypatch.setattr(adoption, "occupy", occupied)
    monkeypatch.setattr(adoption, "open_way_out", way_out)
    monkeypatch.setattr(adoption, "listen", ready)
    monkeypatch.setattr(lifecycles, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(monitors, "RETRY_SECONDS", 0.01)
    async with asyncio.timeout(60), keeping(tmp_path) as before:
        made, _ = await before.running(name="mine")
        limits = replace(GRANT.limits, timeout_ms=1)
        identity = replace(made.identity, grant=replace(GRANT, limits=limits), token_sha256="a" * 64)
        made = replace(made, identity=identity, started_ms=1, expires_ms=2)
        await before.registry.put(made)
    rows = {} if row_lost else before.rows.rows
    async with asyncio.timeout(20), restarted(tmp_path, rows) as world:
        world.around.ways_out = SimpleNamespace(mac=is_right)
        world.engine.listed = [listed(made)]
        world.engine.facts[made.engine_id] = ContainerFacts(
            made.engine_id,
            engine_name(made.container_id),
            "running",
            pid=1,
            started_ms=1,
            labels=sealed(to_labels(identity), mac),
        )
        monkeypatch.setattr(Adoption, "_waits", no)
        save = world.rows.save
        monkeypatch.setattr(world.rows, "save", full)
        async with serving(world):
            assert world.monitor.problem == ""
            monkeypatch.setattr(world.rows, "save", save)
            await world.registry.until(made.container_id, lambda one: one.status.state is State.TIMED_OUT)
            await world.done()
            assert doors == ["opened", "closed"]
            assert world.there() == {made.container_id}


async def no(*_):
    return False
