"""What was found by probing grpc.aio: each fact as gRPC does it, beside what this server does instead.

The first half of a pair fails when a new gRPC changes its mind; then the code that works around it can go.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from clawbox_client.v1 import sandbox_pb2, system_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from clawbox.config import ServerSettings
from clawbox.rpc.server import RpcServer, UndeclaredMethodError
from clawbox.telemetry import Metrics
from tests.integration.rpc.conftest import (
    HANGS_SECONDS,
    ScriptedSystem,
    Serving,
    metadata,
    serving,
    token_table,
)
from tests.integration.rpc.test_limits import until
from tests.live import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def plain_server(**handlers: Any) -> AsyncIterator[Any]:
    """A grpc.aio server as it comes, with handlers of raw bytes."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield channel
        finally:
            await server.stop(None)


async def test_grpc_a_handler_that_raises_cancelled_error_sends_no_status() -> None:
    async def cancelled(_request, _context):
        raise asyncio.CancelledError

    async with plain_server(Call=grpc.unary_unary_rpc_method_handler(cancelled)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Call")(b"", timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # Ours: test_errors.test_a_handler_that_raises_cancelled_error_by_itself_sends_a_status


async def test_grpc_an_unhandled_exception_reaches_the_client_with_its_text() -> None:
    async def broken(_request, _context):
        raise RuntimeError("swordfish")

    async with plain_server(Call=grpc.unary_unary_rpc_method_handler(broken)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Call")(b"")
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert "swordfish" in (caught.value.details() or "")
    # Ours: test_errors.test_an_unexpected_exception_is_internal_with_an_id_that_is_in_the_log


async def test_grpc_a_unary_handler_that_denies_waits_for_the_message() -> None:
    async def deny(_request, context):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

    async with plain_server(Call=grpc.unary_unary_rpc_method_handler(deny)) as channel:
        call = channel.stream_stream("/t.T/Call")(timeout=0.3)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # Ours: tests/security/test_edge.py, test_rule_94_a_refused_unary_call_is_not_read


@pytest.mark.filterwarnings(
    "ignore:coroutine.*was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning"
)
async def test_grpc_a_callable_object_is_not_a_handler() -> None:
    class Handler:
        async def __call__(self, _request, _context):
            return b""

    async with plain_server(Call=grpc.unary_unary_rpc_method_handler(Handler())) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/t.T/Call")(b"", timeout=5)


async def test_handlers_that_grpc_would_not_run_are_refused_at_registration() -> None:
    class Callable:
        async def __call__(self, _request, _context):
            return b""

    def blocking(_request, _context):
        return b""

    server = _unstarted()
    for handler in (Callable(), blocking):

        def add(servicer, target, handler=handler):
            target.add_registered_method_handlers(
                "clawbox.v1.System", {"GetStatus": grpc.unary_unary_rpc_method_handler(handler)}
            )

        with pytest.raises(TypeError, match="coroutine function"):
            server.serve(add, object())


async def test_a_method_that_nobody_declared_is_refused_at_registration() -> None:
    async def handler(_request, _context):
        return b""

    def add(servicer, target):
        target.add_registered_method_handlers(
            "clawbox.v1.System", {"Format": grpc.unary_unary_rpc_method_handler(handler)}
        )

    with pytest.raises(UndeclaredMethodError, match=r"/clawbox\.v1\.System/Format"):
        _unstarted().serve(add, object())


async def test_grpc_its_health_servicer_has_no_list_and_its_watch_takes_the_whole_grace() -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.List(health_pb2.HealthListRequest())  # type: ignore[attr-defined]
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await server.stop(0.3)
        assert loop.time() - began >= 0.29
    # Ours: test_health_reflection.test_list_names_every_service, test_drain.test_watches_end_at_once_…


async def test_grpc_two_servers_share_a_port_by_default() -> None:
    first, second = grpc.aio.server(), grpc.aio.server()
    port = first.add_insecure_port("127.0.0.1:0")
    assert second.add_insecure_port(f"127.0.0.1:{port}") == port
    for server in (first, second):
        await server.start()
        await server.stop(None)
    # Ours: test_listeners.test_a_second_server_on_the_port_fails_and_says_why


async def test_grpc_stop_does_not_wait_for_the_clean_up_of_handlers() -> None:
    entered, cleaned, let_clean = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_request, _context):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await let_clean.wait()
            cleaned.set()

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(slow)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Call": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/t.T/Call")
        call = method(b"")
        await entered.wait()
        await server.stop(None)
        assert not cleaned.is_set()
        let_clean.set()
        await cleaned.wait()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    # Ours: test_drain.test_calls_that_outlive_the_grace_are_told_and_have_cleaned_up_when_drain_returns


async def test_a_stream_handler_that_swallows_its_cancellation_is_ended_all_the_same(
    running: Serving,
) -> None:
    closed = asyncio.Event()

    async def stubborn(_request):
        try:
            while True:
                try:
                    yield sandbox_pb2.ExecuteStreamResponse()
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass
        finally:
            closed.set()

    running.sandbox.stream = stubborn
    call = (await running.sandbox_stub()).ExecuteStream(
        sandbox_pb2.ExecuteStreamRequest(), metadata=metadata()
    )
    await call.read()
    call.cancel()
    async with asyncio.timeout(HANGS_SECONDS):
        await closed.wait()
    await until(lambda: len(running.server.calls) == 0 and running.server.executions.running == 0)


async def test_health_is_answered_while_every_place_is_taken() -> None:
    """grpc.aio's own ``maximum_concurrent_rpcs`` would refuse it."""
    async with serving(max_concurrent_executions=1, max_queued_executions=0) as running:
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def hold(_request):
            entered.set()
            await go_on.wait()
            return sandbox_pb2.ExecuteResponse()

        running.sandbox.execute = hold
        call = (await running.sandbox_stub()).Execute(sandbox_pb2.ExecuteRequest(), metadata=metadata())
        call = asyncio.ensure_future(call)
        await entered.wait()
        stub = await running.health_stub()
        reply = await stub.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        go_on.set()
        await call


async def test_a_server_that_never_started_leaves_nothing() -> None:
    port, _ = free_ports()
    server = _unstarted(port)
    server.serve(system_pb2_grpc.add_SystemServicer_to_server, ScriptedSystem())
    async with server:
        assert server.port == port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def _unstarted(port: int = 0) -> RpcServer:
    return RpcServer(ServerSettings(port=port), token_table(), Metrics())
