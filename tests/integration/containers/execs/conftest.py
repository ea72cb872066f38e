"""Containers on the real engine, made as clawbox makes them, with what holds processes inside them."""

import asyncio
import os
import platform
import signal
import uuid
from contextlib import AsyncExitStack, suppress

import pytest

from clawbox.auth import Principal
from clawbox.containers.docker import DockerBackend
from clawbox.containers.execs import ExecCall, Execs, ExecTimes, Exited, Output, RunCall
from clawbox.containers.host.cgroups import Cgroup
from clawbox.containers.host.folders import StateFolder
from clawbox.containers.host.processes import has_ended, open_process
from clawbox.containers.host.workspaces import Workspace
from clawbox.containers.labels import Identity
from clawbox.containers.narrowing import ContainerGrant, ContainerLimits, Isolation
from clawbox.containers.quarters import Quarters
from clawbox.containers.record import Container
from clawbox.containers.spec import ContainerPlan, build
from clawbox.containers.states import State, Status
from clawbox.containers.users import User
from clawbox.policy import NetworkGrant

USER = User(913_001, 913_001)
TAKEN = range(913_000, 913_100)
ALICE = Principal("alice", frozenset({"containers:write"}))
BOB = Principal("bob", frozenset({"containers:write"}))
ADMIN = Principal("root", frozenset({"*"}))


async def until(condition):
    """Wait until something is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what other processes do
            await asyncio.sleep(0.005)


class Inside:
    """One container that runs, and calls about it."""

    def __init__(self, container, quarters, execs, backend):
        self.container, self.quarters, self.execs, self.backend = container, quarters, execs, backend

    async def run(self, *command, **more):
        return await self.execs.run(self.container, self.quarters, RunCall(command=command, **more))

    async def start(self, *command, principal=ALICE, **more):
        return await self.execs.start(
            self.container, self.quarters, ExecCall(command=command, **more), principal
        )

    def children(self):
        """Of execs, in the container's cgroup."""
        return self.quarters.cgroup.children()

    def fifos(self):
        return self.quarters.folder.exec_fifos()

    def pids(self):
        return self.quarters.cgroup.pids()

    async def nothing_inside(self):
        """Wait until only the container's own program is there, and nothing of an exec."""
        await until(lambda: len(self.pids()) <= 2 and not self.children() and not self.fifos())

    async def end(self):
        """The container's program ends; its companion is told as the manager does it."""
        await self.backend.signal(self.quarters.engine_id, "SIGKILL")
        await until(lambda: has_ended(self.quarters.pidfd))
        self.quarters.ended.set()
        await self.execs.ended(self.container, self.quarters)


@pytest.fixture
def times():
    return ExecTimes()


@pytest.fixture
async def backend(engine_url):
    async with DockerBackend(engine_url) as opened:
        yield opened


@pytest.fixture
async def execs(backend, times):
    async with Execs(backend, taken=TAKEN, shapes=True, times=times) as opened:
        yield opened


@pytest.fixture
async def make(backend, execs, busybox_image, tmp_path):
    """``await make()``: a container that is held, with these execs."""
    state = StateFolder(tmp_path / "containers")
    state.open()
    async with AsyncExitStack() as held:

        async def make_one(*, pids=64, max_output_bytes=262_144):
            container_id = str(uuid.uuid4())
            folder = state.container(container_id)
            folder.make(USER, "/workspace", platform.machine())
            path = tmp_path / f"workspace-{container_id}"
            path.mkdir(0o700)
            os.chown(path, USER.uid, USER.gid)
            image = (await backend.image(busybox_image)).facts
            identity = Identity(
                installation="test",
                container_id=container_id,
                owner="alice",
                task="t",
                image="test",
                image_id=image.image_id,
                uid=USER.uid,
                gid=USER.gid,
                created_ms=1,
                grant=ContainerGrant(
                    isolation=Isolation.CONTAINER,
                    network=NetworkGrant(),
                    credentials=frozenset(),
                    limits=ContainerLimits(
                        memory_mb=128, pids=pids, cpu_shares=1024, max_output_bytes=max_output_bytes
                    ),
                ),
            )
            plan = ContainerPlan(
                identity=identity,
                mac=b"\1",
                image=image,
                command=("/run/clawbox/hold",),
                folders=folder.mounts(path),
            )
            engine_id = await backend.create(f"clawbox-test-exec-{container_id}", build(plan))
            held.push_async_callback(backend.remove, engine_id)
            fifo = folder.fifo()
            await backend.start(engine_id)
            facts = await backend.inspect(engine_id)
            await fifo.release(10)
            quarters = Quarters(
                container_id=container_id,
                engine_id=engine_id,
                user=USER,
                folder=folder,
                workspace=Workspace("alice", "w", path, kept=False, container_id=container_id),
                door=None,
                max_output_bytes=max_output_bytes,
                pid=facts.pid,
                pidfd=open_process(facts.pid),
                cgroup=Cgroup.of(facts.pid, engine_id),
            )
            held.callback(os.close, quarters.pidfd)
            container = Container(identity=identity, status=Status(State.RUNNING), engine_id=engine_id)
            inside = Inside(container, quarters, execs, backend)
            await execs.began(container, quarters, adopted=False)
            return inside

        yield make_one


@pytest.fixture
async def inside(make):
    return await make()


class Reader:
    """Reads what a process does, as a caller would, and keeps it."""

    def __init__(self, exec_):
        self.exec = exec_
        self.iterator = exec_.events()
        self.events = []

    async def until(self, text):
        """Read until a text was written to either stream."""
        async with asyncio.timeout(20):
            while text not in self.output:
                self.events.append(await anext(self.iterator))
        return self

    async def to_end(self):
        async with asyncio.timeout(60):
            async for event in self.iterator:
                self.events.append(event)
        return self.events[-1]

    @property
    def output(self):
        return b"".join(event.data for event in self.events if isinstance(event, Output))

    def written(self, stream):
        return b"".join(
            event.data for event in self.events if isinstance(event, Output) and event.stream is stream
        )

    @property
    def exited(self):
        return next((event for event in self.events if isinstance(event, Exited)), None)


@pytest.fixture
def read():
    return Reader


def end_process(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
