"""One run of a tool, from the request to what may be shown: catalog, policy, pool, output scan, audit."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from clawbox.audit import Audit, Record, recorded
from clawbox.errors import ClawboxError, FieldViolation, Reason
from clawbox.policy import PrincipalTerms, Requested, ToolCeiling, ToolGrant, narrow_tool
from clawbox.sandboxes import Sandboxes
from clawbox.wasm.known_secrets import KnownSecrets
from clawbox.wasm.model import InvalidInputError, OnEvent, Outcome, Run, RunEvent, RunResult
from clawbox.wasm.output import Report, Scanned

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.auth import Principal
    from clawbox.egress.door import CallDoor, Door
    from clawbox.wasm.output import OutputScanner
    from clawbox.wasm.tool_entry import ToolEntry

RETRY_SECONDS = 1.0
"""After which a principal that runs as much as it may can try again."""


class Tools(Protocol):
    """Where tools come from: :class:`clawbox.wasm.catalog.Catalog`."""

    async def ready(self, name: str, principal: Principal) -> ToolEntry:
        """The tool, once it is compiled. Raises TOOL_NOT_FOUND, TOOL_NOT_READY."""

    def owner_terms(self, entry: ToolEntry) -> PrincipalTerms | None:
        """What bounds the tool's owner."""


class Pool(Protocol):
    """What runs tools: :class:`clawbox.wasm.pool.WorkerPool`."""

    async def run(self, run: Run, on_event: OnEvent | None = None, door: CallDoor | None = None) -> RunResult:
        """Run once. Raises InvalidInputError, SANDBOX_UNAVAILABLE; cancelling kills the run."""


class ExecutionMetrics(Protocol):
    """Where it is counted: :class:`clawbox.telemetry.Metrics`."""

    def execution_ended(self, *, tool: str, outcome: str, duration_us: int, fuel_consumed: int) -> None:
        """A run ended."""

    def output_sanitized(self, issues: int) -> None:
        """The output of a run had so many findings."""


@dataclass(frozen=True, slots=True)
class ExecuteCall:
    """What a caller wants to be run."""

    tool: str
    params: bytes
    """JSON text, UTF-8, checked."""
    request_id: str
    requested: Requested | None = None
    agent_id: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The request was accepted: the tool is there, the caller may run it, and the run is about to begin."""

    tool_digest: str


ExecutionEvent = Started | RunEvent
"""What happens in an execution before it ends; text in it was searched and may be shown."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of a run, searched and safe to show."""

    tool_digest: str
    scanned: Scanned


class Executor:
    """Runs tools for principals. Each execution gives exactly one row in the audit log."""

    def __init__(
        self,
        tools: Tools,
        pool: Pool,
        *,
        ceiling: ToolCeiling,
        scanner: OutputScanner,
        audit: Audit,
        metrics: ExecutionMetrics,
        door: Door | None = None,
        sandboxes: Sandboxes | None = None,
    ) -> None:
        """``door`` None: this server has no way out for any run; one that was granted some is told so.

        ``sandboxes`` None: principals have none but these runs.
        """
        self._tools = tools
        self._pool = pool
        self._ceiling = ceiling
        self._scanner = scanner
        self._audit = audit
        self._metrics = metrics
        self._door = door
        self._running: Counter[str] = Counter()
        self._sandboxes = Sandboxes() if sandboxes is None else sandboxes
        self._sandboxes.count_also(self._running.__getitem__)

    async def execute(
        self,
        call: ExecuteCall,
        principal: Principal,
        on_event: Callable[[ExecutionEvent], None] | None = None,
    ) -> Execution:
        """Run a tool once.

        ``on_event`` gets what happens while it runs, on the event loop, in order. Cancelling kills the run.
        Raises ClawboxError when nothing could be run: NOT_SERVED, AUDIT_UNAVAILABLE, EXECUTION_LIMIT,
        TOOL_NOT_FOUND, TOOL_NOT_READY, POLICY_DENIED, CREDENTIAL_NOT_ALLOWED, INVALID_FIELD, INVALID_INPUT,
        SANDBOX_UNAVAILABLE. REDACTION_UNAVAILABLE: it ran, and what it gave cannot be shown.
        """
        with recorded(
            self._audit, "execute", principal=principal.name, request_id=call.request_id, tool=call.tool
        ) as record:
            began = time.perf_counter()
            try:
                execution = await self._run(call, principal, on_event, record)
            except asyncio.CancelledError:
                if "digest" in record.fields:
                    spent = round((time.perf_counter() - began) * 1e6)
                    self._count(call.tool, Outcome.CANCELLED, spent, 0)
                raise
            result, report = execution.scanned.result, execution.scanned.report
            record.decision = result.outcome.value
            record.fields |= {
                "duration_us": result.duration_us,
                "fuel": result.fuel_consumed,
                "egress_calls": result.egress_calls,
            }
            if report.findings:
                record.fields["findings"] = _counts(report)
                self._metrics.output_sanitized(report.issues_found)
            self._count(call.tool, result.outcome, result.duration_us, result.fuel_consumed)
            return execution

    async def _run(
        self,
        call: ExecuteCall,
        principal: Principal,
        on_event: Callable[[ExecutionEvent], None] | None,
        record: Record,
    ) -> Execution:
        if call.agent_id:
            raise ClawboxError(
                Reason.NOT_SERVED,
                "agent_id: this server serves no agents",
                violations=[FieldViolation("agent_id", "this server serves no agents", "not_served")],
                field="agent_id",
            )
        self._take_place(principal)
        try:
            entry = await self._tools.ready(call.tool, principal)
            assert entry.code is not None  # which is what ready means
            owner = self._tools.owner_terms(entry)
            grant = narrow_tool(call.requested, entry.manifest, principal.limits, owner, self._ceiling)
            digest = entry.code.digest
            record.fields |= {"digest": digest, **_summary(grant)}
            run = Run(entry.code, principal.name, call.params, grant.limits, bool(grant.network.rules))
            async with self._way_out(principal, grant, call) as door:
                secrets = KnownSecrets(door) if door is not None and door.has_secrets else None
                try:
                    if on_event is None:
                        result = await self._pool.run(run, None, door)
                    else:
                        on_event(Started(digest))
                        result = await self._run_watched(run, on_event, door, secrets)
                except InvalidInputError as error:
                    raise _invalid_input(call.tool, error) from None
                return Execution(digest, await self._shown(result, secrets))
        finally:
            self._give_place_back(principal)

    def _way_out(
        self, principal: Principal, grant: ToolGrant, call: ExecuteCall
    ) -> contextlib.AbstractAsyncContextManager[CallDoor | None]:
        if self._door is None or not grant.network.rules:
            return contextlib.nullcontext()
        return self._door.call(principal.name, grant, call.request_id)

    async def _shown(self, result: RunResult, secrets: KnownSecrets | None) -> Scanned:
        """The result as it may be shown. Raises REDACTION_UNAVAILABLE."""
        if secrets is None:
            return await self._scanner.scan(result)
        cleaned, known = await secrets.clean(result)
        scanned = await self._scanner.scan(cleaned)
        return replace(scanned, report=_both(known, scanned.report))

    async def _run_watched(
        self,
        run: Run,
        on_event: Callable[[ExecutionEvent], None],
        door: CallDoor | None,
        secrets: KnownSecrets | None,
    ) -> RunResult:
        events = self._scanner.stream()

        def forward(event: RunEvent) -> None:
            for shown in events.feed(event):
                on_event(shown)

        if secrets is None:
            result = await self._pool.run(run, forward, door)
        else:
            result = await secrets.watch(lambda tell: self._pool.run(run, tell, door), forward)
        for shown in events.flush():
            on_event(shown)
        return result

    def _take_place(self, principal: Principal) -> None:
        most, running = principal.limits.max_sandboxes, self._sandboxes.of(principal.name)
        if most is not None and running >= most:
            raise ClawboxError(
                Reason.EXECUTION_LIMIT,
                "{running} of the {limit} sandboxes that {principal} may have at once are running",
                retry_after=RETRY_SECONDS,
                running=running,
                limit=most,
                principal=principal.name,
            )
        self._running[principal.name] += 1

    def _give_place_back(self, principal: Principal) -> None:
        self._running[principal.name] -= 1
        if not self._running[principal.name]:
            del self._running[principal.name]

    def _count(self, tool: str, outcome: Outcome, duration_us: int, fuel: int) -> None:
        self._metrics.execution_ended(
            tool=tool, outcome=outcome.value, duration_us=duration_us, fuel_consumed=fuel
        )


def _summary(grant: ToolGrant) -> dict[str, Any]:
    """What an audit row says of a grant."""
    limits = grant.limits
    return {
        "network": [str(rule) for rule in grant.network.rules],
        "credentials": sorted(grant.credentials),
        "timeout_ms": limits.timeout_ms,
        "memory_bytes": limits.memory_bytes,
        "max_fuel": limits.fuel,
    }


def _both(first: Report, second: Report) -> Report:
    return Report((*first.findings, *second.findings), (*first.actions_taken, *second.actions_taken))


def _counts(report: Report) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for finding in report.findings:
        counts[finding.pattern] += finding.count
    return dict(counts)


def _invalid_input(tool: str, error: InvalidInputError) -> ClawboxError:
    violations = [
        FieldViolation(f"params{violation.path}", violation.message, violation.rule)
        for violation in error.violations
    ]
    first = violations[0] if violations else FieldViolation("params", "does not match", "")
    return ClawboxError(
        Reason.INVALID_INPUT,
        "{field}: {description}" + (" (and {more} more)" if len(violations) > 1 else ""),
        violations=violations,
        tool=tool,
        field=first.field,
        description=first.description,
        rule=first.rule,
        more=max(0, len(violations) - 1),
    )
