"""What one Execute costs, against a unary RPC of the same server that does nothing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import wasmtime
from clawbox_client.v1 import sandbox_pb2, sandbox_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.echo import ECHO_WAT
from benchmarks.harness import Server, Spread

if TYPE_CHECKING:
    from collections.abc import Callable

PRINT = sandbox_pb2.ExecuteRequest(tool="python", params_json='{"code": "print(1+1)"}')
JAVASCRIPT = sandbox_pb2.ExecuteRequest(tool="javascript", params_json='{"code": "console.log(1+1)"}')
ECHO = sandbox_pb2.ExecuteRequest(tool="bench-echo", params_json='{"message": "hello"}')


def _take_turns(kinds: dict[str, Callable[[], object]], seconds: float) -> dict[str, Spread]:
    """Time every kind of call, a few of each at a time, so that what else the machine does hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in kinds}
    warm = False
    deadline = time.perf_counter() + seconds * len(kinds)
    while time.perf_counter() < deadline:
        for name, call in kinds.items():
            for _ in range(25):
                began = time.perf_counter()
                call()
                samples[name].append(time.perf_counter() - began)
        if not warm:
            samples = {name: [] for name in kinds}
            warm = True
    return {name: Spread.of(seconds) for name, seconds in samples.items()}


def upload_echo(server: Server) -> None:
    """Upload the echo module."""
    module = bytes(wasmtime.wat2wasm(ECHO_WAT))
    start = sandbox_pb2.UploadToolStart(name="bench-echo", size_bytes=len(module))
    with grpc.insecure_channel(server.address) as channel:
        sandbox_pb2_grpc.SandboxStub(channel).UploadTool(
            iter([sandbox_pb2.UploadToolRequest(start=start), sandbox_pb2.UploadToolRequest(chunk=module)]),
            metadata=_metadata(server),
        )


def _metadata(server: Server) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {server.token}"),)


def latencies(server: Server, seconds: float) -> dict[str, Spread]:
    """One client, one call at a time: the spread of each kind of call, measured for ``seconds`` each."""
    metadata = _metadata(server)
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs leave out the methods
        sandbox = sandbox_pb2_grpc.SandboxStub(channel)

        def execute(request: sandbox_pb2.ExecuteRequest) -> None:
            reply = sandbox.Execute(request, metadata=metadata)
            if reply.outcome != sandbox_pb2.OUTCOME_OK:
                raise RuntimeError(f"{request.tool}: {reply.message}")

        kinds: dict[str, Callable[[], object]] = {
            "no-op": lambda: health.Check(health_pb2.HealthCheckRequest(), metadata=metadata),
            "echo": lambda: execute(ECHO),
            "python": lambda: execute(PRINT),
            "javascript": lambda: execute(JAVASCRIPT),
        }
        return _take_turns(kinds, seconds)


async def throughput(server: Server, clients: int, seconds: float) -> float:
    """Python executions per second with so many clients, each with a channel of its own."""
    metadata = _metadata(server)
    done = 0

    async def client(deadline: float) -> None:
        nonlocal done
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(server.address, options) as channel:
            stub = sandbox_pb2_grpc.SandboxStub(channel)
            while time.perf_counter() < deadline:
                reply = await stub.Execute(PRINT, metadata=metadata)
                if reply.outcome != sandbox_pb2.OUTCOME_OK:
                    raise RuntimeError(reply.message)
                done += 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client(began + seconds))
    return done / (time.perf_counter() - began)
