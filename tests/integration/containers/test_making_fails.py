"""Containers that cannot be made: callers are told why in words for them, and nothing is left of any.

The engine is a value here, and refuses when it is told to; folders, workspaces and the registry are real.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from clawbox.auth import Principal
from clawbox.containers import making
from clawbox.containers.backend import ContainerFacts, EngineError, ImageFound
from clawbox.containers.calls import SpawnCall
from clawbox.containers.host import folders as host_folders
from clawbox.containers.host.cgroups import CgroupError
from clawbox.containers.host.folders import StateFolder
from clawbox.containers.host.processes import ProcessGoneError
from clawbox.containers.host.workspaces import Workspaces
from clawbox.containers.image_facts import ImageFacts
from clawbox.containers.images import Reference
from clawbox.containers.lifecycle import Lifecycle
from clawbox.containers.narrowing import ContainerGrant, ContainerLimits, Isolation
from clawbox.containers.registry import Registry
from clawbox.containers.spawning import Spawning
from clawbox.containers.spec import EngineTerms
from clawbox.containers.tasks import Tasks
from clawbox.containers.users import User
from clawbox.containers.wanted import Wanted
from clawbox.egress.messages import Limits
from clawbox.errors import ClawboxError, Reason
from clawbox.network_rules import ShapeAction
from clawbox.policy import NetworkGrant
from clawbox.sandboxes import Sandboxes

SECRET_PATH = "/var/lib/engine/overlay/secret"
FOUND = ImageFound(ImageFacts("sha256:" + "1" * 64))
WANTED = Wanted(
    reference=Reference.parse("alpine"),
    grant=ContainerGrant(
        isolation=Isolation.DIRECT,
        network=NetworkGrant((), 8),
        credentials=frozenset(),
        limits=ContainerLimits(memory_mb=64, pids=64, cpu_shares=1024, max_output_bytes=1),
    ),
    user=User(912_345, 912_345),
)
CALL = SpawnCall(task="a test", hold=True)
ANN = Principal("ann", frozenset())


class NoRows:
    """Nothing is kept."""

    async def save(self, row):
        pass

    async def delete(self, container_id):
        pass

    async def all(self):
        return []


@dataclass
class Engine:
    """Its containers do nothing; ``refuses`` names what it answers with an error of its own."""

    refuses: str = ""
    there: set[str] = field(default_factory=set)

    def _asked(self, what):
        if what == self.refuses:
            raise EngineError(500, f"no such file: {SECRET_PATH}")

    async def image(self, name):
        self._asked("image")
        return FOUND

    async def create(self, name, body):
        self._asked("create")
        self.there.add(name)
        return "e" * 64

    async def start(self, engine_id):
        self._asked("start")

    async def inspect(self, engine_id):
        self._asked("inspect")
        return ContainerFacts(engine_id, "its name", "running", pid=os.getpid(), runtime="runc")

    async def remove(self, engine_id):
        self.there.discard(engine_id)


class WaysOut:
    """Sidecars that are never asked anything."""

    async def mac(self, text):
        return b"m" * 32

    @contextlib.asynccontextmanager
    async def sandbox(self, grant):
        yield SimpleNamespace()


@dataclass
class Output:
    """What goes along with containers; it may fail to."""

    failure: Exception | None = None
    told: list[str] = field(default_factory=list)

    async def began(self, container, quarters, *, adopted):
        if self.failure is not None:
            raise self.failure

    async def forgotten(self, container_id):
        self.told.append(container_id)


@dataclass
class World:
    around: Any
    engine: Engine
    output: Output
    spawning: Spawning
    home: Any

    async def refused(self):
        """How a Spawn is refused, of which nothing is left."""
        with pytest.raises(ClawboxError) as caught:
            await self.spawning.spawn(
                WANTED, SpawnCall(task="a test", hold=True), Principal("ann", frozenset())
            )
        assert not self.engine.there
        assert not list(self.around.registry)
        assert self.around.folders.ids() == []
        assert not [path for path in self.home.glob("workspaces/*/*") if not path.parent.name.startswith(".")]
        return caught.value


@pytest.fixture
async def world(tmp_path, monkeypatch):
    folders = StateFolder(tmp_path / "containers")
    folders.open()
    engine, output, tasks = Engine(), Output(), Tasks()
    async with Workspaces(tmp_path / "workspaces", 1 << 20, max_kept=9) as workspaces:
        around: Any = SimpleNamespace(
            backend=engine,
            registry=Registry(NoRows()),
            folders=folders,
            workspaces=workspaces,
            ways_out=WaysOut(),
            uids=None,
            companions=(output,),
            installation="here",
            machine=platform.machine(),
            engine=EngineTerms(direct_network="bridge"),
            limits=Limits(),
            on_shape=ShapeAction.BLOCK,
            authorities=(),
        )
        spawning = Spawning(
            around,
            Lifecycle(around, tasks.start),
            tasks,
            max_containers=9,
            sandboxes=Sandboxes(),
            pull_policy="never",
        )
        # What only a container that runs has.
        monkeypatch.setattr(making, "occupy", occupied)
        monkeypatch.setattr(making, "check_gate", safe)
        yield World(around, engine, output, spawning, tmp_path)
        await tasks.cancel_all()


async def occupied(entry, pid, quarters):
    quarters.cgroup = SimpleNamespace()


async def safe(pid, terms):
    pass


@pytest.mark.parametrize("refuses", ["image", "create", "start", "inspect"])
async def test_an_engine_that_fails_is_said_to_refuse_in_words_for_callers(world, refuses, caplog) -> None:
    world.engine.refuses = refuses
    error = await world.refused()
    assert error.reason is Reason.ENGINE_REFUSED
    assert error.metadata["status"] == "500"
    assert SECRET_PATH not in str(error)
    assert SECRET_PATH in caplog.text


@pytest.mark.parametrize("gone", [ProcessGoneError(7), CgroupError("process 7 is in no cgroup")])
async def test_a_container_that_ends_at_any_step_is_said_to_have_ended(world, gone, monkeypatch) -> None:
    async def ends(*_):
        raise gone

    for step in ("occupy", "check_gate", "listen"):
        with monkeypatch.context() as patched:
            patched.setattr(making, step, ends)
            error = await world.refused()
        assert error.reason is Reason.SANDBOX_UNAVAILABLE, step
        assert "ended before its program began" in str(error)


async def test_without_room_for_its_folder_there_is_no_container(world, monkeypatch, caplog) -> None:
    def full(folder, name, data, mode):
        raise OSError(errno.ENOSPC, "No space left on device", SECRET_PATH)

    monkeypatch.setattr(host_folders, "_make_file", full)
    error = await world.refused()
    assert error.reason is Reason.SANDBOX_UNAVAILABLE
    assert SECRET_PATH not in str(error)
    assert f"No space left on device: '{SECRET_PATH}'" in caplog.text


async def test_without_room_for_its_output_there_is_no_container(world, caplog) -> None:
    world.output.failure = OSError(errno.ENOSPC, "No space left on device", SECRET_PATH)
    error = await world.refused()
    assert error.reason is Reason.SANDBOX_UNAVAILABLE
    assert SECRET_PATH not in str(error)
    assert f"No space left on device: '{SECRET_PATH}'" in caplog.text
    assert world.output.told
