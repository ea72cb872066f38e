"""ExecuteStream and its readers: pieces are joined, a slow reader is cut, the run ends with the call."""

import asyncio
from typing import Any

import pytest
from clawbox_client.v1 import sandbox_pb2

from clawbox.auth import Principal
from clawbox.errors import ClawboxError, Reason
from clawbox.policy import ToolCeiling
from clawbox.rpc import sandbox as module
from clawbox.rpc.call import Call
from clawbox.rpc.methods import method_table
from clawbox.rpc.sandbox import SandboxServicer
from clawbox.wasm.executor import Execution, Started
from clawbox.wasm.model import Level, LogEntry, Outcome, OutputChunk, OutputStream, RunResult
from clawbox.wasm.output import Scanned

CEILING = ToolCeiling(
    default_timeout_ms=1,
    max_timeout_ms=1,
    default_memory_mb=1,
    max_memory_mb=1,
    default_fuel=1,
    max_fuel=1,
)
NAME = "/clawbox.v1.Sandbox/ExecuteStream"


class ScriptedExecutor:
    """Does at once what the test says, and then waits to be let go."""

    def __init__(self, events):
        self.events = events
        self.may_end = asyncio.Event()
        self.did_all = asyncio.Event()
        self.ended = ""

    async def execute(self, call, principal, on_event):
        try:
            for event in self.events:
                on_event(event)
            self.did_all.set()
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "done"
        return Execution("d" * 64, Scanned(RunResult(Outcome.OK)))


def stream_of(executor: Any):
    call = Call(NAME, method_table()[NAME], "unix:", "r1")
    call.principal = Principal("ann", frozenset({"*"}))
    call.enter()
    unused: Any = None
    servicer = SandboxServicer(executor, unused, unused, CEILING)
    request = sandbox_pb2.ExecuteStreamRequest(execute=sandbox_pb2.ExecuteRequest(tool="any"))
    return servicer.ExecuteStream(request, unused)


def chunks(count, size, stream=OutputStream.STDOUT):
    return [OutputChunk(stream, bytes([65 + n % 26]) * size, n * size) for n in range(count)]


async def test_pieces_that_wait_are_put_together_and_large_ones_cut():
    executor = ScriptedExecutor(
        [
            Started("d" * 64),
            *chunks(100, 1),
            LogEntry(Level.INFO, "log", 1),
            *chunks(1, 200_000, OutputStream.STDERR),
        ]
    )
    executor.may_end.set()
    events = [event async for event in stream_of(executor)]
    assert [event.WhichOneof("event") for event in events] == [
        "started", "stdout", "log", "stderr", "stderr", "stderr", "stderr", "result",
    ]  # fmt: skip
    assert (len(events[1].stdout.data), events[1].stdout.offset) == (100, 0)
    assert [event.stderr.offset for event in events[3:7]] == [0, 65_536, 131_072, 196_608]
    assert max(len(event.stderr.data) for event in events) == 65_536


async def test_a_reader_that_lets_too_much_wait_is_cut_and_its_run_killed():
    executor = ScriptedExecutor([Started("d" * 64), *chunks(66, 65_536)])
    assert module.MAX_BUFFERED_BYTES < 66 * 65_536
    stream = stream_of(executor)
    with pytest.raises(ClawboxError) as caught:
        async for _ in stream:
            pass
    assert caught.value.reason is Reason.SLOW_READER
    assert executor.ended == "cancelled"


async def test_many_tiny_events_count_for_what_they_cost():
    lines = [
        event
        for n in range(12_000)
        for event in chunks(1, 1, (OutputStream.STDOUT, OutputStream.STDERR)[n % 2])
    ]
    executor = ScriptedExecutor([*lines, *lines])
    with pytest.raises(ClawboxError, match="waited to be read"):
        async for _ in stream_of(executor):
            pass


async def test_a_reader_that_keeps_up_is_not_cut_however_much_there_is():
    executor: Any = ScriptedExecutor([])

    async def execute(call, principal, on_event):
        for number in range(100):
            on_event(OutputChunk(OutputStream.STDOUT, b"x" * 65_536, number * 65_536))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return Execution("d" * 64, Scanned(RunResult(Outcome.OK)))

    executor.execute = execute
    size = 0
    async for event in stream_of(executor):
        size += len(event.stdout.data)
    assert size == 100 * 65_536


async def test_a_reader_that_leaves_ends_the_run_before_the_call_ends():
    executor = ScriptedExecutor([Started("d" * 64)])
    stream = stream_of(executor)
    await anext(stream)
    await executor.did_all.wait()
    await stream.aclose()
    assert executor.ended == "cancelled"


async def test_a_run_that_is_refused_ends_the_stream_with_its_error():
    executor: Any = ScriptedExecutor([])

    async def execute(call, principal, on_event):
        raise ClawboxError(Reason.TOOL_NOT_FOUND, "there is no tool")

    executor.execute = execute
    with pytest.raises(ClawboxError, match="there is no tool"):
        await anext(stream_of(executor))
