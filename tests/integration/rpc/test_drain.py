"""Stopping: what is told to whom, in which order, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import grpc
import grpc.aio
import pytest
from clawbox_client.v1 import sandbox_pb2, system_pb2
from grpc_health.v1 import health_pb2

from clawbox.rpc.drain import shutdown_on_signals
from tests.integration.rpc.conftest import HANGS_SECONDS, details, failure, metadata, serving
from tests.integration.rpc.test_limits import Gate, until

REQUEST = sandbox_pb2.ExecuteRequest(tool="echo")


async def test_calls_in_flight_finish_within_the_grace() -> None:
    async with serving(grace_ms=10_000) as running:
        gate = Gate()
        running.sandbox.execute = gate.execute
        stub = await running.sandbox_stub()
        call = asyncio.ensure_future(stub.Execute(REQUEST, metadata=metadata()))
        await gate.entered.acquire()
        draining = asyncio.ensure_future(running.server.drain())
        await until(lambda: running.server.calls.draining)
        gate.go_on.set()
        assert (await call).message == "0"
        await draining


async def test_calls_that_outlive_the_grace_are_told_and_have_cleaned_up_when_drain_returns() -> None:
    async with serving(grace_ms=50) as running:
        cleaned = False

        async def stubborn(_request):
            nonlocal cleaned
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(100):
                    await asyncio.sleep(0)
                cleaned = True

        entered = asyncio.Event()
        running.sandbox.execute = stubborn
        stub = await running.sandbox_stub()
        call = asyncio.ensure_future(failure(stub.Execute(REQUEST, metadata=metadata())))
        await entered.wait()
        await running.server.drain()
        assert cleaned
        error = await call
        assert (error.code(), details(error).reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert len(running.server.calls) == 0
        assert running.server.executions.running == 0


async def test_a_handler_that_takes_long_to_clean_up_is_waited_for(monkeypatch) -> None:
    monkeypatch.setattr("clawbox.rpc.server._LAST_NEWS_SECONDS", 0.05)
    async with serving(grace_ms=0) as running:
        entered, cleaned = asyncio.Event(), asyncio.Event()

        async def slow(_request):
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.3)  # longer than gRPC is given to stop
                cleaned.set()

        running.sandbox.execute = slow
        stub = await running.sandbox_stub()
        call = asyncio.ensure_future(failure(stub.Execute(REQUEST, metadata=metadata())))
        await entered.wait()
        await running.server.drain()
        assert cleaned.is_set()
        assert details(await call).reason == "SHUTTING_DOWN"


async def test_a_reader_that_stalls_does_not_hold_up_the_drain(monkeypatch) -> None:
    monkeypatch.setattr("clawbox.rpc.failures.LAST_WORD_SECONDS", 0.1)
    async with serving(grace_ms=100) as running:

        async def flood(_request):
            while True:
                yield sandbox_pb2.ExecuteStreamResponse(stdout=sandbox_pb2.OutputChunk(data=b"x" * 65536))

        running.sandbox.stream = flood
        stub = await running.sandbox_stub()
        call = stub.ExecuteStream(sandbox_pb2.ExecuteStreamRequest(), metadata=metadata())
        await call.read()  # and never again
        async with asyncio.timeout(10):
            await running.server.drain()
        assert len(running.server.calls) == 0


async def test_new_work_is_refused_with_a_reason_while_health_still_answers() -> None:
    async with serving() as running:
        stub = await running.sandbox_stub()
        health = await running.health_stub()
        running.server.calls.refuse_new()
        running.server.health.end()
        error = await failure(stub.Execute(REQUEST, metadata=metadata()))
        assert (error.code(), details(error).reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        reply = await health.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_watches_end_at_once_and_drain_is_quick() -> None:
    async with serving(grace_ms=60_000) as running:
        health = await running.health_stub()
        watching = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        audit = (await running.system_stub()).WatchAudit(system_pb2.WatchAuditRequest(), metadata=metadata())
        await audit.read()
        reflection = (await running.channel()).stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        )()
        await reflection.write(b"")
        await reflection.read()
        began = time.monotonic()
        draining = asyncio.ensure_future(running.server.drain())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watching.read() is grpc.aio.EOF
        error = await failure(audit.read())
        assert details(error).reason == "SHUTTING_DOWN"
        await draining
        assert time.monotonic() - began < 10  # a tenth of the grace would do to tell


async def test_a_reader_of_health_that_does_not_read_does_not_hold_up_the_drain() -> None:
    async with serving(grace_ms=60_000) as running:
        health = await running.health_stub()
        held = health.Watch(health_pb2.HealthCheckRequest())
        await held.read()
        async with asyncio.timeout(10):
            await running.server.drain()


async def test_a_drain_that_is_cancelled_still_cleans_up() -> None:
    async with serving(grace_ms=60_000) as running:
        gate = Gate()
        running.sandbox.execute = gate.execute
        stub = await running.sandbox_stub()
        call = asyncio.ensure_future(failure(stub.Execute(REQUEST, metadata=metadata())))
        await gate.entered.acquire()
        draining = asyncio.ensure_future(running.server.drain())
        await until(lambda: running.server.calls.draining)
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        await gate.cleaned.acquire()
        assert details(await call).reason == "SHUTTING_DOWN"


async def test_the_first_signal_asks_and_the_second_exits_at_once() -> None:
    shutdown = asyncio.Event()
    left: list[int] = []
    with shutdown_on_signals(shutdown, exit_at_once=left.append):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(shutdown.wait(), HANGS_SECONDS)
        assert left == []
        os.kill(os.getpid(), signal.SIGINT)
        await until(lambda: left == [128 + signal.SIGINT])
