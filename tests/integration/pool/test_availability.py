"""Whether the sandbox says that it serves follows whether workers can be started."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clawbox.children import program
from clawbox.wasm.model import Outcome, Run
from clawbox.wasm.pool import WorkerPool
from tests.integration.pool.conftest import LIMITS
from tests.live import running
from tests.unit.wasm import wat

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_it_ends_when_workers_cannot_be_started_and_comes_back(forge, uids, monkeypatch, caplog):
    real, broken = program.command, True

    def command(module, *arguments):
        return [sys.executable, "-c", "raise SystemExit(1)"] if broken else real(module, *arguments)

    monkeypatch.setattr(program, "command", command)
    told: asyncio.Queue[bool] = asyncio.Queue()
    caplog.set_level(logging.WARNING)
    async with WorkerPool(workers=2, max_concurrent=4, uids=uids) as pool, asyncio.timeout(40):
        pool.watch_availability(told.put_nowait)
        assert [await told.get(), await told.get()] == [True, False]
        broken = False
        assert await told.get()
        result = await pool.run(Run(forge.tool(wat.ECHO), "alice", b"1", LIMITS))
        assert result.outcome is Outcome.OK
    assert told.empty()
    logged = [record.message for record in caplog.records if record.name == "clawbox.wasm.starts"]
    assert [line.split(";")[0] for line in logged] == [
        "no worker can be started",
        "workers can be started again",
    ]
    assert len(caplog.records) <= 5


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_servers_health_says_so(tmp_path):
    with (
        running(tmp_path / "home", CLAWBOX_SANDBOX__BUILTIN_TOOLS="false") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        named = health.Watch(health_pb2.HealthCheckRequest(service="clawbox.v1.Sandbox"), timeout=60)
        overall = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (next(named).status, next(overall).status) == (SERVING, SERVING)
        check = health_pb2.HealthCheckRequest()
        while health.Check(check).status == SERVING:
            for child in children_of(server.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        assert (next(named).status, next(overall).status) == (NOT_SERVING, NOT_SERVING)
        assert (next(named).status, next(overall).status) == (SERVING, SERVING)
        system = health_pb2.HealthCheckRequest(service="clawbox.v1.System")
        assert health.Check(system).status == SERVING
