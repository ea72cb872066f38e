"""A Spawn from its admission to its answer: who may have one more container, and that it is all or nothing.

What a container is made of, step by step, is in :mod:`clawbox.containers.making`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clawbox.containers.entry import Entry
from clawbox.containers.labels import Identity
from clawbox.containers.making import Making, now_ms
from clawbox.containers.pulling import Images
from clawbox.containers.record import Container, Pull
from clawbox.containers.states import Ending, Status
from clawbox.errors import ClawboxError, Reason
from clawbox.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from clawbox.auth import Principal
    from clawbox.containers.calls import SpawnCall
    from clawbox.containers.host.workspaces import Workspace
    from clawbox.containers.lifecycle import Lifecycle
    from clawbox.containers.pulling import PullPolicy
    from clawbox.containers.tasks import Tasks
    from clawbox.containers.terms import Surroundings
    from clawbox.containers.wanted import Wanted
    from clawbox.sandboxes import Sandboxes

LIMIT_RETRY_SECONDS: Final = 1.0
DISCARD_SECONDS: Final = 10.0
"""How long a killed container that nobody was told of may take to end, until its retention is left to it."""

_log = logging.getLogger(__name__)


class Spawning:
    """Makes containers for callers. The engine must be there: who calls sees to that."""

    def __init__(
        self,
        around: Surroundings,
        lifecycle: Lifecycle,
        tasks: Tasks,
        *,
        max_containers: int,
        sandboxes: Sandboxes,
        pull_policy: PullPolicy,
    ) -> None:
        self._around = around
        self._registry = around.registry
        self._lifecycle = lifecycle
        self._tasks = tasks
        self._max_containers = max_containers
        self._sandboxes = sandboxes
        self._images = Images(around.backend, pull_policy)

    async def spawn(self, wanted: Wanted, call: SpawnCall, principal: Principal) -> Container:
        """Make a container; it runs when this returns. It is one transaction: else nothing is left of it.

        ``wanted`` is what the call gets. Raises CONTAINER_LIMIT, and what resolving the image and making do.
        """
        self._require_room(principal)
        container = Container(
            identity=Identity(
                installation=self._around.installation,
                container_id=str(uuid.uuid4()),
                owner=principal.name,
                task=call.task,
                image=str(wanted.reference),
                image_id="",
                uid=0,
                gid=0,
                created_ms=now_ms(),
                grant=wanted.grant,
                template=wanted.template,
                agent_id=call.agent_id,
                request_id=call.request_id,
                workspace_read_only=call.workspace.read_only,
                labels=dict(call.labels),
                env_names=tuple(sorted(call.env)),
            ),
            status=Status(),
        )
        entry = Entry(container.container_id)
        self._lifecycle.entries[entry.container_id] = entry
        self._registry.place(container)

        async def tell(pull: Pull) -> None:
            await self._registry.put(replace(container, pull=pull), keep=False)

        async def make() -> Container:
            async with entry.lock:
                try:
                    image = await self._images.resolve(wanted.reference, tell)
                    made = await Making(self._around, entry, wanted, call, image).make(container)
                except BaseException:
                    # Whole, also when the caller leaves meanwhile.
                    await uninterrupted(self._undo(entry))
                    raise
                self._lifecycle.began(entry, made)
                return made

        try:
            return await self._tasks.to_its_end(make(), f"spawn {entry.container_id}")
        except asyncio.CancelledError:
            if self._registry.get(entry.container_id) is not None:
                # It was done in the moment in which its caller left, who knows nothing of it.
                await uninterrupted(self._discard(entry))
            raise

    def _require_room(self, principal: Principal) -> None:
        active = sum(container.active for container in self._registry)
        own = self._sandboxes.of(principal.name)
        most = principal.limits.max_sandboxes
        if active >= self._max_containers:
            raise ClawboxError(
                Reason.CONTAINER_LIMIT,
                "{active} containers are active; the server allows no more",
                retry_after=LIMIT_RETRY_SECONDS,
                active=active,
            )
        if most is not None and own >= most:
            raise ClawboxError(
                Reason.CONTAINER_LIMIT,
                "{principal} has as many runs and containers together as its token allows: {active}",
                retry_after=LIMIT_RETRY_SECONDS,
                active=own,
                principal=principal.name,
            )

    async def _discard(self, entry: Entry) -> None:
        """Leave nothing of a container that runs, and that nobody was told of, as :meth:`_undo`."""
        made = entry.workspace is not None and entry.workspace.made
        try:
            await self._lifecycle.end(entry, Ending.KILL, 0)
            async with asyncio.timeout(DISCARD_SECONDS):
                await self._registry.until(entry.container_id, lambda one: not one.active)
            await self._lifecycle.forget(entry, delete_workspace=made)
        except (ClawboxError, TimeoutError) as error:
            _log.warning("container %s, which nobody waited for, is left: %s", entry.container_id, error)

    async def _undo(self, entry: Entry) -> None:
        """Leave nothing of a container that was not made, but a workspace that was there before."""
        await entry.local.give_back()
        await entry.lasting.give_back()
        await self._lifecycle.let_go(entry)
        if entry.workspace is not None and self._is_nobodys(entry.container_id, entry.workspace):
            with contextlib.suppress(ClawboxError, OSError):
                await self._around.workspaces.delete(entry.workspace.owner, entry.workspace.workspace_id)
        await self._registry.forget_or_drop(entry.container_id)

    def _is_nobodys(self, container_id: str, workspace: Workspace) -> bool:
        """Whether a workspace goes with a container that was not made.

        One that was to go with a container before it does, too, when no other is left to take it along.
        """
        having = self._registry.having(workspace.owner, workspace.workspace_id)
        others = any(one.container_id != container_id for one in having)
        return workspace.made or not (workspace.kept or others)
