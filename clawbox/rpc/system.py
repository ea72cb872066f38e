"""The System service: what this server is, how its parts do, and what happens on it."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

from clawbox_client.v1 import system_pb2, system_pb2_grpc

from clawbox import __version__
from clawbox.containers import status as containers_status
from clawbox.errors import invalid_field
from clawbox.rpc import convert
from clawbox.rpc.call import current

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from clawbox.audit import AuditLog
    from clawbox.children.enforcement import Enforcement
    from clawbox.containers.status import ContainersStatus
    from clawbox.egress.supervisor import EgressStatus
    from clawbox.rpc.call import Context
    from clawbox.store import StoreStatus
    from clawbox.wasm.pool import PoolStats

_MAX_KINDS = 64
_NOT_SERVED = "not part of this server"


class PoolStatus(Protocol):
    """What is asked of the workers: :class:`clawbox.wasm.pool.WorkerPool`."""

    def stats(self) -> PoolStats:
        """What the pool holds now."""

    def enforcements(self) -> tuple[Enforcement, ...]:
        """What confines the workers on this machine, and what does not."""


class ExecutionPlaces(Protocol):
    """How many executions there are: :class:`clawbox.rpc.limits.ExecutionLimit`."""

    @property
    def running(self) -> int:
        """Executions that have a place."""

    @property
    def queued(self) -> int:
        """Executions that wait for one."""


class Tokens(Protocol):
    """What is asked of the tokens: :class:`clawbox.auth.TokenTable`."""

    problem: str | None
    """Why the settings file's newest tokens are not in force."""

    def __len__(self) -> int:
        """How many there are."""


class Egress(Protocol):
    """What is asked of the sandboxes' ways out: :class:`clawbox.app.Egress`."""

    problem: str
    """Why there is none; empty: there is one."""

    def status(self) -> EgressStatus | None:
        """How its parts do; None where there are none."""

    def enforcements(self) -> tuple[Enforcement, ...]:
        """What confines its processes on this machine, and what does not."""


class Containers(Protocol):
    """What is asked of containers: :class:`clawbox.containers.manager.ContainerManager`."""

    def status(self) -> ContainersStatus:
        """How they do."""


class State(Protocol):
    """What is asked of what is remembered: :class:`clawbox.store.Store`."""

    def status(self) -> StoreStatus:
        """How it does."""


class SystemServicer(system_pb2_grpc.SystemServicer):
    """Tells about the server. It has run since it was made."""

    def __init__(
        self,
        pool: PoolStatus,
        audit: AuditLog,
        executions: ExecutionPlaces,
        tokens: Tokens,
        egress: Egress,
        *,
        containers: Containers | None = None,
        no_containers: str = _NOT_SERVED,
        state: State | None = None,
    ) -> None:
        """``no_containers``: why there are none, where ``containers`` is None."""
        self._egress = egress
        self._containers = containers
        self._no_containers = no_containers
        self._state = state
        self._tokens = tokens
        self._pool = pool
        self._audit = audit
        self._executions = executions
        self._started_ns = time.time_ns()
        self._started = time.monotonic_ns()

    async def GetStatus(  # noqa: N802
        self, _request: system_pb2.GetStatusRequest, _context: Context
    ) -> system_pb2.GetStatusResponse:
        """How the server and its parts do."""
        containers = None if self._containers is None else self._containers.status()
        components = [
            self._wasm_engine(),
            self._audit_log(),
            self._token_table(),
            *self._way_out(),
            self._engine(containers),
            *self._what_is_kept(),
            system_pb2.Component(
                name="agents", state=system_pb2.COMPONENT_STATE_DISABLED, detail=_NOT_SERVED
            ),
        ]
        well = {system_pb2.COMPONENT_STATE_OK, system_pb2.COMPONENT_STATE_DISABLED}
        response = system_pb2.GetStatusResponse(
            status="ok" if all(component.state in well for component in components) else "degraded",
            version=__version__,
            components=components,
            running_executions=self._executions.running,
            queued_executions=self._executions.queued,
            enforcements=[
                system_pb2.Enforcement(name=found.name, in_force=found.in_force, detail=found.detail)
                for found in (
                    *self._pool.enforcements(),
                    *self._egress.enforcements(),
                    *(() if containers is None else containers_status.enforcements(containers)),
                )
            ],
        )
        if containers is not None:
            response.active_containers = containers.active
            response.container_runtime = containers.runtime
        response.start_time.FromNanoseconds(self._started_ns)
        response.uptime.FromNanoseconds(time.monotonic_ns() - self._started)
        return response

    async def WatchAudit(  # noqa: N802
        self, request: system_pb2.WatchAuditRequest, _context: Context
    ) -> AsyncGenerator[system_pb2.WatchAuditResponse]:
        """Stream audit rows: everyone's for an administrator, the caller's own for anybody else."""
        principal = current().principal
        if len(request.kinds) > _MAX_KINDS:
            raise invalid_field("kinds", f"has more than {_MAX_KINDS} entries", "max_items")
        rows = self._audit.watch(
            after_sequence=request.after_sequence if request.HasField("after_sequence") else None,
            kinds=frozenset(request.kinds),
            principal=None if principal.is_admin else principal.name,
        )
        async with aclosing(rows):
            async for row in rows:
                yield system_pb2.WatchAuditResponse(row=convert.audit_row(row))

    def _wasm_engine(self) -> system_pb2.Component:
        stats = self._pool.stats()
        state, detail = (
            system_pb2.COMPONENT_STATE_OK,
            f"{stats.workers} workers, {stats.lost_total} lost so far",
        )
        if not stats.workers and not stats.starting:
            state, detail = system_pb2.COMPONENT_STATE_DOWN, "no worker process runs; the log says why"
        return system_pb2.Component(name="wasm_engine", state=state, detail=detail)

    def _engine(self, status: ContainersStatus | None) -> system_pb2.Component:
        if status is None:
            state, detail = system_pb2.COMPONENT_STATE_DISABLED, self._no_containers
        else:
            well = status.engine is not None and not status.problem
            away = system_pb2.COMPONENT_STATE_DOWN if status.expected else system_pb2.COMPONENT_STATE_DISABLED
            state = system_pb2.COMPONENT_STATE_OK if well else away
            detail = containers_status.engine_detail(status)
        return system_pb2.Component(name="docker", state=state, detail=detail)

    def _what_is_kept(self) -> tuple[system_pb2.Component, ...]:
        if self._state is None:
            return ()
        status = self._state.status()
        state, detail = system_pb2.COMPONENT_STATE_OK, _with(status.place, status.reserve_problem)
        if status.failure:
            state, detail = system_pb2.COMPONENT_STATE_DOWN, f"{status.place}: {status.failure}"
        return (system_pb2.Component(name="state", state=state, detail=detail),)

    def _way_out(self) -> tuple[system_pb2.Component, ...]:
        status = self._egress.status()
        if status is None:
            return (
                system_pb2.Component(
                    name="egress",
                    state=system_pb2.COMPONENT_STATE_DOWN,
                    detail=f"sandboxes reach nothing: {self._egress.problem}",
                ),
            )
        missing = [name for name, runs in (("keeper", status.keeper), ("dialer", status.dialer)) if not runs]
        state, detail = system_pb2.COMPONENT_STATE_OK, f"{status.sidecars} sidecars"
        if not status.started:
            detail = "starts with the first sandbox that may reach anything"
        elif missing:
            state = system_pb2.COMPONENT_STATE_DOWN
            detail = f"nothing can be reached: no {' and no '.join(missing)} runs; the log says why"
        elif status.down:
            # Whose sidecars crash is for the log to say: a sandbox must not make the server look ill.
            detail += f"; {status.down} sandboxes have no way out just now"
        credentials = system_pb2.Component(
            name="credentials",
            state=system_pb2.COMPONENT_STATE_OK,
            detail="usable" if status.keeper else "not read yet",
        )
        if status.credential_fault:
            credentials.state = system_pb2.COMPONENT_STATE_DEGRADED
            credentials.detail = status.credential_fault
        return system_pb2.Component(name="egress", state=state, detail=detail), credentials

    def _token_table(self) -> system_pb2.Component:
        if self._tokens.problem is not None:
            return system_pb2.Component(
                name="tokens",
                state=system_pb2.COMPONENT_STATE_DEGRADED,
                detail=f"the newest are not in force: {self._tokens.problem}",
            )
        detail = f"{len(self._tokens)} in force"
        return system_pb2.Component(name="tokens", state=system_pb2.COMPONENT_STATE_OK, detail=detail)

    def _audit_log(self) -> system_pb2.Component:
        state, detail = system_pb2.COMPONENT_STATE_OK, _with("written", self._audit.reserve_problem)
        if not self._audit.available():
            refuses = self._audit.refuses
            state = system_pb2.COMPONENT_STATE_DOWN if refuses else system_pb2.COMPONENT_STATE_DEGRADED
            then = "calls are refused" if refuses else f"{self._audit.lost} rows are lost"
            detail = f"cannot be written ({self._audit.failure}); {then}"
        return system_pb2.Component(name="audit", state=state, detail=detail)


def _with(detail: str, problem: str) -> str:
    """A detail, and why no room is kept on its disk (docs/security.md, 99)."""
    return f"{detail}; no room is kept for it: {problem}" if problem else detail
