"""Containers as callers have them: made, found, watched, ended and forgotten, each by whom it belongs to.

async with ContainerManager(...) as containers:
    container = await containers.spawn(call, principal)
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from clawbox.containers.backend import ConflictError, EngineError
from clawbox.containers.failures import engine_refused
from clawbox.containers.lifecycle import Lifecycle
from clawbox.containers.monitor import Monitor
from clawbox.containers.record import Container, EgressState
from clawbox.containers.registry import not_found
from clawbox.containers.spawning import Spawning
from clawbox.containers.states import Ending, Operation, Paused, Resumed, State, after, require
from clawbox.containers.status import ContainersStatus
from clawbox.containers.tasks import Tasks
from clawbox.containers.wanted import check
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from clawbox.audit import Audit
    from clawbox.auth import Principal
    from clawbox.config.containers import ImageTemplate
    from clawbox.containers.calls import ContainerFilter, SpawnCall, WatchEvent
    from clawbox.containers.entry import Entry
    from clawbox.containers.pulling import PullPolicy
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.terms import Surroundings
    from clawbox.containers.wanted import Offer
    from clawbox.sandboxes import Sandboxes
    from clawbox.store import ContainerRows

DEFAULT_GRACE_MS: Final = 10_000


class ContainerManager:
    """All containers of one server, while entered."""

    def __init__(
        self,
        around: Surroundings,
        offer: Offer,
        rows: ContainerRows,
        *,
        max_containers: int,
        sandboxes: Sandboxes,
        pull_policy: PullPolicy,
        audit: Audit,
        expected: bool = True,
        stop_at_end: bool = True,
        stop_seconds: float = DEFAULT_GRACE_MS / 1000,
    ) -> None:
        """``expected``: whether there is meant to be an engine.

        ``stop_at_end``: leaving stops all containers; else they are left for the next server.
        """
        self._around = around
        self._registry = around.registry
        self._offer = offer
        self._rows = rows
        sandboxes.count_also(self.active_of)
        self._expected = expected
        self._stop_at_end = stop_at_end
        self._stop_seconds = stop_seconds
        self._tasks = Tasks()
        self._lifecycle = Lifecycle(around, self._tasks.start)
        self._spawning = Spawning(
            around,
            self._lifecycle,
            self._tasks,
            max_containers=max_containers,
            sandboxes=sandboxes,
            pull_policy=pull_policy,
        )
        self.monitor = Monitor(around, self._lifecycle, audit)
        self._open = False

    async def __aenter__(self) -> Self:
        await self.monitor.restore(self._rows)
        self._lifecycle.bound()
        self._open = True
        self._tasks.start(self.monitor.run(), "containers' engine")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._stop_at_end:
            await self._stop_all()
        await self._tasks.cancel_all()
        for entry in list(self._lifecycle.entries.values()):
            entry.cancel_timer()
            await entry.local.give_back()

    @property
    def templates(self) -> Mapping[str, ImageTemplate]:
        """What the operator configured, by name."""
        return self._offer.templates

    @property
    def offer(self) -> Offer:
        """What callers may ask for."""
        return self._offer

    def status(self) -> ContainersStatus:
        """How it is with them."""
        active = sum(container.active for container in self._registry)
        return ContainersStatus(
            engine=self.monitor.engine,
            problem=self.monitor.problem,
            expected=self._expected or bool(self.monitor.default_runtime),
            active=active,
            finished=len(self._registry) - active,
            runtime=self._around.engine.runtime or self.monitor.default_runtime,
        )

    def count(self, state: State) -> int:
        """How many containers are in a state."""
        return sum(container.status.state is state for container in self._registry)

    def active_of(self, owner: str) -> int:
        """How many active containers a principal has."""
        return sum(container.active and container.owner == owner for container in self._registry)

    # To ask

    def find(self, container_id: str, principal: Principal) -> Container:
        """The container as it is now. Raises CONTAINER_NOT_FOUND, also for one that is another's."""
        container = self._registry.get(container_id)
        if container is None or not _may_see(container, principal):
            raise not_found(container_id)
        return self._as_it_is(container)

    def quarters(self, container_id: str) -> Quarters:
        """What control holds of a container. Raises CONTAINER_NOT_FOUND, WRONG_STATE, DOCKER_UNAVAILABLE."""
        entry = self._lifecycle.entries.get(container_id)
        container = self._registry.get(container_id)
        if container is None:
            raise not_found(container_id)
        if entry is None or entry.quarters is None:
            require(container.status, Operation.READ, container_id)
            raise self.monitor.unavailable()
        return entry.quarters

    def list(
        self, principal: Principal, wanted: ContainerFilter, after: str = "", limit: int = 100
    ) -> list[Container]:
        """At most ``limit`` containers, newest first, of those behind ``after`` (:meth:`position`)."""
        found = sorted(
            (one for one in self._registry if _may_see(one, principal) and wanted.matches(one)),
            key=_age,
            reverse=True,
        )
        if after:
            mark = _mark(after)
            found = [one for one in found if _age(one) < mark]
        return [self._as_it_is(one) for one in found[:limit]]

    @staticmethod
    def position(container: Container) -> str:
        """What :meth:`list` takes as ``after`` to go on behind a container, which may be gone by then."""
        created, container_id = _age(container)
        return f"{created}:{container_id}"

    def watch(
        self, principal: Principal, wanted: ContainerFilter, after_revision: str = ""
    ) -> AsyncGenerator[WatchEvent]:
        """What is there, then what changes. Raises SLOW_READER."""
        return self._registry.watch(
            lambda one: _may_see(one, principal) and wanted.matches(one), after_revision
        )

    async def wait(self, container_id: str, principal: Principal) -> Container:
        """The container once it has finished. Raises CONTAINER_NOT_FOUND."""
        self.find(container_id, principal)
        return await self._registry.until(container_id, lambda one: not one.active)

    # To change

    async def spawn(self, call: SpawnCall, principal: Principal) -> Container:
        """Make a container; it runs when this returns. It is one transaction: else nothing is left of it.

        Raises INVALID_FIELD, POLICY_DENIED, CREDENTIAL_NOT_ALLOWED, IMAGE_NOT_ALLOWED, TEMPLATE_NOT_FOUND,
        CONTAINER_LIMIT, WORKSPACE_LIMIT, IMAGE_NOT_FOUND, IMAGE_REFUSED, WRONG_STATE (its workspace is in
        use), ENGINE_REFUSED, DOCKER_UNAVAILABLE, SANDBOX_UNAVAILABLE, STATE_UNAVAILABLE, SHUTTING_DOWN.
        """
        wanted = check(call, principal, self._offer)
        if call.workspace.stays:
            await self._around.workspaces.require_room(principal.name, call.workspace.workspace_id)
        if not self._open:
            raise ClawboxError(Reason.SHUTTING_DOWN, "the server is stopping")
        self.monitor.require()
        return self._as_it_is(await self._spawning.spawn(wanted, call, principal))

    async def stop(self, container_id: str, principal: Principal, grace_ms: int | None = None) -> Container:
        """End its program by its stop signal, and by SIGKILL after a grace period in milliseconds."""
        grace = DEFAULT_GRACE_MS if grace_ms is None else grace_ms
        return await self._end(container_id, principal, Ending.STOP if grace else Ending.KILL, grace / 1000)

    async def kill(self, container_id: str, principal: Principal) -> Container:
        """Kill everything in it at once."""
        return await self._end(container_id, principal, Ending.KILL, 0)

    async def remove(
        self,
        container_id: str,
        principal: Principal,
        *,
        force: bool = False,
        delete_workspace: bool | None = None,
    ) -> None:
        """Forget a finished container; ``force`` kills it first. Raises WRONG_STATE for an active one.

        Raises WORKSPACE_LIMIT where its workspace is to stay and would be one too many: then nothing is done.
        """
        container = self.find(container_id, principal)
        if container.active:
            if not force:
                require(container.status, Operation.REMOVE, container_id)
            workspace_id = container.identity.workspace_id
            if delete_workspace is False and workspace_id:
                await self._around.workspaces.require_room(container.owner, workspace_id)
            await self.kill(container_id, principal)
        entry = self._lifecycle.entries.get(container_id)
        if entry is None:
            raise not_found(container_id)  # it was just forgotten, its retention being over
        await self._tasks.to_its_end(
            self._lifecycle.forget(entry, delete_workspace=delete_workspace), f"forget {container_id}"
        )

    async def pause(self, container_id: str, principal: Principal) -> Container:
        """Freeze its processes. Raises WRONG_STATE."""
        return await self._freeze(container_id, principal, Operation.PAUSE)

    async def resume(self, container_id: str, principal: Principal) -> Container:
        """Let its processes go on. Raises WRONG_STATE."""
        return await self._freeze(container_id, principal, Operation.RESUME)

    async def _freeze(self, container_id: str, principal: Principal, operation: Operation) -> Container:
        self.find(container_id, principal)
        entry, backend = self._entry(container_id), self._around.backend
        pausing = operation is Operation.PAUSE
        async with entry.lock:
            container = self.find(container_id, principal)
            require(container.status, operation, container_id)
            if container.status.state is (State.PAUSED if pausing else State.RUNNING):
                return container
            act = backend.pause if pausing else backend.unpause
            try:
                await act(container.engine_id)
            except ConflictError:
                pass  # it is so already, or it just ended: another look tells
            except EngineError as error:
                self._lifecycle.look(container_id)
                raise engine_refused(operation.value, error) from error
            else:
                status = after(container.status, Paused() if pausing else Resumed())
                await self._registry.put(replace(container, status=status))
                return self.find(container_id, principal)
        self._lifecycle.look(container_id)
        return self.find(container_id, principal)

    async def _end(
        self, container_id: str, principal: Principal, ending: Ending, grace_seconds: float
    ) -> Container:
        container = self.find(container_id, principal)
        if not container.active:
            return container
        if container.status.state is State.CREATING:
            raise ClawboxError(
                Reason.WRONG_STATE,
                "the container {container_id} is being made; cancel its Spawn",
                precondition=("STATE", container_id),
                container_id=container_id,
                state=container.status.state.name,
            )
        await self._lifecycle.end(self._entry(container_id), ending, grace_seconds)
        return await self._registry.until(container_id, lambda one: not one.active)

    def _entry(self, container_id: str) -> Entry:
        """Of an active container that this server holds. Raises DOCKER_UNAVAILABLE while it does not yet."""
        entry = self._lifecycle.entries.get(container_id)
        if entry is None or entry.quarters is None:
            raise self.monitor.unavailable()
        return entry

    # Within

    async def _stop_all(self) -> None:
        active = [one for one in self._registry if one.status.state in {State.RUNNING, State.PAUSED}]
        # What was never taken over, because the engine was away, is the next server's.
        entries = [self._lifecycle.entries.get(one.container_id) for one in active]
        held = [entry for entry in entries if entry is not None and entry.quarters is not None]
        # Killed after the grace; engine or state may be away, and then the next start sees how they ended.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._stop_seconds + DEFAULT_GRACE_MS / 1000):
                await asyncio.gather(*map(self._stop_at_last, held))

    async def _stop_at_last(self, entry: Entry) -> None:
        with contextlib.suppress(ClawboxError):
            await self._lifecycle.end(entry, Ending.SHUTDOWN, self._stop_seconds)
            await self._registry.until(entry.container_id, lambda one: not one.active)

    def _as_it_is(self, container: Container) -> Container:
        """With what only its sidecar knows."""
        entry = self._lifecycle.entries.get(container.container_id)
        door = None if entry is None or entry.quarters is None else entry.quarters.door
        if door is None or not container.active or door.serving or container.egress is EgressState.DIRECT:
            return container
        detail = door.failure or "its sidecar is being restarted"
        return replace(container, egress=EgressState.RESTARTING, egress_detail=detail)


def _may_see(container: Container, principal: Principal) -> bool:
    return principal.is_admin or container.owner == principal.name


def _age(container: Container) -> tuple[int, str]:
    return container.identity.created_ms, container.container_id


def _mark(position: str) -> tuple[int, str]:
    created, _, container_id = position.partition(":")
    if not created.isdecimal():
        raise ClawboxError(
            Reason.INVALID_PAGE_TOKEN,
            "the page token is not one that {method} returned for this request",
            method="List",
        )
    return int(created), container_id
