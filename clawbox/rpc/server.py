"""The gRPC server: listeners, limits of the transport, the steps around each call, health, reflection, drain.

async with RpcServer(settings, tokens, metrics) as server:
server.serve(add_SandboxServicer_to_server, servicer)
...
await server.start()
server.health.set("clawbox.v1.Sandbox", True)
await shutdown.wait()
# here every call has ended and cleaned up, and the sockets are gone
"""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2_grpc

from clawbox.rpc.access import AccessControl, Authenticator, Refusal
from clawbox.rpc.drain import Calls
from clawbox.rpc.health import HealthServicer
from clawbox.rpc.interceptors import CallInterceptor, Edge, handler_function
from clawbox.rpc.limits import ExecutionLimit
from clawbox.rpc.listeners import UnixListener, listen_tcp
from clawbox.rpc.methods import method_table
from clawbox.rpc.reflection import reflection_handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from clawbox.config import ServerSettings
    from clawbox.telemetry import Metrics

MAX_METADATA_BYTES = 16 * 1024
"""Metadata of a call; more is refused by gRPC with RESOURCE_EXHAUSTED before anything of ours runs."""

MAX_STREAMS_PER_CONNECTION = 256
HANDSHAKE_MS = 10_000
"""Time to finish the TLS handshake and send HTTP/2 settings; a silent connection is closed after it."""
IDLE_CONNECTION_MS = 600_000
"""A connection without calls is asked to go after it, whoever holds it: there are only so many. A client's
library opens another when it needs one."""
MIN_PING_INTERVAL_MS = 10_000
"""How often a client may ping, with calls or without."""

_MAX_CONNECTIONS = 1024
_RESERVED_DESCRIPTORS = 256
"""Descriptors that connections never take: pipes and sockets of children, files, the event loop."""

_OVERSIZE_ALLOWANCE = 1 << 20
"""How far beyond the limit gRPC lets a message be, so that the caller gets our error with its details."""

_LAST_NEWS_SECONDS = 1.0
"""Time for health watchers to take the last state before they are cut."""

_CLEAN_UP_SECONDS = 30.0
"""Time for cancelled handlers to clean up; one that takes longer is left behind, and logged."""

_log = structlog.stdlib.get_logger("clawbox.rpc")


class UndeclaredMethodError(Exception):
    """A method was registered that has no row in :mod:`clawbox.rpc.methods`."""


class RpcServer:
    """A grpc.aio server with everything that ``Server behaviour`` of the API promises.

    Entering it binds the listeners (raises :class:`~clawbox.rpc.listeners.ListenError`); leaving it drains.
    """

    def __init__(
        self,
        settings: ServerSettings,
        tokens: Authenticator,
        metrics: Metrics,
        *,
        on_refusal: Callable[[Refusal], None] | None = None,
    ) -> None:
        """``on_refusal`` is told of each call that was not let in: strangers decide how often."""
        self._settings = settings
        self._methods = method_table(settings.reflection)
        self._services: list[str] = []
        self._port = 0
        self._unix: UnixListener | None = None
        self._started = False
        self._stopped = False
        self.calls = Calls()
        """The calls in flight."""
        self.executions = ExecutionLimit(settings.max_concurrent_executions, settings.max_queued_executions)
        """Running and waiting executions."""
        self.health = HealthServicer()
        """Says which services serve: none, until it is told."""
        metrics.watch_rpcs(lambda: len(self.calls))
        metrics.watch_executions(lambda: self.executions.running, lambda: self.executions.queued)

        def refused(refusal: Refusal) -> None:
            metrics.token_refused(refusal.reason.name)
            if on_refusal is not None:
                on_refusal(refusal)

        edge = Edge(
            access=AccessControl(tokens, on_refusal=refused),
            executions=self.executions,
            calls=self.calls,
            metrics=metrics,
            max_message_bytes=settings.max_message_bytes,
        )
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(self._methods, edge)], options=channel_options(settings)
        )

    @property
    def port(self) -> int:
        """The TCP port in use."""
        return self._port

    @property
    def services(self) -> Sequence[str]:
        """Full names of the services registered so far."""
        return tuple(self._services)

    def serve(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        """Register a servicer with its generated ``add_…Servicer_to_server``, before :meth:`start`.

        Raises :class:`UndeclaredMethodError` for a method that the table of methods does not have, and
        :class:`TypeError` for a handler that is not a coroutine function or async generator function.
        """
        recorder = _Recorder()
        add_to_server(servicer, recorder)
        for service, handlers in recorder.services.items():
            self._register(service, handlers)

    def _register(self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        for method, handler in handlers.items():
            name = f"/{service}/{method}"
            if name not in self._methods:
                raise UndeclaredMethodError(
                    f"{name} has no row in clawbox.rpc.methods: nobody said who may call it"
                )
            handler_function(handler)
        self._services.append(service)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    async def __aenter__(self) -> Self:
        try:
            self._port = listen_tcp(self._server, self._settings)
            if self._settings.unix_socket is not None:
                self._unix = UnixListener(self._server, self._settings.unix_socket)
        except BaseException:
            await self._let_go()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()

    async def start(self) -> None:
        """Take calls. Health says NOT_SERVING until it is told otherwise."""
        self.serve(health_pb2_grpc.add_HealthServicer_to_server, self.health)
        for service in self._services:
            if service.startswith("clawbox."):
                self.health.set(service, serving=False)
        if self._settings.reflection != "off":
            for service, handlers in reflection_handlers(tuple(self._services)).items():
                self._register(service, handlers)
        await self._server.start()
        self._started = True
        _log.info(
            "listening",
            host=self._settings.host,
            port=self._port,
            tls=self._settings.tls_cert is not None,
            unix_socket=str(self._settings.unix_socket or ""),
        )

    async def drain(self) -> None:
        """Stop: say so, take nothing new, let calls end within ``server.grace_ms``, then end them.

        Returns when every handler has cleaned up after itself. May be called again.
        """
        if self._stopped:
            return
        self._stopped = True
        if not self._started:
            await self._let_go()
            self._remove_unix_socket()
            return
        grace = self._settings.grace_ms / 1000
        self.calls.refuse_new()
        self.health.end()
        self.calls.end(lambda call: call.method.watch)
        # gRPC itself is stopped last: it would answer calls that still come with a bare CANCELLED, we answer
        # SHUTTING_DOWN with a time to come again; and it would leave questions about health unanswered.
        try:
            await self._wait_and_end(grace)
        finally:
            # Even when this is cancelled: no handler may outlive what it works with.
            self.calls.end()
            # It would also cancel a handler once more, in the midst of its clean-up.
            if not await self.calls.wait_none_left(_CLEAN_UP_SECONDS):
                _log.error("calls did not end", methods=self.calls.names())
                self.calls.sever()
            # gRPC sometimes goes on waiting for a peer that was told the end of its call and does not answer.
            stopping = asyncio.create_task(self._stop_core(_LAST_NEWS_SECONDS), name="stop gRPC")
            await asyncio.wait([stopping], timeout=_LAST_NEWS_SECONDS)
            await self._stop_core(None)
            await stopping
            self._remove_unix_socket()

    async def _wait_and_end(self, grace: float) -> None:
        _log.info("draining", calls=len(self.calls), grace_ms=self._settings.grace_ms)
        health_watchers = min(grace, _LAST_NEWS_SECONDS)
        if not await self.calls.wait_none_left(health_watchers):
            self.calls.end(lambda call: call.method.while_draining)
            if not await self.calls.wait_none_left(grace - health_watchers):
                ended = self.calls.end()
                _log.warning("calls were ended at the end of the grace period", calls=ended)

    async def _let_go(self) -> None:
        """Free the ports of a server that never started: gRPC stops only what has started, so it does."""
        self.calls.refuse_new()
        await self._server.start()
        await self._stop_core(None)

    async def _stop_core(self, grace: float | None) -> None:
        await self._server.stop(grace)

    def _remove_unix_socket(self) -> None:
        if self._unix is not None:
            self._unix.remove()


class _Recorder:
    """Takes the place of a server in generated ``add_…_to_server`` functions, to see what they register."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers again, in the form for older gRPC."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """The handlers of one service, by method."""
        self.services[service] = handlers


def channel_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """The limits that gRPC core enforces by itself, as its channel arguments."""
    options = [
        # Two servers on one port would share its connections, silently.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", min(settings.max_message_bytes + _OVERSIZE_ALLOWANCE, 2**31 - 1)),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # Soft and hard: gRPC refuses some requests between the two, so they are the same.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", max_connections()),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", IDLE_CONNECTION_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if settings.max_connection_age_ms:
        options.append(("grpc.max_connection_age_ms", min(settings.max_connection_age_ms, 2**31 - 1)))
        # Unlimited (gRPC's own default, said aloud), or long Exec and Watch streams die with the connection.
        options.append(("grpc.max_connection_age_grace_ms", 2**31 - 1))
    return options


def max_connections() -> int:
    """Connections that a listener takes at once: not all descriptors, because children need some."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(16, min(_MAX_CONNECTIONS, (soft - _RESERVED_DESCRIPTORS) // 2))
