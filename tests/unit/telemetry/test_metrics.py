"""Names of metrics, and the page that Prometheus reads."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clawbox.config import MetricsSettings
from clawbox.telemetry import Metrics, MetricsEndpoint
from tests.live import free_ports


@dataclass
class Pool:
    workers: int
    busy: int


async def _get(port: int, request: bytes) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@pytest.fixture
async def endpoint():
    metrics = Metrics()
    async with MetricsEndpoint(MetricsSettings(port=0), metrics) as serving:
        yield metrics, serving.port


async def test_the_originals_names_are_kept_and_ours_are_there(endpoint) -> None:
    metrics, port = endpoint
    metrics.execution_ended(tool="echo", outcome="ok", duration_us=2_500, fuel_consumed=1_000)
    metrics.execution_ended(tool="echo", outcome="timeout", duration_us=9_000, fuel_consumed=5)
    metrics.output_sanitized(2)
    metrics.watch_tools(lambda: 3)
    metrics.watch_pool(lambda: Pool(2, 1))
    metrics.worker_replaced("crash")
    metrics.tool_compiled("ok", 0.5)
    metrics.token_refused("TOKEN_INVALID")
    metrics.execution_queued(0.25)
    metrics.rpc_observer("/a/B")("OK", 0.1)
    metrics.container_spawned(0.3)
    metrics.container_killed()
    metrics.exec_ended("RunCommand", 250)
    metrics.watch_containers(lambda: 4, {"running": lambda: 3, "paused": lambda: 1})
    head, body = await _get(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    expected = {
        ("clawbox_containers_total", "spawned"): 1,
        ("clawbox_containers_total", "killed"): 1,
        ("clawbox_containers_active",): 4,
        ("clawbox_containers_kept", "running"): 3,
        ("clawbox_container_spawn_duration_seconds_sum",): 0.3,
        ("clawbox_container_exec_duration_seconds_sum", "RunCommand"): 0.25,
        ("clawbox_wasm_executions_total", "echo", "ok"): 1,
        ("clawbox_wasm_executions_total", "echo", "error"): 1,
        ("clawbox_wasm_outcomes_total", "echo", "timeout"): 1,
        ("clawbox_wasm_execution_ms_count", "echo"): 2,
        ("clawbox_wasm_execution_ms_sum", "echo"): 11.5,
        ("clawbox_wasm_fuel_consumed_sum", "echo"): 1005,
        ("clawbox_sanitization_issues_total",): 2,
        ("clawbox_tools_loaded",): 3,
        ("clawbox_pool_workers",): 2,
        ("clawbox_pool_workers_busy",): 1,
        ("clawbox_pool_worker_restarts_total", "crash"): 1,
        ("clawbox_compiles_total", "ok"): 1,
        ("clawbox_refused_tokens_total", "TOKEN_INVALID"): 1,
        ("clawbox_rpcs_total", "/a/B", "OK"): 1,
        ("clawbox_execution_queue_seconds_sum",): 0.25,
    }
    assert {key: samples.get(key) for key in expected} == expected


async def test_only_metrics_are_served_and_only_read(endpoint) -> None:
    _, port = endpoint
    for request, status in (
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"404"),
    ):
        head, _ = await _get(port, request)
        assert head.split()[1] == status
    head, body = await _get(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert (head.split()[1], body) == (b"200", b"")


async def test_prometheus_gets_its_own_format_when_it_asks(endpoint) -> None:
    _, port = endpoint
    accept = b"Accept: application/openmetrics-text; version=1.0.0\r\n"
    head, body = await _get(port, b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n")
    assert b"openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


async def test_a_long_request_and_a_client_that_leaves_do_no_harm(endpoint) -> None:
    _, port = endpoint
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\n" + b"x" * 20_000)
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    writer.close()
    _, gone = await asyncio.open_connection("127.0.0.1", port)
    gone.transport.abort()
    head, _ = await _get(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert b"200" in head


async def test_leaving_closes_connections_and_port() -> None:
    # No port that the kernel gives whoever asks for any: afterwards it could be somebody else's.
    port, _ = free_ports()
    async with MetricsEndpoint(MetricsSettings(port=port), Metrics()) as serving:
        assert serving.port == port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET ")
        await writer.drain()
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)


def test_names_of_tools_do_not_grow_without_bound() -> None:
    metrics = Metrics()
    for number in range(1_200):
        metrics.execution_ended(tool=f"tool{number}", outcome="ok", duration_us=1, fuel_consumed=1)
    value = metrics.registry.get_sample_value(
        "clawbox_wasm_executions_total", {"tool": "other", "status": "ok"}
    )
    assert value == 200


def test_two_servers_in_a_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.token_refused("TOKEN_INVALID")
    assert (
        second.registry.get_sample_value("clawbox_refused_tokens_total", {"reason": "TOKEN_INVALID"}) is None
    )
