from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta

import clawbox_client as cb
import grpc
import pytest
from clawbox_client.v1 import sandbox_pb2, system_pb2

from tests.integration.client.fakes import TOKEN, Refusal, run_events


async def test_a_run_returns_what_the_tool_returned_with_every_digit(caller, server):
    params = {"id": 2**63 + 1, "deep": [1.5, None, "é"]}

    result = await caller.call("execute", "echo", params, request_id="mine")

    assert result.ok
    assert result.output == params
    assert result.request_id == "mine"
    assert result.raise_for_outcome() is result
    assert server.seen[0].request.params_json == '{"id":9223372036854775809,"deep":[1.5,null,"é"]}'


async def test_json_text_travels_as_it_is(caller, server):
    result = await caller.call("execute", "echo", params_json='{"a": 1e400}')

    assert server.seen[0].request.params_json == '{"a": 1e400}'
    assert result.output_json == '{"a": 1e400}'


async def test_no_parameters_are_null(caller, server):
    assert (await caller.call("execute", "echo")).output is None
    assert server.seen[0].request.params_json == "null"
    assert not server.seen[0].request.HasField("capabilities")


async def test_limits_and_network_become_capabilities(caller, server):
    await caller.call(
        "execute",
        "echo",
        network=["api.example", "*.example:8443", cb.NetworkRule(host="::1", methods=["GET"])],
        credentials=["github"],
        timeout_ms=1500,
        fuel=10,
    )

    sent = server.seen[0].request.capabilities
    assert [(rule.host, list(rule.ports)) for rule in sent.network.rules] == [
        ("api.example", []),
        ("*.example", [8443]),
        ("::1", []),
    ]
    assert list(sent.credentials) == ["github"]
    assert (sent.resources.timeout_ms, sent.resources.fuel) == (1500, 10)
    assert not sent.resources.HasField("memory_mb")


async def test_an_empty_network_is_sent_as_no_network(caller, server):
    await caller.call("execute", "echo", network=[])

    assert server.seen[0].request.capabilities.HasField("network")
    assert not server.seen[0].request.capabilities.network.rules


async def test_a_failed_run_is_a_result_and_not_an_exception(caller, server):
    server.execute = lambda request: sandbox_pb2.ExecuteResponse(
        outcome=sandbox_pb2.OUTCOME_TIMEOUT,
        message="ran longer than 100 ms",
        metadata=sandbox_pb2.ExecutionMetadata(
            stdout=b"so far \xff",
            stderr=b"oops",
            logs=[sandbox_pb2.LogEntry(level=sandbox_pb2.LOG_LEVEL_WARN, message="slow", offset_us=7)],
            truncations=[sandbox_pb2.Truncation(stream=sandbox_pb2.STREAM_STDERR, kept_bytes=4)],
            exit_code=3,
        ),
    )

    result = await caller.call("execute", "sleepy")

    assert not result.ok
    assert result.outcome is cb.Outcome.TIMEOUT
    assert (result.output, result.stdout, result.stderr) == (None, "so far \ufffd", "oops")
    assert result.logs == (cb.LogEntry("warn", "slow", 7),)
    assert result.metadata.truncated == {"stderr": 4}
    assert result.metadata.exit_code == 3
    with pytest.raises(cb.OutcomeError, match="TIMEOUT: ran longer than 100 ms") as caught:
        result.raise_for_outcome()
    assert caught.value.result is result


async def test_output_that_is_not_utf8_stays_bytes(caller, server):
    server.execute = lambda request: sandbox_pb2.ExecuteResponse(
        outcome=sandbox_pb2.OUTCOME_OK, output_bytes=b"\xff\x00"
    )

    assert (await caller.call("execute", "raw")).output == b"\xff\x00"


async def test_an_outcome_of_a_newer_server_is_unknown(caller, server):
    server.execute = lambda request: sandbox_pb2.ExecuteResponse(outcome=99)  # type: ignore[arg-type]

    result = await caller.call("execute", "new")

    assert result.outcome is cb.Outcome.UNKNOWN
    assert not result.ok


async def test_run_python_reads_the_interpreters_answer(caller, server):
    server.execute = lambda request: sandbox_pb2.ExecuteResponse(
        outcome=sandbox_pb2.OUTCOME_TOOL_ERROR,
        output_json=(
            '{"stdout":"hi\\n","stderr":"","result":null,'
            '"error":{"type":"ValueError","message":"no","traceback":"Traceback\\n","line":2}}'
        ),
    )

    result = await caller.call("run_python", "print('hi')\nraise ValueError('no')", [1])

    assert server.seen[0].request.tool == "python"
    assert server.seen[0].request.params_json == (
        '{"code":"print(\'hi\')\\nraise ValueError(\'no\')","input":[1]}'
    )
    assert (result.stdout, result.result) == ("hi\n", None)
    assert result.error == cb.CodeError("ValueError", "no", "Traceback\n", 2)
    with pytest.raises(cb.OutcomeError, match="TOOL_ERROR: Traceback"):
        result.raise_for_outcome()


async def test_code_stopped_by_a_limit_keeps_what_it_had_printed(caller, server):
    server.execute = lambda request: sandbox_pb2.ExecuteResponse(
        outcome=sandbox_pb2.OUTCOME_FUEL_EXHAUSTED,
        message="used all its fuel",
        metadata=sandbox_pb2.ExecutionMetadata(stdout=b"1\n2\n"),
    )

    result = await caller.call("run_javascript", "for(;;);")

    assert server.seen[0].request.tool == "javascript"
    assert (result.outcome, result.stdout, result.error) == (cb.Outcome.FUEL_EXHAUSTED, "1\n2\n", None)


async def test_events_of_a_stream_come_while_it_runs(caller, server):
    server.events = run_events(b"one\n", b"two\n", output_json="7")
    received = []

    async for event in caller.iterate("execute_stream", "t"):
        received.append(event)
        if isinstance(event, cb.Stdout) and event.data == b"two\n":
            server.go_on.set()  # the server sends the last event only now

    assert received[:3] == [cb.Started("r", "d" * 64), cb.Stdout(b"one\n", 0), cb.Stdout(b"two\n", 4)]
    assert isinstance(received[3], cb.ExecutionResult)
    assert received[3].output == 7


async def test_an_error_in_a_stream_is_typed(caller, server):
    server.refuse["ExecuteStream"] = [
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", "EXECUTION_LIMIT").with_retry(0.25)
    ]

    with pytest.raises(cb.ResourceExhausted) as caught:
        await caller.collect("execute_stream", "t")

    assert caught.value.retry_after == 0.25


async def test_leaving_a_stream_ends_the_run_on_the_server(caller, server, kind):
    server.events = run_events(b"one\n")

    stream = caller.client.execute_stream("t")
    if kind == "aio":
        async with stream:
            await anext(stream)
        assert [event async for event in stream] == []
    else:

        def use() -> list[object]:
            with stream:
                next(stream)
            return list(stream)

        assert await asyncio.to_thread(use) == []
    await asyncio.wait_for(server.stream_ended.wait(), 10)


async def test_tools_are_fetched_page_by_page(caller, server):
    for name in ("a1", "a2", "a3", "a4", "a5", "b1"):
        server.tools[name] = sandbox_pb2.Tool(name=name, state=sandbox_pb2.TOOL_STATE_READY)

    found = await caller.collect("list_tools", name_prefix="a")

    assert [tool.name for tool in found] == ["a1", "a2", "a3", "a4", "a5"]
    assert [one.request.page_token for one in server.calls("ListTools")] == ["", "2", "4"]


async def test_a_tool_comes_with_its_manifest_as_json(caller, server):
    tool = sandbox_pb2.Tool(
        name="t",
        abi=sandbox_pb2.TOOL_ABI_COMPONENT,
        state=sandbox_pb2.TOOL_STATE_FAILED,
        load_error="bad magic",
    )
    tool.update_time.FromJsonString("2026-05-06T07:08:09Z")
    tool.manifest.tool.name = "t"
    tool.manifest.network.allowlist.add(host="api.example")
    tool.manifest.resources.max_fuel = 2**60 + 1
    tool.manifest.input_schema.update({"type": "object", "minProperties": 1})
    server.tools["t"] = tool

    found = await caller.call("get_tool", "t")

    assert (found.abi, found.state, found.load_error) == ("component", "failed", "bad magic")
    assert found.update_time == datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert found.manifest == {
        "tool": {"name": "t"},
        "network": {"allowlist": ["api.example"]},
        "resources": {"max_fuel": 2**60 + 1},
        "input_schema": {"type": "object", "minProperties": 1},
    }
    assert isinstance(found.manifest["input_schema"]["minProperties"], int)


async def test_register_sends_a_manifest_file(caller, server):
    done = await caller.call(
        "register_tool",
        {
            "tool": {"name": "t", "description": "d"},
            "network": {
                "allowlist": ["a.example", {"host": "b.example", "tls_mode": "tunnel", "ports": [444]}]
            },
        },
        published=False,
    )

    sent = server.seen[0].request
    assert sent.HasField("published")
    assert not sent.published
    assert done.created
    assert done.tool.manifest["network"] == {
        "allowlist": ["a.example", {"host": "b.example", "tls_mode": "tunnel", "ports": [444]}]
    }


async def test_a_manifest_with_an_unknown_key_is_refused_before_it_is_sent(caller, server):
    with pytest.raises(ValueError, match="netwrok"):
        await caller.call("register_tool", {"tool": {"name": "t"}, "netwrok": {}})

    assert server.seen == []


async def test_a_file_is_uploaded_in_chunks_with_progress(caller, server, tmp_path):
    data = bytes(range(256)) * 800  # 200 KiB
    path = tmp_path / "t.wasm"
    path.write_bytes(data)
    progress = []

    tool = await caller.call(
        "upload_tool",
        "t",
        path,
        manifest={"tool": {"name": "t"}},
        progress=lambda sent, total: progress.append((sent, total)),
    )

    assert tool.size_bytes == len(data)
    start = server.uploaded.start
    assert (start.name, start.size_bytes, start.manifest.tool.name) == ("t", len(data), "t")
    assert start.sha256 == hashlib.sha256(data).hexdigest() == server.uploaded.sha256
    assert server.uploaded.chunk_sizes == [65536, 65536, 65536, 8192]
    assert progress == [(65536, 204800), (131072, 204800), (196608, 204800), (204800, 204800)]


async def test_bytes_and_pieces_are_uploaded_too(caller, server):
    await caller.call("upload_tool", "t", b"\0asm")
    assert server.uploaded.chunk_sizes == [4]

    server.uploaded.chunk_sizes.clear()
    await caller.call("upload_tool", "t", iter([b"ab", b"c" * 70000]), size_bytes=70002)
    assert server.uploaded.chunk_sizes == [2, 65536, 4464]

    with pytest.raises(ValueError, match="size_bytes"):
        await caller.call("upload_tool", "t", iter([b"ab"]))


async def test_the_asyncio_client_takes_asynchronous_pieces(server):
    async def pieces():
        for data in (b"ab", b"cd"):
            await asyncio.sleep(0)
            yield data

    async with cb.Client(server.address, token=TOKEN) as client:
        await client.upload_tool("t", pieces(), size_bytes=4)

    assert server.uploaded.sha256 == hashlib.sha256(b"abcd").hexdigest()


async def test_an_upload_that_the_server_refuses_early_says_why(caller, server):
    server.tools["t"] = sandbox_pb2.Tool(name="t")

    with pytest.raises(cb.AlreadyExists) as caught:
        await caller.call("upload_tool", "t", b"x" * (4 << 20))

    assert caught.value.reason == "TOOL_EXISTS"


async def test_an_upload_whose_source_fails_raises_that_and_uploads_nothing(caller, server):
    def pieces():
        yield b"abc"
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        await caller.call("upload_tool", "t", pieces(), size_bytes=6)

    assert server.uploaded.sha256 in {"", hashlib.sha256(b"abc").hexdigest()}
    assert sum(server.uploaded.chunk_sizes) < 6


async def test_a_missing_file_is_an_os_error(caller, server, tmp_path):
    with pytest.raises(FileNotFoundError):
        await caller.call("upload_tool", "t", tmp_path / "none.wasm")
    assert server.seen == []


async def test_delete_and_reload(caller, server):
    server.tools["t"] = sandbox_pb2.Tool(name="t")

    assert await caller.call("delete_tool", "t") is None
    assert server.tools == {}
    report = await caller.call("reload_tools")
    assert report == cb.ReloadReport(2, (), (cb.ToolFailure("bad", "no _start", previous_in_service=True),))


async def test_status(caller):
    status = await caller.call("status")

    assert (status.status, status.version, status.running_executions) == ("ok", "9.9", 3)
    assert status.start_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert status.uptime == timedelta(seconds=61)
    assert status.components == (cb.Component("wasm_engine", "ok", "2 workers"),)


async def test_health_needs_no_token_and_sends_none(caller, server):
    assert await caller.call("health") is cb.Health.SERVING
    assert await caller.call("health", "nobody") is cb.Health.SERVICE_UNKNOWN
    assert all("authorization" not in one.metadata for one in server.calls("Check"))


async def test_is_serving(caller, server):
    assert await caller.call("is_serving") is True
    assert await caller.call("is_serving", "nobody") is False
    server.refuse["Check"] = [Refusal(grpc.StatusCode.UNAVAILABLE, "down") for _ in range(4)]
    assert await caller.call("is_serving") is False


async def test_audit_rows(caller, server):
    for sequence in (1, 2, 3):
        row = system_pb2.AuditRow(sequence=sequence, kind="execute", decision="allowed")
        row.fields.update({"duration_ms": 5})
        server.audit_rows.append(row)

    rows = await caller.collect("watch_audit", after_sequence=1, kinds=["execute"])

    assert [row.sequence for row in rows] == [2, 3]
    assert repr(rows[0].fields) == "{'duration_ms': 5}"
    assert list(server.seen[0].request.kinds) == ["execute"]


async def test_the_stubs_carry_the_token(caller, server, kind):
    request = sandbox_pb2.GetToolRequest(name="none")

    async def get_tool():
        if kind == "aio":
            return await caller.client.sandbox.GetTool(request)
        return await asyncio.to_thread(caller.client.sandbox.GetTool, request)

    with pytest.raises(grpc.RpcError) as caught:
        await get_tool()
    assert isinstance(cb.from_rpc_error(caught.value), cb.NotFound)
