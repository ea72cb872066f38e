"""What is counted, as Prometheus metrics. The original's names are kept; its summaries are histograms.

Every label has a bounded set of values: methods and codes come from tables, tool names from the catalogue
(and the thousand-and-first tool is counted as ``other``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MAX_TOOLS = 1_000
_OTHER_TOOLS = "other"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000)
_SPAWN_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 120, 300, 600)
_EXEC_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200)
_FUEL = (1e3, 1e4, 1e5, 1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 1e10, 1e11)


class PoolGauges(Protocol):
    """What is read from the pool of workers when somebody scrapes."""

    @property
    def workers(self) -> int:
        """Worker processes alive."""

    @property
    def busy(self) -> int:
        """Worker processes that run a call."""


class Metrics:
    """All metrics of one server, in a registry of their own: two servers in a process do not mix.

    The methods are called on the event loop, and each costs a microsecond or so.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        self._rpcs = Counter("clawbox_rpcs", "RPCs that ended.", ["method", "code"], registry=registry)
        self._rpc_seconds = Histogram(
            "clawbox_rpc_duration_seconds",
            "Time from the arrival of an RPC to its end, in seconds.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rpcs_in_flight = Gauge("clawbox_rpcs_in_flight", "RPCs that go on now.", registry=registry)
        self._refused_tokens = Counter(
            "clawbox_refused_tokens",
            "RPCs refused because of their token: TOKEN_MISSING, TOKEN_INVALID, SCOPE_MISSING, RATE_LIMIT.",
            ["reason"],
            registry=registry,
        )
        self._running = Gauge("clawbox_executions_running", "Executions that run now.", registry=registry)
        self._queued = Gauge(
            "clawbox_executions_queued", "Executions that wait for a place now.", registry=registry
        )
        self._queue_seconds = Histogram(
            "clawbox_execution_queue_seconds",
            "Time that executions waited for a place, in seconds.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._executions = Counter(
            "clawbox_wasm_executions",
            "Runs of tools: ok, or error for every other outcome.",
            ["tool", "status"],
            registry=registry,
        )
        self._outcomes = Counter(
            "clawbox_wasm_outcomes", "Runs of tools by outcome.", ["tool", "outcome"], registry=registry
        )
        self._execution_ms = Histogram(
            "clawbox_wasm_execution_ms",
            "Wall-clock time of runs without waiting, in milliseconds.",
            ["tool"],
            buckets=_MILLISECONDS,
            registry=registry,
        )
        self._fuel = Histogram(
            "clawbox_wasm_fuel_consumed", "Fuel that runs used.", ["tool"], buckets=_FUEL, registry=registry
        )
        self._sanitization_issues = Counter(
            "clawbox_sanitization_issues", "Findings in the output of tools.", registry=registry
        )
        self._tools_loaded = Gauge("clawbox_tools_loaded", "Tools that can be run.", registry=registry)
        self._workers = Gauge("clawbox_pool_workers", "Worker processes alive.", registry=registry)
        self._busy = Gauge(
            "clawbox_pool_workers_busy", "Worker processes that run a call.", registry=registry
        )
        self._replaced = Counter(
            "clawbox_pool_worker_restarts",
            "Worker processes that ended and were replaced, by cause.",
            ["cause"],
            registry=registry,
        )
        self._compiles = Counter(
            "clawbox_compiles", "Modules compiled or refused.", ["result"], registry=registry
        )
        self._compile_seconds = Histogram(
            "clawbox_compile_duration_seconds",
            "Time to compile a module, in seconds.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._audit_failures = Counter(
            "clawbox_audit_failures", "Audit rows that could not be written.", registry=registry
        )
        self._egress_requests = Counter(
            "clawbox_egress_requests",
            "Requests of sandboxes to the outside: allowed, denied or failed, and why.",
            ["decision", "reason"],
            registry=registry,
        )
        self._egress_bytes = Counter(
            "clawbox_egress_bytes",
            "Bytes of bodies and tunnels: up is from sandboxes, down is to them.",
            ["direction"],
            registry=registry,
        )
        self._egress_tunnels = Gauge(
            "clawbox_egress_tunnels", "Tunnels that are open now.", registry=registry
        )
        self._upstream_seconds = Histogram(
            "clawbox_egress_upstream_duration_seconds",
            "Time from sending a request's head until the head of its answer came, in seconds.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._leaks = Counter(
            "clawbox_egress_leak_findings",
            "Known secrets and shapes of credentials that were found in traffic, and what was done.",
            ["kind", "action"],
            registry=registry,
        )
        self._suspensions = Counter(
            "clawbox_egress_suspensions",
            "Sandboxes whose credentials are attached no more, because their requests held secrets.",
            registry=registry,
        )
        self._egress_processes = Gauge(
            "clawbox_egress_processes", "Processes alive, by kind.", ["process"], registry=registry
        )
        self._egress_restarts = Counter(
            "clawbox_egress_restarts",
            "Processes that ended by themselves and were started again, by kind.",
            ["process"],
            registry=registry,
        )
        self._containers = Counter(
            "clawbox_containers", "Containers that were spawned, and killed.", ["status"], registry=registry
        )
        self._containers_active = Gauge(
            "clawbox_containers_active", "Containers that are not finished.", registry=registry
        )
        self._containers_kept = Gauge(
            "clawbox_containers_kept", "Containers that are known, by state.", ["state"], registry=registry
        )
        self._spawn_seconds = Histogram(
            "clawbox_container_spawn_duration_seconds",
            "Time to create a container until its program runs, pulling its image included, in seconds.",
            buckets=_SPAWN_SECONDS,
            registry=registry,
        )
        self._exec_seconds = Histogram(
            "clawbox_container_exec_duration_seconds",
            "Wall-clock time of processes that were run inside containers, in seconds.",
            ["method"],
            buckets=_EXEC_SECONDS,
            registry=registry,
        )
        self._tool_names: set[str] = set()

    def rpc_observer(self, method: str) -> Callable[[str, float], None]:
        """Count the RPCs of ``method``, a full name such as ``/clawbox.v1.Sandbox/Execute``.

        What is returned is called with the name of the status code and the duration in seconds.
        """
        seconds = self._rpc_seconds.labels(method)
        by_code: dict[str, Counter] = {}

        def ended(code: str, duration: float) -> None:
            counter = by_code.get(code)
            if counter is None:
                counter = by_code[code] = self._rpcs.labels(method, code)
            counter.inc()
            seconds.observe(duration)

        return ended

    def watch_rpcs(self, in_flight: Callable[[], float]) -> None:
        """Read the number of RPCs in flight from here."""
        self._rpcs_in_flight.set_function(in_flight)

    def watch_executions(self, running: Callable[[], float], queued: Callable[[], float]) -> None:
        """Read the number of running and of waiting executions from here."""
        self._running.set_function(running)
        self._queued.set_function(queued)

    def watch_pool(self, stats: Callable[[], PoolGauges]) -> None:
        """Read the state of the pool of workers from here."""
        self._workers.set_function(lambda: stats().workers)
        self._busy.set_function(lambda: stats().busy)

    def watch_tools(self, loaded: Callable[[], float]) -> None:
        """Read the number of tools that can be run from here."""
        self._tools_loaded.set_function(loaded)

    def token_refused(self, reason: str) -> None:
        """An RPC was refused because of its token."""
        self._refused_tokens.labels(reason).inc()

    def execution_queued(self, seconds: float) -> None:
        """An execution got its place after so long."""
        self._queue_seconds.observe(seconds)

    def execution_ended(self, *, tool: str, outcome: str, duration_us: int, fuel_consumed: int) -> None:
        """A run ended. ``outcome`` is the value of :class:`clawbox.wasm.model.Outcome`."""
        tool = self._tool_label(tool)
        self._executions.labels(tool, "ok" if outcome == "ok" else "error").inc()
        self._outcomes.labels(tool, outcome).inc()
        self._execution_ms.labels(tool).observe(duration_us / 1000)
        self._fuel.labels(tool).observe(fuel_consumed)

    def output_sanitized(self, issues: int) -> None:
        """The output of a run had so many findings."""
        self._sanitization_issues.inc(issues)

    def worker_replaced(self, cause: str) -> None:
        """A worker ended and was replaced; ``cause`` is one word of a fixed set."""
        self._replaced.labels(cause).inc()

    def tool_compiled(self, result: str, seconds: float) -> None:
        """A module was compiled, or was refused; ``result`` is one word of a fixed set."""
        self._compiles.labels(result).inc()
        self._compile_seconds.observe(seconds)

    def audit_failed(self) -> None:
        """An audit row could not be written."""
        self._audit_failures.inc()

    def egress_request(
        self, *, decision: str, reason: str, bytes_up: int, bytes_down: int, upstream_us: int | None
    ) -> None:
        """A request to the outside ended; ``decision`` and ``reason`` are each one word of a fixed set."""
        self._egress_requests.labels(decision, reason).inc()
        self._egress_bytes.labels("up").inc(bytes_up)
        self._egress_bytes.labels("down").inc(bytes_down)
        if upstream_us is not None:
            self._upstream_seconds.observe(upstream_us / 1e6)

    def egress_refused(self, reason: str, count: int) -> None:
        """So many requests were refused that have no row of their own."""
        self._egress_requests.labels("denied", reason).inc(count)

    def leak_found(self, *, kind: str, action: str, count: int) -> None:
        """The leak scanner found something; ``kind`` and ``action`` are each one word of a fixed set."""
        self._leaks.labels(kind, action).inc(count)

    def credentials_suspended(self) -> None:
        """A sandbox's credentials are attached no more."""
        self._suspensions.inc()

    def watch_egress(
        self, tunnels: Callable[[], float], processes: Mapping[str, Callable[[], float]]
    ) -> None:
        """Read the number of open tunnels, and of processes by kind, from here."""
        self._egress_tunnels.set_function(tunnels)
        for kind, number in processes.items():
            self._egress_processes.labels(kind).set_function(number)

    def egress_restarted(self, process: str) -> None:
        """A process ended by itself and is started again: ``sidecar``, ``keeper`` or ``dialer``."""
        self._egress_restarts.labels(process).inc()

    def container_spawned(self, seconds: float) -> None:
        """A container was made, within so long."""
        self._containers.labels("spawned").inc()
        self._spawn_seconds.observe(seconds)

    def container_killed(self) -> None:
        """A caller killed a container."""
        self._containers.labels("killed").inc()

    def exec_ended(self, method: str, duration_ms: int) -> None:
        """A process inside a container ended; ``method`` is ``Exec`` or ``RunCommand``."""
        self._exec_seconds.labels(method).observe(duration_ms / 1000)

    def watch_containers(
        self, active: Callable[[], float], states: Mapping[str, Callable[[], float]]
    ) -> None:
        """Read the number of active containers, and of all that are known by state, from here."""
        self._containers_active.set_function(active)
        for state, number in states.items():
            self._containers_kept.labels(state).set_function(number)

    def _tool_label(self, tool: str) -> str:
        """The tool's name; names of tools that came and went must not fill the memory."""
        if tool in self._tool_names:
            return tool
        if len(self._tool_names) >= _MAX_TOOLS:
            return _OTHER_TOOLS
        self._tool_names.add(tool)
        return tool
