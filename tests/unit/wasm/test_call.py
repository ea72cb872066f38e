"""Control does not believe a worker beyond the limits of the run."""

from typing import Any

import msgspec
import pytest

from clawbox.children.channel import FrameError
from clawbox.wasm.call import MAX_WORKERS, Call
from clawbox.wasm.messages import Done, Logged, Written
from clawbox.wasm.model import Abi, Level, Limits, Outcome, OutputStream, Run, ToolCode

LIMITS = Limits(
    timeout_ms=1000, fuel=1, memory_bytes=1, stdout_bytes=10, stderr_bytes=5, log_bytes=6, host_calls=2
)
CODE = ToolCode("t", "d" * 64, Abi.COMMAND_MODULE, "/artifact", table_elements=20_000)


@pytest.fixture
async def call():
    made = Call(Run(CODE, "alice", b"{}", LIMITS), None, now=0.0)
    made.started_at = 1.0
    return made


def done(**changes):
    fields: dict[str, Any] = {
        "outcome": Outcome.OK,
        "message": "",
        "output": None,
        "written": [],
        "logged": [],
        "truncated": [],
        "exit_code": 0,
        "trapped": False,
        "bloated": False,
        "prepares": False,
        "fuel_consumed": 1,
        "peak_memory_bytes": 1,
        "host_calls": 0,
        "egress_calls": 0,
        "duration_us": 5,
    }
    return Done(**(fields | changes))


def out(data, stream=OutputStream.STDOUT):
    return Written(stream, data)


async def test_pieces_become_the_output(call):
    call.take([out(b"abc"), out(b"E", OutputStream.STDERR)], [Logged(Level.INFO, "l", 3)], 1.0)
    result = call.finish(done(written=[out(b"def")]), 2.0)
    assert (
        result.output,
        result.stdout,
        result.stderr,
        result.queued_us,
    ) == (b"abcdef", b"", b"E", 1_000_000)
    assert [entry.message for entry in result.logs] == ["l"]


@pytest.mark.parametrize(
    ("written", "logged"),
    [
        ([out(b"x" * 11)], []),
        ([out(b"x" * 6, OutputStream.STDERR)], []),
        ([out(b"x", OutputStream.LOG)], []),
        ([out(b"")], []),
        ([out(b"a"), out(b"b")], []),
        ([out(b"a"), out(b"", OutputStream.STDERR)] * 2, []),
        ([], [Logged(Level.INFO, "1234567", 0)]),
        ([], [Logged(Level.INFO, "", 0)] * 3),
    ],
)
async def test_more_than_a_run_may_write_is_a_broken_protocol(call, written, logged):
    with pytest.raises(FrameError):
        call.take(written, logged, 1.0)


async def test_a_flood_of_messages_is_a_broken_protocol(call):
    def flood():
        for _ in range(2000):
            call.take([], [], 1.0)

    with pytest.raises(FrameError):
        flood()


async def test_a_flood_of_tiny_pieces_is_a_broken_protocol():
    limits = Limits(timeout_ms=1000, fuel=1, memory_bytes=1, stdout_bytes=1 << 20, stderr_bytes=1 << 20)
    events: list[object] = []
    call = Call(Run(CODE, "alice", b"{}", limits), events.append, now=0.0)
    with pytest.raises(FrameError, match="more pieces"):
        call.take([out(b"a"), out(b"b", OutputStream.STDERR)] * 1000, [], 1.0)
    assert not events


async def test_a_components_good_end_without_output_is_a_broken_protocol():
    code = ToolCode("t", "d" * 64, Abi.COMPONENT, "/artifact")
    with pytest.raises(FrameError, match="without output"):
        Call(Run(code, "alice", b"{}", LIMITS), None, now=0.0).finish(done(), 2.0)


def test_an_exit_status_that_is_none_is_no_message():
    payload = msgspec.msgpack.encode(done(exit_code=1 << 31))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(payload, type=Done)


@pytest.mark.parametrize(
    "changes",
    [
        {"output": b"x" * 11},
        {"outcome": Outcome.CANCELLED},
        {"outcome": Outcome.BLOCKED},
        {"written": [out(b"x" * 11)]},
    ],
)
async def test_a_result_beyond_the_limits_is_a_broken_protocol(call, changes):
    with pytest.raises(FrameError):
        call.finish(done(**changes), 2.0)


async def test_numbers_and_texts_are_bounded(call):
    result = call.finish(done(message="m" * 9999, fuel_consumed=1 << 63, host_calls=-4), 2.0)
    assert (len(result.message), result.fuel_consumed, result.host_calls) == (4096, (1 << 63) - 1, 0)


async def test_the_tools_table_size_goes_to_the_worker(call):
    assert call.frame(0).limits.table_elements == 20_000


async def test_a_call_that_was_not_begun_goes_to_another_worker_only_so_often(call):
    tries = 1
    while call.may_go_to_another():
        assert call.started_at is None
        tries += 1
        call.started_at = 1.0
    assert tries == MAX_WORKERS


async def test_a_call_of_which_something_came_goes_to_no_other_worker(call):
    call.take([Written(OutputStream.STDOUT, b"1")], [], now=1.0)
    assert not call.may_go_to_another()
    assert call.lost(Outcome.SANDBOX_LOST, "it died", 2.0).stdout == b"1"
