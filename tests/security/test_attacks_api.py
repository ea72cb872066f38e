"""What callers with a token could do to the server, to its memory, and to what is kept about others."""

from __future__ import annotations

import asyncio
import sys
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import structlog
from clawbox_client.v1 import sandbox_pb2, sandbox_pb2_grpc
from google.protobuf import json_format

from clawbox.auth import Principal
from clawbox.errors import ClawboxError
from clawbox.rpc import limits, sandbox
from clawbox.wasm.uploads import UploadStart
from tests.egress_world.supervised import suspend
from tests.integration.rpc import conftest as rpc
from tests.integration.sandbox_service.conftest import stack
from tests.integration.sandbox_service.modules import ECHO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.integration.sandbox_service.conftest import Stack

__all__ = ["stack"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


def begin(name: str, size: int) -> sandbox_pb2.UploadToolRequest:
    return sandbox_pb2.UploadToolRequest(start=sandbox_pb2.UploadToolStart(name=name, size_bytes=size))


def silence(over: threading.Event) -> Iterator[sandbox_pb2.UploadToolRequest]:
    yield begin("squatted", 100)
    over.wait()


def not_a_word(over: threading.Event) -> Iterator[sandbox_pb2.UploadToolRequest]:
    over.wait()
    yield begin("squatted", 100)


def nothing_for_ever(over: threading.Event) -> Iterator[sandbox_pb2.UploadToolRequest]:
    yield begin("squatted", 100)
    while not over.wait(0.001):
        yield sandbox_pb2.UploadToolRequest(chunk=b"")


@pytest.mark.parametrize("attack", [silence, not_a_word, nothing_for_ever])
async def test_an_upload_that_never_ends_is_ended_and_its_name_is_free(
    stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
    attack: Any,
) -> None:
    monkeypatch.setattr(sandbox, "UPLOAD_START_SECONDS", 0.3)
    over = threading.Event()
    with pytest.raises(grpc.RpcError) as failed:
        await stack.upload(attack(over), "ann")
    over.set()
    error: Any = failed.value
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "slower than" in error.details()
    assert not list((stack.tool_dir / ".clawbox" / "staging").iterdir())
    monkeypatch.undo()
    await stack.upload([begin("squatted", len(ECHO)), sandbox_pb2.UploadToolRequest(chunk=ECHO)], "ann")
    await stack.sandbox.DeleteTool(
        sandbox_pb2.DeleteToolRequest(name="squatted"), metadata=stack.as_("ann"), timeout=20
    )


async def test_uploads_under_way_are_not_kept_in_memory(stack: Stack) -> None:
    size, chunk, uploads = 1 << 20, bytes(64 << 10), 12
    received = asyncio.Semaphore(0)
    go_on = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // len(chunk)):
            yield chunk
        received.release()
        await go_on.wait()
        yield b"one too many"

    async def upload(number: int) -> None:
        with pytest.raises(ClawboxError, match="more than"):
            await stack.catalog.upload(
                UploadStart(f"held-{number}", size), chunks(), Principal("ann", frozenset(("sandbox:write",)))
            )

    tracemalloc.start()
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(uploads):
                group.create_task(upload(number))
            for _ in range(uploads):
                await received.acquire()
            held, _ = tracemalloc.get_traced_memory()
            go_on.set()
    finally:
        tracemalloc.stop()
    assert held < uploads * size / 4


async def test_the_log_does_not_repeat_parameters_that_break_a_schema(
    stack: Stack,
) -> None:
    manifest = {
        "tool": {"name": "strict", "description": "x"},
        "input_schema": {"properties": {"pin": {"pattern": "^[0-9]+$"}}},
    }

    first = begin("strict", len(ECHO))
    json_format.ParseDict(manifest, first.start.manifest)
    await stack.upload([first, sandbox_pb2.UploadToolRequest(chunk=ECHO)], "ann")
    with structlog.testing.capture_logs() as entries, pytest.raises(grpc.aio.AioRpcError) as failed:
        await stack.sandbox.Execute(
            sandbox_pb2.ExecuteRequest(tool="strict", params_json='{"pin": "swordfish"}'),
            metadata=stack.as_("ann"),
            timeout=20,
        )
    assert "swordfish" in (failed.value.details() or "")  # the caller is told, of course
    refused = [entry for entry in entries if entry["event"] == "call refused"]
    assert [(entry["reason"], entry["message"]) for entry in refused] == [("INVALID_INPUT", "pattern")]
    assert "swordfish" not in str(entries)


READER = """
import signal, sys
import grpc
from clawbox_client.v1 import sandbox_pb2, sandbox_pb2_grpc

channel = grpc.insecure_channel(sys.argv[1], [("grpc.http2.bdp_probe", 0)])
stub = sandbox_pb2_grpc.SandboxStub(channel)
request = sandbox_pb2.ExecuteRequest(tool="x")
metadata = [("authorization", "Bearer " + sys.argv[2])]
calls = [stub.Execute.future(request, metadata=metadata) for _ in range(8)]
print("sent", flush=True)
signal.pause()
"""


async def test_who_leaves_replies_unread_gets_no_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred on each connection stayed in memory, on as many connections as one liked."""
    monkeypatch.setattr(limits.UnreadReplies.__init__, "__defaults__", (16 << 20,))
    arrived = asyncio.Semaphore(0)
    stopped = asyncio.Event()

    async def large(_request: Any) -> sandbox_pb2.ExecuteResponse:
        arrived.release()
        await stopped.wait()
        return sandbox_pb2.ExecuteResponse(output_bytes=bytes(4 << 20))

    async with rpc.serving() as running, asyncio.timeout(30):
        running.sandbox.execute = large
        address = f"127.0.0.1:{running.server.port}"
        reader = await asyncio.create_subprocess_exec(
            sys.executable, "-c", READER, address, rpc.ADMIN, stdout=asyncio.subprocess.PIPE
        )
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = sandbox_pb2_grpc.SandboxStub(channel)

            async def execute(token: str) -> Any:
                return await stub.Execute(sandbox_pb2.ExecuteRequest(), metadata=rpc.metadata(token))

            try:
                assert reader.stdout is not None
                await reader.stdout.readline()
                for _ in range(8):
                    await arrived.acquire()
                await suspend(reader.pid)
                stopped.set()
                running.sandbox.execute = running.sandbox._ok
                await execute(rpc.NARROW)  # somebody else
                refused = await rpc.failure(execute(rpc.ADMIN))
                assert rpc.details(refused).reason == "STREAM_LIMIT"
                await execute(rpc.NARROW)
            finally:
                reader.kill()
                await reader.wait()
            assert await running.server.calls.wait_none_left(10)
            await execute(rpc.ADMIN)
