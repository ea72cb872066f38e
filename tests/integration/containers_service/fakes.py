"""Containers without an engine: what the edge delegates to, scripted. Decisions are the real ones."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

from clawbox.config import ImageTemplate
from clawbox.containers.backend import Stream, UsageSample
from clawbox.containers.execs.calls import check as check_exec
from clawbox.containers.execs.calls import check_size, signal_number
from clawbox.containers.execs.events import Exited, Output, RunResult, Started
from clawbox.containers.host.folders import ContainerFolder
from clawbox.containers.host.workspaces import Workspace
from clawbox.containers.images import ImageAllowlist
from clawbox.containers.labels import Identity
from clawbox.containers.narrowing import Bound, ContainerCeiling
from clawbox.containers.output.capture import Tail
from clawbox.containers.output.findings import FindingAction, OutputFinding
from clawbox.containers.output.reading import Chunk, Gap
from clawbox.containers.quarters import Quarters
from clawbox.containers.record import Container, EgressState
from clawbox.containers.registry import Registry, not_found
from clawbox.containers.states import Operation, State, Status, require
from clawbox.containers.users import User
from clawbox.containers.wanted import Offer, check
from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.network_rules import NetworkRule

UID = 914_000
IMAGE_ID = "sha256:" + "ab" * 32
OFFER = Offer(
    ceiling=ContainerCeiling(
        memory_mb=Bound(64, 512),
        timeout_ms=Bound(None, 600_000),
        max_lifetime_ms=Bound(None, None),
        cpu_millis=Bound(None, None),
        pids=Bound(64, 128),
        max_output_bytes=Bound(1 << 20, 2 << 20),
        network=(NetworkRule("api.example"),),
        credentials=frozenset({"github"}),
    ),
    allowlist=ImageAllowlist.parse(["alpine", "registry.example/team/"]),
    default_image="alpine:3",
    templates={
        name: ImageTemplate(
            image="alpine:3", description=f"{name} things", network_allowlist=(NetworkRule("api.example"),)
        )
        for name in ("builder", "runner", "tester")
    },
)


class NoRows:
    """Nothing is kept."""

    async def save(self, row):
        pass

    async def delete(self, container_id):
        pass

    async def all(self):
        return []


class FakeManager:
    """The real registry, the real checks, and containers that are nothing but values."""

    def __init__(self, folder):
        self.folder = folder
        self.registry = Registry(NoRows())
        self.numbers = itertools.count(1)
        self.spawned = []
        self.rooms = {}
        self.hold_spawn = None
        self.killed = asyncio.Event()
        self.pid, self.pidfd = 0, -1

    templates = OFFER.templates

    async def spawn(self, call, principal):
        wanted = check(call, principal, OFFER)
        if self.hold_spawn is not None:
            await self.hold_spawn.wait()
        self.spawned.append(call)
        number = next(self.numbers)
        container_id = f"00000000-0000-4000-8000-{number:012d}"
        container = Container(
            identity=Identity(
                installation="here",
                container_id=container_id,
                owner=principal.name,
                task=call.task,
                image=str(wanted.reference),
                image_id=IMAGE_ID,
                uid=UID,
                gid=UID,
                created_ms=1_700_000_000_000 + number,
                grant=wanted.grant,
                template=wanted.template,
                request_id=call.request_id,
                workspace_id=call.workspace.workspace_id or f"fresh-{number}",
                workspace_read_only=call.workspace.read_only,
                labels=call.labels,
                env_names=tuple(call.env),
            ),
            status=Status(State.RUNNING, "its program runs"),
            command=call.command or ("/bin/hold",),
            runtime="runc",
            egress=EgressState.READY,
            started_ms=1_700_000_000_500,
        )
        await self.registry.put(container)
        return container

    def find(self, container_id, principal):
        container = self.registry.get(container_id)
        if container is None or not (principal.is_admin or container.owner == principal.name):
            raise not_found(container_id)
        return container

    def quarters(self, container_id):
        return self.rooms.get(container_id) or self.quarters_of(self.registry.get(container_id))

    def quarters_of(self, container):
        workspace = self.folder / container.identity.workspace_id
        return Quarters(
            container_id=container.container_id,
            engine_id="e" * 64,
            user=User(UID, UID),
            folder=ContainerFolder(self.folder / container.container_id),
            workspace=Workspace(
                owner=container.owner,
                workspace_id=container.identity.workspace_id,
                path=workspace,
                kept=True,
                container_id=container.container_id,
            ),
            door=None,
            max_output_bytes=container.identity.grant.limits.max_output_bytes,
            pid=self.pid,
            pidfd=self.pidfd,
        )

    def list(self, principal, wanted, after, limit):
        found = sorted(
            (
                one
                for one in self.registry
                if wanted.matches(one) and (principal.is_admin or one.owner == principal.name)
            ),
            key=self.position,
            reverse=True,
        )
        return [one for one in found if not after or self.position(one) < after][:limit]

    def position(self, container):
        return container.container_id

    def watch(self, principal, wanted, after_revision):
        return self.registry.watch(
            lambda one: wanted.matches(one) and (principal.is_admin or one.owner == principal.name),
            after_revision,
        )

    async def wait(self, container_id, principal):
        self.find(container_id, principal)
        return await self.registry.until(container_id, lambda one: not one.active)

    async def finish(self, container_id, state, exit_code=0):
        container = self.registry.get(container_id)
        assert container is not None
        status = Status(state, "it ended", exit_code=exit_code)
        await self.registry.put(replace(container, status=status, finished_ms=1_700_000_001_000))
        return self.registry.get(container_id)

    async def stop(self, container_id, principal, grace_ms):
        self.find(container_id, principal)
        self.grace_ms = grace_ms
        return await self.finish(container_id, State.STOPPED, 143)

    async def kill(self, container_id, principal):
        self.find(container_id, principal)
        return await self.finish(container_id, State.KILLED, 137)

    async def remove(self, container_id, principal, *, force, delete_workspace):
        container = self.find(container_id, principal)
        if not force:
            require(container.status, Operation.REMOVE, container_id)
        self.delete_workspace = delete_workspace
        await self.registry.forget(container_id)

    async def pause(self, container_id, principal):
        return await self._freeze(container_id, principal, Operation.PAUSE, State.PAUSED)

    async def resume(self, container_id, principal):
        return await self._freeze(container_id, principal, Operation.RESUME, State.RUNNING)

    async def _freeze(self, container_id, principal, operation, state):
        container = self.find(container_id, principal)
        require(container.status, operation, container_id)
        await self.registry.put(replace(container, status=Status(state, "as asked")))
        return self.registry.get(container_id)


class FakeExec:
    """A process that repeats its input and ends when that is closed."""

    def __init__(self, call):
        self.call = call
        self.exec_id = call.exec_id or "made"
        self.input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.done = []
        self.detached = asyncio.Event()

    async def events(self):
        yield Started(self.exec_id, 0, attached=False)
        offset = 0
        while (data := await self.input.get()) is not None:
            yield Output(Stream.STDOUT, offset, data)
            offset += len(data)
        yield Exited(exit_code=7, duration_ms=12)

    async def write(self, data):
        await self.input.put(data)

    async def close_stdin(self):
        await self.input.put(None)

    async def resize(self, rows, columns):
        check_size(rows, columns, field="resize")
        if not self.call.tty:
            raise invalid_field("resize", "is only for a process with a terminal", "conflict")
        self.done.append(("resize", rows, columns))

    async def signal(self, name):
        signal_number(name)
        self.done.append(("signal", name))

    def detach(self):
        self.detached.set()


class FakeExecs:
    """Processes that do not run; calls are checked as real ones are."""

    def __init__(self):
        self.started = []
        self.cancelled = asyncio.Event()

    async def start(self, container, quarters, call, principal):
        self._check(container, quarters, call)
        self.started.append(FakeExec(call))
        return self.started[-1]

    def attach(self, exec_id, principal, stdout_offset, stderr_offset):
        raise ClawboxError(Reason.EXEC_NOT_FOUND, "there is no exec {exec_id}", exec_id=exec_id)

    async def run(self, container, quarters, call):
        self._check(container, quarters, call)
        if call.command == ("forever",):
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return RunResult(
            ended=Exited(exit_code=3, duration_ms=5, findings=FOUND), stdout=call.stdin, stderr=b"err"
        )

    def _check(self, container, quarters, call):
        check_exec(call, working_dir="/workspace", own=quarters.user, taken=range(0))
        require(container.status, Operation.EXEC, container.container_id)


FOUND = (OutputFinding("github_token", FindingAction.REDACTED, Stream.STDERR, 2),)


class FakeOutput:
    """Output that was written long ago."""

    def __init__(self):
        self.asked = None
        self.waited_for = asyncio.Event()
        self.follows = asyncio.Event()
        self.follows.set()

    async def begun(self, container_id):
        self.waited_for.set()
        await self.follows.wait()

    async def read(self, container_id, streams, begin, *, follow):
        self.asked = (streams, begin, follow)
        yield Gap(Stream.STDOUT, 0, 5)
        yield Chunk(Stream.STDOUT, b"out", 5, 1_700_000_000_000_000_000)
        if follow:
            await asyncio.Event().wait()

    async def tail(self, container_id, max_bytes):
        self.max_bytes = max_bytes
        return Tail(b"the end", b"", ((Stream.STDOUT, 7),), FOUND)


class FakeBackend:
    """One measurement."""

    async def usage(self, engine_id):
        return UsageSample(1_700_000_000_000_000_000, 10, 64 << 20, 5_000, 3, 64, 1, 2)
