from __future__ import annotations

import json

import pytest
from clawbox_client.v1 import sandbox_pb2

from tests.integration.client.fakes import run_events

FAILED_CODE = json.dumps(
    {
        "stdout": "before\n",
        "stderr": "",
        "result": None,
        "error": {
            "type": "ValueError",
            "message": "no",
            "traceback": 'Traceback:\n  File "<code>", line 2\n',
            "line": 2,
        },
    }
)


async def test_the_output_of_a_tool_goes_to_stdout(cli, server):
    ended = await cli("run", "echo", '{"id": 9223372036854775809}')

    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == {"id": 2**63 + 1}


async def test_text_is_shown_as_text(cli, server):
    assert (await cli("run", "echo", '"a [bold]b"')).out == "a [bold]b\n"


async def test_json_has_the_whole_result(cli, server):
    ended = await cli("run", "echo", "[1]", "--json")

    assert ended.code == 0
    result = json.loads(ended.out)
    assert list(result) == [
        "request_id", "outcome", "message", "output", "stdout", "stderr", "logs", "metadata",
    ]  # fmt: skip
    assert (result["outcome"], result["output"]) == ("ok", [1])
    assert result["metadata"]["duration_us"] == 5


async def test_options_become_limits(cli, server):
    await cli(
        "run", "t", "--credentials", "a, b", "--allow", "x.example", "--allow", "y.example:8443",
        "--timeout", "1500", "--memory", "64", "--fuel", "9",
    )  # fmt: skip

    sent = server.seen[0].request
    assert list(sent.capabilities.credentials) == ["a", "b"]
    assert [rule.host for rule in sent.capabilities.network.rules] == ["x.example", "y.example"]
    resources = sent.capabilities.resources
    assert (resources.timeout_ms, resources.memory_mb, resources.fuel) == (1500, 64, 9)
    assert sent.params_json == "null"


async def test_parameters_from_a_file_and_from_stdin(cli, spawn, server, home):
    (home / "p.json").write_text('{"from": "file"}')

    assert json.loads((await cli("run", "echo", "@p.json")).out) == {"from": "file"}
    assert json.loads((await spawn("run", "echo", "-", stdin=b'{"from": "stdin"}')).out) == {"from": "stdin"}


async def test_a_run_that_fails_exits_with_1_and_says_why(cli, server):
    server.execute = lambda request: sandbox_pb2.ExecuteResponse(
        outcome=sandbox_pb2.OUTCOME_TIMEOUT,
        message="ran longer than 100 ms",
        metadata=sandbox_pb2.ExecutionMetadata(
            stderr=b"half a line",
            logs=[sandbox_pb2.LogEntry(level=sandbox_pb2.LOG_LEVEL_WARN, message="slow")],
        ),
    )

    ended = await cli("run", "t")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "half a line\n[warn] slow\nclawbox: TIMEOUT: ran longer than 100 ms\n"


async def test_a_failed_run_with_json_keeps_its_exit_code(cli, server):
    server.execute = lambda request: sandbox_pb2.ExecuteResponse(outcome=sandbox_pb2.OUTCOME_BLOCKED)

    ended = await cli("run", "t", "--json")

    assert (ended.code, json.loads(ended.out)["outcome"], ended.err) == (1, "blocked", "")


async def test_a_stream_shows_a_commands_output_once(cli, server):
    server.events = run_events(b'{"a":', b" 1}\n", output_json='{"a":1}')
    server.go_on.set()

    ended = await cli("run", "t", "--stream")

    assert (ended.code, ended.out) == (0, '{"a": 1}\n')


async def test_a_stream_shows_what_was_returned_beside_what_was_written(cli, server):
    server.events = run_events(b"working\n", output_json='"done"')
    server.go_on.set()

    assert (await cli("run", "t", "--stream")).out == "working\ndone\n"


async def test_a_stream_as_json_lines(cli, server):
    server.events = run_events(b"working\n", output_json="7")
    server.go_on.set()

    lines = [json.loads(line) for line in (await cli("run", "t", "--stream", "--json")).out.splitlines()]

    assert [line["event"] for line in lines] == ["started", "stdout", "result"]
    assert (lines[1]["data"], lines[2]["output"]) == ("working\n", 7)


async def test_py_streams_what_the_code_prints_and_then_its_result(cli, server):
    answer = {"stdout": "hi\n", "stderr": "", "result": 42, "error": None}
    server.events = run_events(b"hi\n", output_json=json.dumps(answer))
    server.go_on.set()

    ended = await cli("py", "print('hi')\n6*7", "--input", '{"n": 9223372036854775809}')

    assert (ended.code, ended.out, ended.err) == (0, "hi\n42\n", "")
    sent = server.seen[0].request.execute
    assert sent.tool == "python"
    assert json.loads(sent.params_json) == {"code": "print('hi')\n6*7", "input": {"n": 2**63 + 1}}


async def test_a_result_begins_on_a_line_of_its_own(cli, server):
    server.events = run_events(
        b"no end", output_json='{"stdout":"no end","stderr":"","result":[1,2],"error":null}'
    )
    server.go_on.set()

    assert (await cli("py", "x")).out == "no end\n[1,2]\n"


async def test_js_takes_a_file(cli, server, home):
    (home / "a.js").write_text("console.log(1)")
    server.events = run_events(b"1\n", output_json='{"stdout":"1\\n","stderr":"","result":null,"error":null}')
    server.go_on.set()

    ended = await cli("js", "a.js")

    assert (ended.code, ended.out) == (0, "1\n")
    assert json.loads(server.seen[0].request.execute.params_json) == {"code": "console.log(1)"}
    assert server.seen[0].request.execute.tool == "javascript"


async def test_code_from_stdin(spawn, server):
    server.events = run_events(output_json='{"stdout":"","stderr":"","result":null,"error":null}')
    server.go_on.set()

    assert (await spawn("py", "-", stdin="print('é')".encode())).code == 0
    assert json.loads(server.seen[0].request.execute.params_json) == {"code": "print('é')"}


async def test_a_traceback_goes_to_stderr_and_the_exit_code_is_1(cli, server):
    server.events = run_events(
        b"before\n", output_json=FAILED_CODE, outcome=sandbox_pb2.OUTCOME_TOOL_ERROR, message="ValueError: no"
    )
    server.go_on.set()

    ended = await cli("py", "print('before')\nraise ValueError('no')")

    assert (ended.code, ended.out) == (1, "before\n")
    assert ended.err == 'Traceback:\n  File "<code>", line 2\n'


async def test_code_that_a_limit_stops(cli, server):
    server.events = run_events(
        b"1\n", output_json=None, outcome=sandbox_pb2.OUTCOME_FUEL_EXHAUSTED, message="used all its fuel"
    )
    server.go_on.set()

    ended = await cli("py", "while True: pass")

    assert (ended.code, ended.out, ended.err) == (1, "1\n", "clawbox: FUEL_EXHAUSTED: used all its fuel\n")


async def test_py_as_json(cli, server):
    server.execute = lambda request: sandbox_pb2.ExecuteResponse(
        outcome=sandbox_pb2.OUTCOME_TOOL_ERROR, output_json=FAILED_CODE
    )

    ended = await cli("py", "x", "--json")

    answer = json.loads(ended.out)
    assert ended.code == 1
    assert (answer["stdout"], answer["error"]["line"], answer["outcome"]) == ("before\n", 2, "tool_error")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "t", "{bad"], "params is not JSON"),
        (["run", "t", "@none.json"], "none.json: No such file"),
        (["run", "t", "[" * 100_000], "params is nested too deeply"),
        (["py", "none.py"], "none.py: no such file"),
        (["py", "1", "--input", "{"], "--input is not JSON"),
        (["py", "-", "--input", "-"], "cannot both be read from stdin"),
        (["run", "t", "--allow", "h:99999"], "is not a port"),
        (["run"], "Missing argument"),
        (["run", "t", "--timeout", "soon"], "--timeout"),
        (["run", "t", "--timeout", "0"], "--timeout"),
        (["nonsense"], "No such command"),
        (["py", "1", "--token", "x"], "No such option: --token"),
        (["run", "t", "--tls-ca", "none.pem"], "none.pem: No such file"),
        (["run", "t", "--address", "nowhere"], "is not an address"),
        (["run", "t", "--address", "box.example:9800"], "is on another machine"),
        (["run", "t", "--token-file", "none"], "none: No such file"),
    ],
)
async def test_wrong_command_lines_exit_with_2_and_one_line(cli, server, args, said):
    ended = await cli(*args)

    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.startswith("clawbox: ")
    assert ended.err.count("\n") == 1
    assert server.seen == []


async def test_a_file_that_is_not_text(cli, server, home):
    (home / "x.py").write_bytes(b"print('\xff')")

    ended = await cli("py", "x.py")

    assert (ended.code, ended.err) == (2, "clawbox: x.py is not UTF-8 (byte 7).\n")
