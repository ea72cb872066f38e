"""Making a container: one transaction, from the image's name to the first instruction of its program.

Everything that is made is noted where it is given back, before or as it is made. Whoever calls gives it back
when something fails, so nothing is left behind, whichever step it was.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clawbox.children.uids import UidsExhaustedError
from clawbox.containers.commands import container_command
from clawbox.containers.failures import ended_early, while_making
from clawbox.containers.host.ancestors import check as check_ancestors
from clawbox.containers.host.cgroups import Cgroup
from clawbox.containers.host.gate_check import GateTerms, check_gate
from clawbox.containers.host.mounted import OpenedMounts
from clawbox.containers.host.processes import open_process
from clawbox.containers.image_facts import stop_signal
from clawbox.containers.images import image_digest
from clawbox.containers.labels import mac_text, to_labels
from clawbox.containers.narrowing import Isolation
from clawbox.containers.quarters import quarters_of
from clawbox.containers.runtimes import has_own_kernel
from clawbox.containers.spec import ContainerPlan, bind_mounts, build, engine_name
from clawbox.containers.states import Started, after, expiry
from clawbox.containers.users import User
from clawbox.containers.way_out import TOKEN_BYTES, digest, listen, open_way_out, variables
from clawbox.errors import ClawboxError, Reason
from clawbox.uninterrupted import meanwhile, opened, uninterrupted

if TYPE_CHECKING:
    from clawbox.containers.backend import ImageFound
    from clawbox.containers.calls import SpawnCall
    from clawbox.containers.entry import Entry
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.record import Container
    from clawbox.containers.terms import Surroundings
    from clawbox.containers.wanted import Wanted
    from clawbox.egress.sandbox_door import SandboxDoor

RELEASE_SECONDS: Final = 10.0
"""How long a gate may take to come to its FIFO and go on."""


class Making:
    """Makes one container."""

    def __init__(
        self, around: Surroundings, entry: Entry, wanted: Wanted, call: SpawnCall, image: ImageFound
    ) -> None:
        self._around = around
        self._entry = entry
        self._wanted = wanted
        self._call = call
        self._image = image
        self._token = secrets.token_hex(TOKEN_BYTES)

    async def make(self, container: Container) -> Container:
        """Make what ``container`` is to be, up to its program's first instruction; returns what it is then.

        Raises INVALID_FIELD, WRONG_STATE (its workspace is in use), ENGINE_REFUSED, DOCKER_UNAVAILABLE,
        SANDBOX_UNAVAILABLE, STATE_UNAVAILABLE.
        """
        with while_making(container.container_id):
            return await self._make(container)

    async def _make(self, container: Container) -> Container:
        container, quarters = await self._prepare(container)
        # The row first: whatever is found at the engine later has one, or is nobody's.
        async with meanwhile(self._around.registry.put(container)) as keeping:
            await self._make_folder(quarters)
            plan = await self._plan(container, quarters)
            await keeping
        mounts = bind_mounts(plan.folders, workspace_read_only=container.identity.workspace_read_only)
        held = await opened(lambda: OpenedMounts.open(mounts), OpenedMounts.close)
        with held:
            quarters.engine_id = await self._create(container, plan)
            container = replace(container, engine_id=quarters.engine_id)
            # It takes the engine many times as long to start a container as to make one, mostly waiting.
            way_out = open_way_out(container.identity, quarters, self._entry.local, self._around)
            async with meanwhile(way_out) as opening:
                return await self._start(container, quarters, held, opening)

    async def _prepare(self, container: Container) -> tuple[Container, Quarters]:
        """Its user and workspace, and who it is from now on."""
        around, entry, facts = self._around, self._entry, self._image.facts
        asked = self._call.workspace
        command = container_command(
            self._call.command, hold=self._call.hold, template=self._wanted.template_command, image=facts
        )
        user = self._wanted.user or self._own_user()
        workspace = await around.workspaces.acquire(
            container.owner,
            asked.workspace_id,
            container_id=entry.container_id,
            user=user,
            kept=asked.stays,
        )
        entry.workspace = workspace
        entry.lasting.add("its workspace", lambda: around.workspaces.release(workspace))
        identity = replace(
            container.identity,
            image_id=facts.image_id,
            image_digest=image_digest(self._wanted.reference, self._image.digests),
            uid=user.uid,
            gid=user.gid,
            workspace_id=workspace.workspace_id,
            workspace_kept=bool(asked.workspace_id),
            workspace_goes=not asked.stays,
            token_sha256=digest(self._token),
            stop_signal=stop_signal(facts),
        )
        folder = around.folders.container(entry.container_id)
        entry.quarters = quarters = quarters_of(identity, "", folder, workspace)
        working_dir = self._wanted.working_dir
        return replace(
            container, identity=identity, command=command, working_dir=working_dir, pull=None
        ), quarters

    async def _make_folder(self, quarters: Quarters) -> None:
        folder = quarters.folder
        self._entry.lasting.add("its folder", lambda: asyncio.to_thread(folder.remove))
        await uninterrupted(
            asyncio.to_thread(folder.make, quarters.user, self._wanted.home, self._around.machine)
        )

    def _own_user(self) -> User:
        uids = self._around.uids
        try:
            uid = uids.take()
        except UidsExhaustedError:
            raise ClawboxError(
                Reason.SANDBOX_UNAVAILABLE, "every uid of the configured range is in use", retry_after=1.0
            ) from None
        self._entry.lasting.add("its uid", lambda: uids.give_back(uid))
        return User(uid, uid)

    async def _plan(self, container: Container, quarters: Quarters) -> ContainerPlan:
        identity = container.identity
        return ContainerPlan(
            identity=identity,
            mac=await self._around.ways_out.mac(mac_text(to_labels(identity))),
            image=self._image.facts,
            command=container.command,
            folders=quarters.folder.mounts(quarters.workspace.path),
            engine=self._around.engine,
            environment=self._call.env,
            way_out=variables(identity, self._token),
            working_dir=container.working_dir,
            home=self._wanted.home,
        )

    async def _create(self, container: Container, plan: ContainerPlan) -> str:
        """Make it at the engine; returns what the engine calls it."""
        around, entry = self._around, self._entry
        name = engine_name(container.container_id)
        entry.lasting.add("its container", lambda: around.backend.remove(name))
        return await uninterrupted(around.backend.create(name, build(plan)))

    async def _start(
        self,
        container: Container,
        quarters: Quarters,
        held: OpenedMounts,
        opening: asyncio.Task[SandboxDoor],
    ) -> Container:
        """Start it, and while its gate waits check it, and have its way out serve it; then let it go."""
        around = self._around
        with quarters.folder.fifo() as fifo:
            await uninterrupted(around.backend.start(container.engine_id))
            facts = await around.backend.inspect(container.engine_id)
            if facts is None or not facts.runs:
                raise ended_early()
            await occupy(self._entry, facts.pid, quarters)
            await self._check(container, quarters, held, facts.runtime)
            quarters.door = await opening
            egress, detail = await listen(container.identity, quarters)
            for companion in around.companions:
                await companion.began(container, quarters, adopted=False)
            await fifo.release(RELEASE_SECONDS)
        started = facts.started_ms or now_ms()
        container = replace(
            container,
            status=after(container.status, Started()),
            runtime=facts.runtime,
            egress=egress,
            egress_detail=detail,
            started_ms=started,
        )
        container = replace(container, expires_ms=expires_ms(container))
        await around.registry.put(container)
        return container

    async def _check(
        self, container: Container, quarters: Quarters, held: OpenedMounts, runtime: str
    ) -> None:
        """See that what runs is what was asked for (docs/security.md, 79)."""
        assert quarters.cgroup is not None
        terms = GateTerms(
            pidfd=quarters.pidfd,
            user=quarters.user,
            gate=quarters.folder.gate,
            mounts=held,
            cgroup=quarters.cgroup,
            own_network=container.identity.grant.isolation is Isolation.DIRECT,
            own_kernel=has_own_kernel(runtime),
        )
        await asyncio.to_thread(check_ancestors, str(quarters.workspace.path))
        await check_gate(quarters.pid, terms)


async def occupy(entry: Entry, pid: int, quarters: Quarters) -> None:
    """Hold a container's first process. Raises ProcessGoneError, CgroupError."""
    quarters.pid = pid
    quarters.pidfd = pidfd = open_process(pid)
    entry.local.add("its descriptor", lambda: _let_go(quarters, pidfd))
    quarters.cgroup = await asyncio.to_thread(Cgroup.of, pid, quarters.engine_id)


def _let_go(quarters: Quarters, pidfd: int) -> None:
    # Together: the number is another descriptor's next.
    quarters.pid, quarters.pidfd = 0, -1
    os.close(pidfd)


def now_ms() -> int:
    """The time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def expires_ms(container: Container) -> int | None:
    """When a time limit ends a container, in milliseconds since 1970; None: it has none."""
    limits = container.identity.grant.limits
    end = expiry(
        created=container.identity.created_ms,
        started=container.started_ms,
        timeout=limits.timeout_ms,
        lifetime=limits.max_lifetime_ms,
    )
    return None if end is None else round(end[0])
