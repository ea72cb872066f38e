"""Requests of real workers over connections that they were handed."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from pathlib import Path

import pytest

from clawbox.wasm.model import InvalidInputError, Limits, Outcome
from tests.integration.tool_egress.conftest import Bench, request
from tests.unit.wasm import wat

EVERY_BYTE = bytes(range(256))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_guest_gets_the_answer_that_the_sidecar_gave(bench: Bench) -> None:
    bench.door.answer = lambda _: (
        200,
        {"status": 201, "header_list": [["x", "1"], ["x", "2"]], "body_base64": "Z3LDvMOfZQ=="},
    )

    reply = await bench.send(request(method="POST", headers={"A": "b"}, body="ü"))

    assert reply == {"ok": {"status": 201, "headers": {"x": "1, 2"}, "body": "grüße"}}
    [call] = bench.door.calls
    [asked] = call.requests
    assert asked.token == call.token
    assert asked.document == {
        "url": "https://a.example/",
        "method": "POST",
        "headers": [["A", "b"]],
        "body_base64": base64.b64encode("ü".encode()).decode(),
        "binary": True,
    }


async def test_bytes_pass_whole_both_ways(bench: Bench) -> None:
    large = base64.b64encode(EVERY_BYTE * 4096).decode()  # 1 MiB
    bench.door.answer = lambda asked: (
        200,
        {"status": 200, "header_list": [], "body_base64": asked.document["body_base64"]},
    )

    reply = await bench.send(request(body_base64=large, binary=True), limits=_large())

    assert reply["ok"]["body_base64"] == large


def _large() -> Limits:
    return Limits(timeout_ms=10_000, fuel=10**10, memory_bytes=32 << 20, stdout_bytes=4 << 20)


async def test_a_body_of_control_characters_fits_into_the_workers_memory(bench: Bench) -> None:
    body = base64.b64encode(bytes(600_000)).decode()
    bench.door.answer = lambda _: (200, {"status": 200, "header_list": [], "body_base64": body})

    reply = await bench.send(limits=_large())

    assert reply["ok"]["body"] == "\0" * 600_000


async def test_a_refusal_is_the_sidecars_text(bench: Bench) -> None:
    text = "URL blocked by allowlist: https://b.example/"
    bench.door.answer = lambda _: (403, {"error": text, "reason": "host_not_allowed"})

    assert await bench.send(request("https://b.example/")) == {"error": text}


async def test_requests_are_counted(bench: Bench) -> None:
    async with bench.way_out() as call:
        tool = wat.host_calls(3, request().decode())
        result = await bench.run(b"{}", call, text=tool)

    assert (result.outcome, result.host_calls, result.egress_calls) == (Outcome.OK, 3, 3)
    assert len(call.requests) == 3


async def test_without_a_way_out_nothing_is_counted_and_the_allowlist_is_empty(bench: Bench) -> None:
    result = await bench.run(request())

    assert result.output == b'{"error": "URL blocked by allowlist: https://a.example/"}'
    assert result.egress_calls == 0


async def test_a_sidecar_that_is_gone_is_an_error_of_the_request_alone(bench: Bench) -> None:
    bench.door.answer = lambda _: (200, {})  # which ends the exchange, and the connection with it

    reply = await bench.send()

    assert reply["error"].startswith("HTTP error: ")
    assert bench.pool.stats().lost_total == 0


async def test_a_request_that_is_never_answered_ends_with_the_runs_time(bench: Bench) -> None:
    bench.door.hold = asyncio.Event()
    async with bench.way_out() as call:
        result = await bench.run(request(), call, limits=_short())
        await call.closed.wait()

    assert result.outcome is Outcome.TIMEOUT


def _short() -> Limits:
    return Limits(timeout_ms=300, fuel=10**9, memory_bytes=32 << 20)


async def test_a_call_that_waits_for_a_worker_and_is_cancelled_leaves_nothing(bench: Bench) -> None:
    await bench.send()
    descriptors = open_descriptors()
    bench.door.hold = asyncio.Event()
    async with bench.way_out() as first, bench.way_out("bob") as second, bench.way_out("carol") as third:
        runs = [
            asyncio.create_task(bench.run(request(), call, owner=owner))
            for call, owner in ((first, "alice"), (second, "bob"), (third, "carol"))
        ]
        while sum(map(len, (call.requests for call in bench.door.calls[1:]))) < 2:
            bench.door.came.clear()
            await bench.door.came.wait()
        for run in runs:
            run.cancel()
        for run in runs:
            with pytest.raises(asyncio.CancelledError):
                await run
    for call in (first, second, third):
        await call.closed.wait()
    assert open_descriptors() <= descriptors + 3 * 8  # new workers, and nothing of these calls
    assert third.requests == []


async def test_a_worker_keeps_no_connection_of_earlier_calls(bench: Bench) -> None:
    for _ in range(150):  # more than a worker may have open
        assert "ok" in await bench.send()
    assert bench.pool.stats().lost_total == 0
    assert all(call.closed.is_set() for call in bench.door.calls)


async def test_parameters_that_are_refused_close_the_connection_too(bench: Bench) -> None:
    async with bench.way_out() as call:
        with pytest.raises(InvalidInputError):
            await bench.run(b"{}", call, input_schema=b'{"type": "string"}')
        await call.closed.wait()


async def test_the_way_out_of_a_call_goes_with_it_to_another_worker(bench: Bench) -> None:
    await bench.send()
    pool = bench.pool
    async with asyncio.timeout(20):
        while not pool._workers.idle or pool._workers.idle[0].preparing_since is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.002)  # nothing announces it
    [worker] = pool._workers.idle
    os.kill(worker.child.pid, signal.SIGSTOP)
    sending = asyncio.create_task(bench.send())
    async with asyncio.timeout(20):
        while worker.call is None:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    os.kill(worker.child.pid, signal.SIGKILL)
    assert (await sending)["ok"]["status"] == 204
    assert worker.owner == "alice"
    assert len(bench.door.calls) == 2
