"""The composition root: settings in, a running server out. Nothing else knows all the parts.

Each part is an async context manager, entered in the order in which the parts depend on each other and left
in the reverse: the gRPC server drains first, while everything that its calls use still works.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import uvloop

# gRPC would stop its threads around each fork of this process, for the sake of children that go on using it.
# Ours (the forkserver, compilers) execute a program of their own at once. It reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from clawbox import __version__
from clawbox.audit import AuditLog, signed_heads
from clawbox.auth import TokenTable, watch_tokens
from clawbox.children import linux
from clawbox.children.uids import server_uids
from clawbox.containers.availability import why_not
from clawbox.containers.states import State
from clawbox.egress.keeper.bootstrap import IDENTITY_FILE, identity_folder, open_keys
from clawbox.egress.setup import egress_setup, listening_at, sandbox_limits
from clawbox.egress.supervisor import EgressSupervisor
from clawbox.egress.vault import VaultError
from clawbox.egress.wasm_doors import WasmDoors
from clawbox.policy import ShapeAction, ToolCeiling
from clawbox.rpc.drain import shutdown_on_signals
from clawbox.rpc.sandbox import SandboxServicer
from clawbox.rpc.server import RpcServer
from clawbox.rpc.services import serve_containers, serve_sandbox, serve_system
from clawbox.rpc.system import SystemServicer
from clawbox.sandboxes import Sandboxes
from clawbox.telemetry import Metrics, MetricsEndpoint, configure_logging
from clawbox.uninterrupted import meanwhile
from clawbox.wasm.catalog import Catalog
from clawbox.wasm.compiler import BUILTIN_FOLDER, Compiler
from clawbox.wasm.executor import Executor
from clawbox.wasm.output import OutputScanner
from clawbox.wasm.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clawbox.children.enforcement import Enforcement
    from clawbox.children.uids import UidRange
    from clawbox.config import Config
    from clawbox.containers.service import ContainerService
    from clawbox.egress.supervisor import EgressStatus
    from clawbox.rpc.access import Refusal

log = structlog.get_logger("clawbox.app")

_SERVED = ("clawbox.v1.Sandbox", "clawbox.v1.System")
_CONTAINERS = "clawbox.v1.Containers"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that takes calls."""

    port: int
    """TCP port of the gRPC listener."""
    metrics_port: int
    """TCP port of ``/metrics``."""
    rpc: RpcServer
    """The gRPC server; leaving :func:`build_server` drains it."""
    pool: WorkerPool
    """The sandboxes' processes."""
    metrics: Metrics
    """What is counted."""


@contextlib.asynccontextmanager
async def build_server(config: Config) -> AsyncIterator[RunningServer]:
    """Serve on the configured TCP port and Unix socket for as long as the context is entered.

    They are bound before what takes time: who connects meanwhile waits for the first answer. Raises, before a
    call is taken: :class:`~clawbox.config.ConfigError` (no administrator's token),
    :class:`~clawbox.errors.ClawboxError` (the audit folder),
    :class:`~clawbox.wasm.tool_files.ToolFileError` (the tool folder),
    :class:`~clawbox.rpc.listeners.ListenError` (an address in use, a certificate that does not load), and
    :class:`OSError` (the metrics port).
    """
    metrics = Metrics()
    tokens = TokenTable.of(config)
    sandboxes = Sandboxes()
    ceiling = tool_ceiling(config)
    async with contextlib.AsyncExitStack() as stack:
        uids = stack.enter_context(server_uids(config.children.uid_first, config.children.uid_count))
        container_uids = uids.upper_half() if uids is not None and not why_not(config) else None
        new = not (identity_folder(config) / IDENTITY_FILE).exists()
        audit = await stack.enter_async_context(
            AuditLog(
                config.logging.audit_dir,
                on_error=config.audit.on_error,
                max_file_bytes=config.audit.max_file_bytes,
                keep_files=config.audit.keep_files,
                on_failure=metrics.audit_failed,
            )
        )
        endpoint = await stack.enter_async_context(MetricsEndpoint(config.metrics, metrics))

        def refused(refusal: Refusal) -> None:
            audit.append_counted(
                "token_refused",
                principal=refusal.principal,
                request_id=refusal.request_id,
                decision="denied",
                reason=refusal.reason.name,
                method=refusal.method,
                peer=refusal.address,
            )

        # Before what takes time: a port that is taken is said at once.
        rpc = await stack.enter_async_context(RpcServer(config.server, tokens, metrics, on_refusal=refused))
        # Half a second of computing, while the server mostly waits for its children to start. Not while the
        # Unix socket was made: then files of any thread are private.
        loading = asyncio.ensure_future(asyncio.to_thread(_load_containers, container_uids is not None, new))
        stack.callback(loading.cancel)
        await stack.enter_async_context(watch_tokens(tokens, config))
        compiler = await stack.enter_async_context(
            Compiler(config.sandbox.cache_dir, timeout_ms=config.sandbox.compile_timeout_ms, uids=uids)
        )
        pool = await stack.enter_async_context(
            WorkerPool(
                workers=config.sandbox.workers,
                max_concurrent=config.server.max_concurrent_executions,
                uids=uids,
                max_memory_bytes=config.sandbox.max_memory_mb << 20,
                max_response_bytes=config.proxy.max_response_bytes,
                observer=_PoolMetrics(metrics),
            )
        )
        catalog = await stack.enter_async_context(
            Catalog(
                config.sandbox.tool_dir,
                compiler,
                ceiling,
                max_tool_bytes=config.sandbox.max_tool_bytes,
                find_principal=tokens.find,
                builtin_dir=BUILTIN_FOLDER if config.sandbox.builtin_tools else None,
                watch=config.sandbox.watch_tools,
                on_load=metrics.tool_compiled,
                preload=pool.preload,
            )
        )
        metrics.watch_pool(pool.stats)
        metrics.watch_tools(catalog.runnable)
        egress = await stack.enter_async_context(_egress(config, audit, metrics, uids))
        if new and container_uids is not None and egress.supervisor is not None:
            # Containers ask the keeper who this installation is, and it takes half a second to start.
            await stack.enter_async_context(meanwhile(egress.supervisor.installation()))
        doors = None
        if egress.supervisor is not None:
            limits = sandbox_limits(config.egress, config.proxy)
            doors = await stack.enter_async_context(WasmDoors(egress.supervisor, limits, ceiling.on_shape))
        await loading
        containers = await stack.enter_async_context(
            _containers(config, egress.supervisor, audit, metrics, uids=container_uids, sandboxes=sandboxes)
        )
        executor = Executor(
            catalog,
            pool,
            ceiling=ceiling,
            scanner=OutputScanner(config.sandbox.on_injection),
            audit=audit,
            metrics=metrics,
            door=doors,
            sandboxes=sandboxes,
        )

        # It drains while everything that its calls use still works.
        stack.push_async_callback(rpc.drain)
        serve_sandbox(rpc, SandboxServicer(executor, catalog, audit, ceiling))
        if containers.service is not None:
            from clawbox.rpc.containers import ContainersServicer  # noqa: PLC0415 - loaded beside

            parts = containers.service
            serve_containers(
                rpc,
                ContainersServicer(
                    parts.manager,
                    execs=parts.execs,
                    output=parts.output,
                    backend=parts.backend,
                    files=parts.files,
                    request_ids=parts.request_ids,
                    ceiling=parts.manager.offer.ceiling,
                    audit=audit,
                    metrics=metrics,
                    max_message_bytes=config.server.max_message_bytes,
                ),
            )
        serve_system(
            rpc,
            SystemServicer(
                pool,
                audit,
                rpc.executions,
                tokens,
                egress,
                containers=None if containers.service is None else containers.service.manager,
                no_containers=containers.problem,
                state=None if containers.service is None else containers.service.store,
            ),
        )
        await rpc.start()
        if egress.supervisor is not None:
            own = (config.server.host, rpc.port), (config.metrics.host, endpoint.port)
            egress.supervisor.refuse_addresses(listening_at(own))
        for service in _SERVED:
            rpc.health.set(service, serving=True)
        pool.watch_availability(functools.partial(rpc.health.set, _SERVED[0]))
        if containers.service is not None:
            containers.service.manager.monitor.watch_availability(
                functools.partial(rpc.health.set, _CONTAINERS)
            )
        if containers.service is None:
            tell = log.warning if config.containers.enabled else log.info
            tell("no containers", problem=containers.problem)
        log.info(
            "serving",
            version=__version__,
            host=config.server.host,
            port=rpc.port,
            metrics_port=endpoint.port,
            settings=str(config.file or "defaults"),
        )
        yield RunningServer(rpc.port, endpoint.port, rpc, pool, metrics)
        log.info("stopping")


@contextlib.asynccontextmanager
async def _egress(
    config: Config, audit: AuditLog, metrics: Metrics, uids: UidRange | None
) -> AsyncIterator[Egress]:
    """Sandboxes' ways out, and signatures for the audit log; where they cannot be, sandboxes have none."""
    setup = egress_setup(config)
    async with contextlib.AsyncExitStack() as stack:
        try:
            keys = stack.enter_context(open_keys(identity_folder(config), config.credentials.master_key_file))
        except (VaultError, OSError) as error:
            log.error("sandboxes have no way out", problem=str(error))  # noqa: TRY400 - it says all
            yield Egress(None, str(error))
            return
        supervisor = await stack.enter_async_context(
            EgressSupervisor(setup, keys, audit=audit, metrics=metrics, uids=uids)
        )
        await stack.enter_async_context(signed_heads(audit, supervisor))
        yield Egress(supervisor)


def _load_containers(wanted: bool, new: bool) -> None:  # noqa: FBT001
    """Import what serves containers; nothing where there will be none. ``new``: its tables are to be made."""
    if wanted:
        importlib.import_module("clawbox.containers.service")
        importlib.import_module("clawbox.rpc.containers")
        if new:
            importlib.import_module("alembic.command")


@dataclass(frozen=True, slots=True)
class Containers:
    """Containers as a whole."""

    service: ContainerService | None
    problem: str = ""
    """Why there are none."""


@contextlib.asynccontextmanager
async def _containers(
    config: Config,
    ways_out: EgressSupervisor | None,
    audit: AuditLog,
    metrics: Metrics,
    *,
    uids: UidRange | None,
    sandboxes: Sandboxes,
) -> AsyncIterator[Containers]:
    """Containers, where this server can serve them; else tools are served without."""
    problem = why_not(config)
    if not problem and ways_out is None:
        problem = "containers need a way out, for their output is cleaned there; see egress"
    async with contextlib.AsyncExitStack() as stack:
        service = None
        if not problem and ways_out is not None and uids is not None:
            from clawbox.containers.service import (  # noqa: PLC0415 - loaded beside
                ContainersUnavailableError,
                container_service,
            )

            try:
                service = await stack.enter_async_context(
                    container_service(
                        config,
                        identity_folder(config),
                        ways_out=ways_out,
                        uids=uids,
                        audit=audit,
                        sandboxes=sandboxes,
                    )
                )
            except ContainersUnavailableError as error:
                problem = str(error)
        if service is not None:
            manager = service.manager
            metrics.watch_containers(
                lambda: manager.status().active,
                {state.value: functools.partial(manager.count, state) for state in State},
            )
        yield Containers(service, problem)


def tool_ceiling(config: Config) -> ToolCeiling:
    """What the settings allow any tool."""
    sandbox = config.sandbox
    return ToolCeiling(
        default_timeout_ms=sandbox.default_timeout_ms,
        max_timeout_ms=sandbox.max_timeout_ms,
        default_memory_mb=sandbox.default_memory_mb,
        max_memory_mb=sandbox.max_memory_mb,
        default_fuel=sandbox.default_fuel,
        max_fuel=sandbox.max_fuel,
        network=config.tool_policy.network_allowlist,
        credentials=frozenset(config.tool_policy.allowed_credentials),
        max_concurrent=config.egress.max_concurrent,
        on_shape=ShapeAction(config.egress.on_shape),
    )


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal exits at once.

    Raises what :func:`build_server` does.
    """
    configure_logging(config.logging)
    linux.give_back_large_blocks()  # modules and artifacts are tens of megabytes, read once
    uvloop.run(_serve(config))


async def _serve(config: Config) -> None:
    shutdown = asyncio.Event()
    with shutdown_on_signals(shutdown):
        async with build_server(config):
            await shutdown.wait()


class Egress:
    """The ways out as a whole, for System.GetStatus."""

    def __init__(self, supervisor: EgressSupervisor | None, problem: str = "") -> None:
        self.supervisor = supervisor
        self.problem = problem
        """Why there is none."""

    def status(self) -> EgressStatus | None:
        """How the parts do; None where there are none."""
        return None if self.supervisor is None else self.supervisor.status()

    def enforcements(self) -> tuple[Enforcement, ...]:
        """What confines them."""
        return () if self.supervisor is None else self.supervisor.enforcements()


class _PoolMetrics:
    """Counts the workers that ended, by why."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def worker_started(self) -> None:
        """Gauges show it."""

    def worker_ended(self, why: str) -> None:
        """Count it."""
        self._metrics.worker_replaced(why)
