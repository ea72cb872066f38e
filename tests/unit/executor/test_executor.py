"""One execution: narrowed, run, searched, counted, and written down exactly once whatever becomes of it."""

import asyncio
from datetime import UTC, datetime

import pytest

from clawbox.audit import AuditLog, AuditRow
from clawbox.auth import Principal, PrincipalLimits
from clawbox.errors import ClawboxError, Reason
from clawbox.network_rules import NetworkRule
from clawbox.policy import NOTHING, Requested, ToolCeiling
from clawbox.sandboxes import Sandboxes
from clawbox.wasm.executor import ExecuteCall, Executor, Started
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.model import (
    Abi,
    InvalidInputError,
    Level,
    LogEntry,
    Outcome,
    OutputChunk,
    OutputStream,
    RunEvent,
    RunResult,
    ToolCode,
    Violation,
)
from clawbox.wasm.output import OutputScanner
from clawbox.wasm.tool_entry import ToolEntry, ToolState

DIGEST = "d" * 64
SECRET = "ghp_" + "a1B2" * 9
CEILING = ToolCeiling(
    default_timeout_ms=30_000,
    max_timeout_ms=120_000,
    default_memory_mb=256,
    max_memory_mb=1024,
    default_fuel=10**8,
    max_fuel=10**11,
    network=(NetworkRule("a.example"), NetworkRule("b.example")),
    credentials=frozenset({"k"}),
)
ANN = Principal("ann", frozenset({"sandbox:execute"}))
MANIFEST = Manifest.from_value(
    {
        "tool": {"name": "echo", "description": "x"},
        "network": {"allowlist": ["a.example", "b.example"]},
        "credentials": {"available": ["k"]},
    }
)


class FakeTools:
    """One tool, ``echo``, of somebody."""

    def __init__(self, owner="", terms=None):
        self.terms = terms
        self.entry = ToolEntry(
            name="echo",
            manifest=MANIFEST,
            has_manifest=True,
            owner=owner,
            published=True,
            state=ToolState.READY,
            load_error="",
            warnings=(),
            code=ToolCode(name="echo", digest=DIGEST, abi=Abi.COMPONENT, artifact="/nowhere"),
            size_bytes=1,
            update_time=datetime.now(UTC),
            builtin=False,
        )

    async def ready(self, name, principal):
        if name != "echo":
            raise ClawboxError(Reason.TOOL_NOT_FOUND, "there is no tool {tool}", tool=name)
        return self.entry

    def owner_terms(self, entry):
        return self.terms


class FakePool:
    """Runs nothing: does what the test says."""

    def __init__(self):
        self.runs = []
        self.doors = []
        self.cancelled = False
        self.result = RunResult(Outcome.OK, output=b"null", duration_us=7, fuel_consumed=9)
        self.error = None
        self.events: tuple[RunEvent, ...] = ()
        self.hold = None
        self.began = asyncio.Event()

    async def run(self, run, on_event=None, door=None):
        self.runs.append(run)
        self.doors.append(door)
        self.began.set()
        for event in self.events:
            assert on_event is not None
            on_event(event)
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if self.error is not None:
            raise self.error
        return self.result


class Counts:
    def __init__(self):
        self.ended = []
        self.issues = 0

    def execution_ended(self, **what):
        self.ended.append(what)

    def output_sanitized(self, issues):
        self.issues += issues


class Bench:
    """An executor with its surroundings."""

    def __init__(self, audit, tools=None, on_injection="mark", door=None):
        self.sandboxes = Sandboxes()
        self.audit = audit
        self.pool = FakePool()
        self.metrics = Counts()
        self.executor = Executor(
            tools or FakeTools(),
            self.pool,
            ceiling=CEILING,
            scanner=OutputScanner(on_injection),
            audit=audit,
            metrics=self.metrics,
            door=door,
            sandboxes=self.sandboxes,
        )

    async def execute(self, principal=ANN, on_event=None, tool="echo", **fields):
        call = ExecuteCall(tool=tool, params=b'{"a":1}', request_id="r1", **fields)
        return await self.executor.execute(call, principal, on_event)

    async def rows(self):
        """Every row so far; one is added to see the end."""
        end = self.audit.append("end")
        found: list[AuditRow] = []
        async for row in self.audit.watch(after_sequence=0):
            if row.sequence == end:
                return found
            found.append(row)
        return found


@pytest.fixture
async def audit(tmp_path):
    async with AuditLog(tmp_path) as log:
        yield log


@pytest.fixture
def bench(audit):
    return Bench(audit)


async def refused(bench, reason, **fields):
    with pytest.raises(ClawboxError) as caught:
        await bench.execute(**fields)
    assert caught.value.reason is reason
    [row] = await bench.rows()
    assert (row.kind, row.principal, row.request_id) == ("execute", "ann", "r1")
    assert row.fields["reason"] == reason.name
    return caught.value, row


async def test_a_run_is_narrowed_counted_and_written_down_once(bench):
    execution = await bench.execute(
        requested=Requested(network=(NetworkRule("a.example"),), credentials=("k",), timeout_ms=5)
    )
    assert (execution.tool_digest, execution.scanned.result.output) == (DIGEST, b"null")
    [run] = bench.pool.runs
    assert (run.owner, run.params, run.limits.timeout_ms) == ("ann", b'{"a":1}', 5)
    [row] = await bench.rows()
    assert (row.kind, row.principal, row.request_id, row.decision) == ("execute", "ann", "r1", "ok")
    assert row.fields == {
        "tool": "echo",
        "digest": DIGEST,
        "network": ["a.example (on_shape=block)"],
        "credentials": ["k"],
        "timeout_ms": 5,
        "memory_bytes": 256 << 20,
        "max_fuel": 10**8,
        "duration_us": 7,
        "fuel": 9,
        "egress_calls": 0,
    }
    assert bench.metrics.ended == [{"tool": "echo", "outcome": "ok", "duration_us": 7, "fuel_consumed": 9}]


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.CANCELLED])
async def test_every_outcome_is_a_result_and_a_row(bench, outcome):
    bench.pool.result = RunResult(outcome, message="why")
    assert (await bench.execute()).scanned.result.outcome is outcome
    [row] = await bench.rows()
    assert row.decision == outcome.value
    assert bench.metrics.ended[0]["outcome"] == outcome.value


async def test_output_is_searched_and_the_finding_recorded_without_the_secret(bench):
    bench.pool.result = RunResult(Outcome.OK, output=f'"{SECRET}"'.encode(), stderr=SECRET.encode())
    execution = await bench.execute()
    assert execution.scanned.result.output == b'"[REDACTED]"'
    [row] = await bench.rows()
    assert row.fields["findings"] == {"github_personal_token": 2}
    assert SECRET not in repr(row)
    assert bench.metrics.issues == 2


async def test_blocked_output_is_recorded_as_such(audit):
    bench = Bench(audit, on_injection="block")
    bench.pool.result = RunResult(Outcome.OK, output=b'"[INST]"')
    assert (await bench.execute()).scanned.result.outcome is Outcome.BLOCKED
    [row] = await bench.rows()
    assert (row.decision, row.fields["findings"]) == ("blocked", {"inst_open": 1})


async def test_an_unknown_tool_is_refused_and_recorded(bench):
    _, row = await refused(bench, Reason.TOOL_NOT_FOUND, tool="nope")
    assert (row.decision, row.fields["tool"]) == ("failed", "nope")
    assert bench.pool.runs == []


async def test_asking_for_more_is_denied_and_recorded_with_the_entry(bench):
    asked = Requested(network=(NetworkRule("evil.example"),))
    _, row = await refused(bench, Reason.POLICY_DENIED, requested=asked)
    assert row.decision == "denied"
    assert row.fields["refused"]["field"] == "capabilities.network.rules[0]"
    assert bench.pool.runs == []


async def test_a_token_caps_what_a_run_may_reach(audit):
    bench = Bench(audit)
    narrow = Principal("ann", ANN.scopes, PrincipalLimits(network=(NetworkRule("b.example"),)))
    await bench.execute(principal=narrow)
    [row] = await bench.rows()
    assert row.fields["network"] == ["b.example (on_shape=block)"]


async def test_a_tool_whose_owner_is_gone_reaches_nothing(audit):
    bench = Bench(audit, FakeTools(owner="bob", terms=NOTHING))
    await bench.execute()
    [row] = await bench.rows()
    assert row.fields["network"] == []


async def test_input_that_breaks_the_schema_names_each_path_and_rule(bench):
    bench.pool.error = InvalidInputError(
        (Violation("/a", "type", "is not a string"), Violation("", "required", "b is missing"))
    )
    error, row = await refused(bench, Reason.INVALID_INPUT)
    assert [(v.field, v.rule) for v in error.violations] == [("params/a", "type"), ("params", "required")]
    assert "params/a: is not a string (and 1 more)" in error.message
    assert row.decision == "failed"
    assert bench.metrics.ended == []


async def test_agents_are_not_served_yet(bench):
    error, _ = await refused(bench, Reason.NOT_SERVED, agent_id="a1")
    assert error.violations[0].field == "agent_id"


async def test_a_failure_of_ours_is_recorded_too(bench):
    bench.pool.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await bench.execute()
    [row] = await bench.rows()
    assert (row.decision, row.fields["reason"]) == ("failed", "INTERNAL")


async def test_cancelling_reaches_the_run_and_is_recorded(bench):
    bench.pool.hold = asyncio.Event()
    running = asyncio.create_task(bench.execute())
    await bench.pool.began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [row] = await bench.rows()
    assert (row.decision, row.fields["digest"]) == ("cancelled", DIGEST)
    assert [ended["outcome"] for ended in bench.metrics.ended] == ["cancelled"]


async def test_nothing_runs_that_could_not_be_written_down(bench, monkeypatch):
    def broken():
        raise ClawboxError(Reason.AUDIT_UNAVAILABLE, "no room")

    monkeypatch.setattr(bench.audit, "require", broken)
    with pytest.raises(ClawboxError) as caught:
        await bench.execute()
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    assert bench.pool.runs == []
    assert await bench.rows() == []


async def test_a_principal_runs_no_more_at_once_than_its_token_says(bench):
    one = Principal("ann", ANN.scopes, PrincipalLimits(max_sandboxes=1))
    bench.pool.hold = asyncio.Event()
    running = asyncio.create_task(bench.execute(principal=one))
    await bench.pool.began.wait()
    with pytest.raises(ClawboxError) as caught:
        await bench.execute(principal=one)
    assert caught.value.reason is Reason.EXECUTION_LIMIT
    assert caught.value.retry_after
    bench.pool.hold.set()
    await running
    await bench.execute(principal=one)
    assert [row.decision for row in await bench.rows()] == ["failed", "ok", "ok"]


async def test_what_a_principal_has_besides_runs_counts_with_them(bench):
    two = Principal("ann", ANN.scopes, PrincipalLimits(max_sandboxes=2))
    containers = {"ann": 1, "bob": 5}
    bench.sandboxes.count_also(lambda name: containers[name])
    bench.pool.hold = asyncio.Event()
    running = asyncio.create_task(bench.execute(principal=two))
    await bench.pool.began.wait()
    assert bench.sandboxes.of("ann") == 2
    with pytest.raises(ClawboxError) as caught:
        await bench.execute(principal=two)
    assert caught.value.reason is Reason.EXECUTION_LIMIT
    bench.pool.hold.set()
    await running
    assert (bench.sandboxes.of("ann"), bench.sandboxes.of("bob")) == (1, 5)


async def test_events_come_searched_and_in_order(bench):
    token = SECRET.encode()
    bench.pool.events = (
        OutputChunk(OutputStream.STDOUT, b"one\n" + token[:10], 0),
        LogEntry(Level.INFO, "log " + SECRET, 3),
        OutputChunk(OutputStream.STDOUT, token[10:] + b" two\nlast", 14),
    )
    seen: list[object] = []
    await bench.execute(on_event=seen.append)
    assert seen == [
        Started(DIGEST),
        OutputChunk(OutputStream.STDOUT, b"one\n", 0),
        LogEntry(Level.INFO, "log [REDACTED]", 3),
        OutputChunk(OutputStream.STDOUT, b"[REDACTED] two\n", 4),
        OutputChunk(OutputStream.STDOUT, b"last", 19),
    ]
