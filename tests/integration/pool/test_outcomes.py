"""Each way in which a run can end, with real workers."""

import json
import struct

import msgspec
import pytest

from clawbox.wasm.model import Abi, InvalidInputError, Level, LogEntry, Outcome, OutputChunk, OutputStream
from tests.integration.pool.conftest import LIMITS
from tests.unit.wasm import wat


def limited(**changes):
    return msgspec.structs.replace(LIMITS, **changes)


async def test_stdin_comes_back_on_stdout(execute):
    params = json.dumps({"text": "grüß " * 10_000}).encode()
    result = await execute(wat.ECHO, params, limits=limited(memory_bytes=1 << 20))
    assert (Outcome.OK, params, b"", 0) == (result.outcome, result.output, result.stdout, result.exit_code)
    assert 0 < result.fuel_consumed < 10_000
    assert result.peak_memory_bytes == 4 * 65536
    assert result.duration_us > 0


async def test_a_trap_is_a_tool_error_with_its_cause(execute):
    result = await execute(wat.TRAP)
    assert result.outcome is Outcome.TOOL_ERROR
    assert result.message.startswith("trap: unreachable code reached")
    assert result.output is None


async def test_exit_status_3_is_a_tool_error_that_says_3(execute):
    result = await execute(wat.EXIT_3)
    assert (
        result.outcome,
        result.exit_code,
        result.message,
    ) == (Outcome.TOOL_ERROR, 3, "exited with status 3")
    assert (result.output, result.stdout) == (None, b"half")


async def test_exit_status_0_is_ok(execute):
    assert (await execute(wat.EXIT_0)).outcome is Outcome.OK


async def test_recursion_without_end_is_a_tool_error_with_a_bounded_message(execute):
    result = await execute(wat.DEEP)
    assert result.outcome is Outcome.TOOL_ERROR
    assert result.message.startswith("trap: call stack exhausted")
    assert len(result.message) <= 4096


async def test_fuel_runs_out(execute):
    result = await execute(wat.SPIN, limits=limited(fuel=50_000))
    assert (result.outcome, result.fuel_consumed) == (Outcome.FUEL_EXHAUSTED, 50_000)


async def test_time_runs_out_and_what_was_written_survives(execute):
    result = await execute(wat.SPIN_AFTER_OUTPUT, limits=limited(timeout_ms=150, fuel=1 << 60))
    assert (result.outcome, result.message) == (Outcome.TIMEOUT, "ran longer than 150 ms")
    assert result.stdout == b"partial"
    assert result.duration_us >= 140_000


async def test_memory_runs_out(execute):
    result = await execute(wat.HUNGRY, limits=limited(memory_bytes=8 << 20))
    assert result.outcome is Outcome.MEMORY_EXCEEDED
    assert 7 << 20 <= result.peak_memory_bytes <= 8 << 20


async def test_a_module_that_starts_with_too_much_memory_is_told_so(execute):
    assert (await execute(wat.GREEDY_START)).outcome is Outcome.MEMORY_EXCEEDED


async def test_output_runs_over(execute):
    result = await execute(wat.FLOOD_OUT, limits=limited(stdout_bytes=100_000))
    assert (result.outcome, result.output) == (Outcome.OUTPUT_EXCEEDED, None)
    assert len(result.stdout) == 100_000
    assert result.truncated == ((OutputStream.STDOUT, 100_000),)


async def test_stderr_is_cut_and_the_run_goes_on(execute):
    result = await execute(wat.FLOOD_ERR, limits=limited(stderr_bytes=1000))
    assert (result.outcome, len(result.stderr)) == (Outcome.OK, 1000)
    assert result.truncated == ((OutputStream.STDERR, 1000),)


async def test_host_calls_are_counted(execute):
    request = json.dumps({"method": "log", "params": {"level": "warn", "message": "hi"}})
    result = await execute(wat.host_calls(3, request))
    assert (result.outcome, result.output, result.host_calls) == (Outcome.OK, b'{"ok": null}', 3)
    assert [(entry.level, entry.message) for entry in result.logs] == [(Level.WARN, "hi")] * 3
    over = await execute(wat.host_calls(101, request))
    assert (over.outcome, len(over.logs)) == (Outcome.HOST_CALLS_EXCEEDED, 100)
    assert json.loads(over.stdout) == {"error": "host_call limit exceeded (max 100)"}


async def test_logs_are_cut_where_too_long(execute):
    request = json.dumps({"method": "log", "params": {"message": "x" * 60}})
    result = await execute(wat.host_calls(3, request), limits=limited(log_bytes=100))
    assert [len(entry.message) for entry in result.logs] == [60, 40]
    assert result.truncated == ((OutputStream.LOG, 100),)


@pytest.mark.parametrize(
    ("request_text", "error"),
    [
        ('{"method":"nope"}', "unknown host call method: nope"),
        ('{"method":"http_request","params":{}}', "missing 'url' parameter"),
        (
            '{"method":"http_request","params":{"url":"http://example.com/"}}',
            "URL blocked by allowlist: http://example.com/",
        ),
        ("{}", "invalid host_call request: missing 'method'"),
    ],
)
async def test_host_call_errors_say_what_is_wrong(execute, request_text, error):
    assert json.loads((await execute(wat.host_calls(1, request_text))).output) == {"error": error}


@pytest.mark.parametrize(
    "pointers", [(-1, 17, 8192, 8192), (1024, -1, 8192, 1), (1024, 17, -5, 200), (1024, 17, 8192, 3)]
)
async def test_host_call_survives_any_pointer(execute, pointers):
    assert (await execute(wat.host_call_with(pointers))).outcome is Outcome.OK  # it said -1, plus 1


async def test_a_reply_that_does_not_fit_is_fetched_in_pieces(execute):
    whole = json.dumps({"error": "unknown host call method: " + "x" * 150})
    for capacity in (120, 5):
        result = await execute(wat.short_reply(capacity))
        assert whole == result.output.decode()
        if capacity == 120:
            assert json.loads(result.stderr)["size"] == len(whole)
        else:
            assert result.stderr == b""


async def test_a_guest_sees_no_arguments_environment_or_files(execute):
    numbers = struct.unpack("<5I", (await execute(wat.SURROUNDINGS)).output)
    assert numbers == (0, 0, 0, 0, 8)  # 8: EBADF, there is no preopened folder


async def test_random_numbers_are_random(execute):
    assert (await execute(wat.RANDOM)).output != (await execute(wat.RANDOM)).output


async def test_input_is_checked_before_anything_runs(execute):
    schema = b'{"type":"object","required":["a"],"properties":{"b":{"type":"string"}}}'
    with pytest.raises(InvalidInputError) as caught:
        await execute(wat.TRAP, b'{"b":1}', input_schema=schema)
    assert {("", "required"), ("/b", "type")} == {(v.path, v.rule) for v in caught.value.violations}
    assert (await execute(wat.ECHO, b'{"a":1}', input_schema=schema)).outcome is Outcome.OK


async def test_a_schema_never_fetches(execute):
    with pytest.raises(InvalidInputError) as caught:
        await execute(wat.ECHO, b"1", input_schema=b'{"$ref":"http://127.0.0.1:1/x"}')
    assert [(v.path, v.rule) for v in caught.value.violations] == [("", "$ref")]


async def test_a_pattern_that_takes_for_ever_ends_with_its_time(execute):
    schema = json.dumps({"type": "string", "pattern": "^(a+)+$"}).encode()
    result = await execute(
        wat.ECHO, b'"' + b"a" * 60 + b'!"', input_schema=schema, limits=limited(timeout_ms=200)
    )
    assert result.outcome is Outcome.TIMEOUT


async def test_output_is_checked_after_the_run(execute):
    schema = b'{"type":"string"}'
    assert (await execute(wat.ECHO, b'"text"', output_schema=schema)).outcome is Outcome.OK
    assert (
        await execute(wat.ECHO, b"not JSON", output_schema=schema)
    ).outcome is Outcome.OK  # a JSON string then
    result = await execute(wat.ECHO, b'{"a":1}', output_schema=schema)
    assert (result.outcome, result.output, result.stdout) == (Outcome.INVALID_OUTPUT, None, b'{"a":1}')
    assert "(type)" in result.message


async def test_a_component_returns_its_string(execute):
    result = await execute(wat.COMPONENT_OK, b'{"a": [1]}', abi=Abi.COMPONENT)
    assert (result.outcome, result.output, result.exit_code) == (Outcome.OK, b'{"a": [1]}', None)
    again = await execute(wat.COMPONENT_OK, b'"prepared"', abi=Abi.COMPONENT)
    assert again.output == b'"prepared"'


@pytest.mark.parametrize(
    ("returned", "message", "outcome"),
    [
        ('"plain"', '"plain"', Outcome.TOOL_ERROR),
        ('{"error":"no luck"}', "no luck", Outcome.TOOL_ERROR),
        ('{"error":{"type":"ValueError","message":"bad"}}', "ValueError: bad", Outcome.TOOL_ERROR),
        (
            '{"error":{"type":"MemoryError"}}',
            "needed more than 33554432 bytes of memory (MemoryError)",
            Outcome.MEMORY_EXCEEDED,
        ),
    ],
)
async def test_a_components_error_is_a_tool_error_with_its_message(execute, returned, message, outcome):
    result = await execute(wat.COMPONENT_ERR, returned.encode(), abi=Abi.COMPONENT)
    assert (outcome, message, returned.encode()) == (result.outcome, result.message, result.output)


async def test_a_command_component_ends_well_or_with_status_1(execute):
    good = await execute(wat.command_component(0), abi=Abi.COMMAND_COMPONENT)
    bad = await execute(wat.command_component(1), abi=Abi.COMMAND_COMPONENT)
    assert (good.outcome, good.output) == (Outcome.OK, b"")
    assert (bad.outcome, bad.exit_code, bad.output) == (Outcome.TOOL_ERROR, 1, None)


async def test_components_have_the_same_limits(execute):
    fuel = await execute(wat.COMPONENT_SPIN, abi=Abi.COMPONENT, limits=limited(fuel=10_000))
    time = await execute(wat.COMPONENT_SPIN, abi=Abi.COMPONENT, limits=limited(timeout_ms=150, fuel=1 << 60))
    size = await execute(
        wat.COMPONENT_OK, b'"' + b"x" * 500 + b'"', abi=Abi.COMPONENT, limits=limited(stdout_bytes=400)
    )
    assert [
        fuel.outcome,
        time.outcome,
        size.outcome,
    ] == [Outcome.FUEL_EXHAUSTED, Outcome.TIMEOUT, Outcome.OUTPUT_EXCEEDED]


async def test_a_start_function_runs_only_within_its_call(execute):
    for _ in range(3):
        result = await execute(wat.COMPONENT_SPINNING_START, b"1", abi=Abi.COMPONENT)
        assert result.outcome is Outcome.OK
        assert result.fuel_consumed > 1_000_000


async def test_a_streamed_run_says_what_it_writes_in_order(execute):
    events: list[object] = []
    result = await execute(wat.EXIT_3, on_event=events.append)
    assert [OutputChunk(OutputStream.STDOUT, b"half", 0)] == events
    assert result.stdout == b"half"
    logs: list[object] = []
    request = json.dumps({"method": "log", "params": {"message": "one"}})
    await execute(wat.host_calls(2, request), on_event=logs.append)
    assert [event.message for event in logs if isinstance(event, LogEntry)] == ["one", "one"]


async def test_many_tiny_pieces_of_two_streams_all_arrive(execute):
    events: list[OutputChunk] = []
    streamed = await execute(wat.ALTERNATING, on_event=events.append)
    assert (streamed.outcome, streamed.output, streamed.stderr) == (Outcome.OK, b"o" * 1000, b"e" * 1000)
    for stream, whole in ((OutputStream.STDOUT, b"o" * 1000), (OutputStream.STDERR, b"e" * 1000)):
        assert b"".join(event.data for event in events if event.stream is stream) == whole
    silent = await execute(wat.ALTERNATING)
    assert (silent.output, silent.stderr) == (b"o" * 1000, b"e" * 1000)


async def test_a_failing_watcher_does_not_harm_the_run(execute):
    def fail(event):
        raise RuntimeError("watcher")

    assert (await execute(wat.ECHO, b"12", on_event=fail)).output == b"12"
