from __future__ import annotations

import asyncio
import socket

import clawbox_client as cb
import grpc
import pytest

from tests.integration.client.conftest import Caller
from tests.integration.client.fakes import TOKEN, Refusal, serving


@pytest.mark.parametrize(
    ("code", "kind_of_error"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, cb.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, cb.PermissionDenied),
        (grpc.StatusCode.NOT_FOUND, cb.NotFound),
        (grpc.StatusCode.INVALID_ARGUMENT, cb.InvalidArgument),
        (grpc.StatusCode.ALREADY_EXISTS, cb.AlreadyExists),
        (grpc.StatusCode.FAILED_PRECONDITION, cb.FailedPrecondition),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, cb.ResourceExhausted),
        (grpc.StatusCode.UNAVAILABLE, cb.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, cb.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, cb.Cancelled),
        (grpc.StatusCode.INTERNAL, cb.Internal),
        (grpc.StatusCode.UNIMPLEMENTED, cb.ClawboxError),
    ],
)
async def test_each_status_has_its_type(caller, server, code, kind_of_error):
    server.refuse["Execute"] = [Refusal(code, "because", "SOME_REASON", tool="t")]

    with pytest.raises(cb.ClawboxError) as caught:
        await caller.call("execute", "t")

    error = caught.value
    assert type(error) is kind_of_error
    assert (error.code, error.reason, error.message) == (code, "SOME_REASON", "because")
    assert error.metadata == {"tool": "t"}
    assert error.request_id == "req-1"
    assert str(error) == "SOME_REASON: because"


async def test_details_are_read(caller, server):
    server.refuse["Execute"] = [
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "2 fields", "INVALID_INPUT")
        .with_violation("/a", "is missing", "required")
        .with_retry(1.5)
    ]

    with pytest.raises(cb.InvalidArgument) as caught:
        await caller.call("execute", "t")

    assert caught.value.violations == (cb.FieldViolation("/a", "is missing", "required"),)
    assert caught.value.retry_after == 1.5


async def test_a_status_without_details_still_has_its_type(caller, server):
    server.refuse["Execute"] = [Refusal(grpc.StatusCode.NOT_FOUND, "proxy says no")]

    with pytest.raises(cb.NotFound) as caught:
        await caller.call("execute", "t")

    assert (caught.value.reason, caught.value.metadata, caught.value.message) == ("", {}, "proxy says no")


async def test_no_token_and_a_wrong_token(kind, server):
    for token, reason in ((None, "TOKEN_MISSING"), ("wrong", "TOKEN_INVALID")):
        caller = Caller(kind, server.address, token=token)
        with pytest.raises(cb.Unauthenticated) as caught:
            await caller.call("status")
        assert caught.value.reason == reason
        await caller.close()


async def test_reading_calls_are_retried_when_the_server_is_unavailable(caller, server):
    server.refuse["GetStatus"] = [Refusal(grpc.StatusCode.UNAVAILABLE, "restarting") for _ in range(2)]

    assert (await caller.call("status")).status == "ok"
    assert len(server.calls("GetStatus")) == 3


@pytest.mark.parametrize(
    ("method", "rpc"), [("execute", "Execute"), ("delete_tool", "DeleteTool"), ("get_tool", "GetTool")]
)
async def test_what_changes_something_and_other_errors_are_not_retried(caller, server, method, rpc):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if method == "get_tool" else grpc.StatusCode.UNAVAILABLE
    server.refuse[rpc] = [Refusal(code, "no") for _ in range(5)]

    with pytest.raises(cb.ClawboxError):
        await caller.call(method, "t")

    assert len(server.calls(rpc)) == 1


async def test_a_deadline_that_passes(caller, server):
    server.events = []

    for deadline in (0.05, 0.5, 5):  # one that passes before the call arrives shows nothing of its end
        with pytest.raises(cb.DeadlineExceeded):
            await caller.collect("execute_stream", "t", deadline=deadline)
        if server.started.is_set():
            break
    await asyncio.wait_for(server.stream_ended.wait(), 10)


async def test_calls_have_a_deadline_that_leaves_room_for_the_run(caller, server):
    await caller.call("execute", "t")
    await caller.call("execute", "t", timeout_ms=100_000)
    await caller.call("execute", "t", deadline=7)

    left = [one.seconds_left for one in server.calls("Execute")]
    assert 50 < left[0] < 62
    assert 120 < left[1] < 132
    assert 0 < left[2] < 9


async def test_nobody_listens(kind):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        caller = Caller(kind, f"127.0.0.1:{taken.getsockname()[1]}", token=TOKEN)
        with pytest.raises(cb.Unavailable) as caught:
            await caller.call("execute", "t")
        assert caught.value.reason == ""
        await caller.close()


async def test_health_can_wait_for_a_server(kind, tmp_path):
    address = f"unix:{tmp_path}/s.sock"
    caller = Caller(kind, address)
    waiting = asyncio.create_task(caller.call("health", wait=True, deadline=30))
    await asyncio.sleep(0)
    async with serving(address=address):
        assert await waiting is cb.Health.SERVING
        await caller.close()


async def test_cancelling_the_task_ends_the_run(server):
    server.events = []
    async with cb.Client(server.address, token=TOKEN) as client:

        async def consume() -> None:
            async for _ in client.execute_stream("t"):
                pass

        task = asyncio.create_task(consume())
        await asyncio.wait_for(server.started.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.stream_ended.wait(), 10)


async def test_closing_a_stream_from_elsewhere_ends_its_loop(server):
    server.events = []
    async with cb.Client(server.address, token=TOKEN) as client:
        stream = client.execute_stream("t")

        async def consume() -> list[object]:
            return [event async for event in stream]

        task = asyncio.create_task(consume())
        await asyncio.wait_for(server.started.wait(), 10)
        await stream.aclose()
        assert await task == []


def test_a_client_outside_of_a_loop_is_refused():
    with pytest.raises(RuntimeError):
        cb.Client()


async def test_a_changed_token_file_is_read_again(kind, server, tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("old\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    caller = Caller(kind, server.address, token_file="~/token")
    with pytest.raises(cb.Unauthenticated):
        await caller.call("status")

    path.write_text(f"{TOKEN}\n")

    assert (await caller.call("status")).status == "ok"
    await caller.close()


async def test_a_function_gives_the_token_for_each_call(kind, server):
    tokens = iter(["stale", TOKEN])
    caller = Caller(kind, server.address, token=lambda: next(tokens))
    with pytest.raises(cb.Unauthenticated):
        await caller.call("status")
    assert (await caller.call("status")).status == "ok"
    await caller.close()
