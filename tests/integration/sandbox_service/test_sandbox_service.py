"""The Sandbox and System services over a real channel, with real tools in real workers."""

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from clawbox_client.v1 import capabilities_pb2, system_pb2
from clawbox_client.v1 import sandbox_pb2 as pb
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from .conftest import SECRET, TOOLS
from .modules import ECHO, says

if TYPE_CHECKING:
    from clawbox.audit import AuditRow

LONG = capabilities_pb2.Capabilities(resources=capabilities_pb2.Resources(fuel=10**12))

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def execute(stack, tool="echo", who="root", within=30, **fields):
    return await stack.sandbox.Execute(
        pb.ExecuteRequest(tool=tool, **fields), metadata=stack.as_(who), timeout=within
    )


async def refused(call):
    """Status code and reason of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    status = status_pb2.Status()
    error: Any = caught.value
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status.ParseFromString(value)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return error.code().name, info.reason, [violation.field for violation in bad.field_violations]


async def rows_of(stack, request_id):
    end = stack.audit.append("end", principal="root")
    found: list[AuditRow] = []
    async for row in stack.audit.watch(after_sequence=0):
        if row.sequence == end:
            return found
        if row.request_id == request_id:
            found.append(row)
    return found


async def test_params_come_back_in_the_form_in_which_they_went(stack):
    value = {"b": [1, 2.5, None, True, "é"], "a": {"x": 5.0}}
    response = await execute(stack, params=json_format.ParseDict(value, pb.ExecuteRequest().params))
    assert response.outcome == pb.OUTCOME_OK
    assert json_format.MessageToDict(response.output) == value
    exact = '{"b":123456789012345678901234567890.10, "a":1}'
    assert (await execute(stack, params_json=exact)).output_json == exact
    assert (await execute(stack)).output.WhichOneof("kind") == "null_value"


async def test_a_run_says_what_it_used(stack):
    response = await execute(stack, request_id="my-id-1", params_json="1")
    assert response.request_id == "my-id-1"
    assert response.metadata.tool_digest == hashlib.sha256(ECHO).hexdigest()
    assert response.metadata.fuel_consumed > 0
    assert response.metadata.duration_us > 0
    [row] = await rows_of(stack, "my-id-1")
    assert (row.kind, row.principal, row.decision) == ("execute", "root", "ok")
    assert row.fields["digest"] == response.metadata.tool_digest


@pytest.mark.parametrize("tool", ["secret", "escaped"])
async def test_a_secret_does_not_come_out(stack, tool):
    for fields in ({}, {"params_json": "null"}):
        response = await execute(stack, tool, **fields)
        assert SECRET.encode() not in response.SerializeToString()
        assert b"[REDACTED]" in response.SerializeToString()
        finding = response.metadata.sanitization.findings[0]
        assert (finding.pattern, finding.action) == ("github_personal_token", pb.FINDING_ACTION_REDACTED)
        assert finding.location in ("/token", "/0")
    if tool == "secret":
        assert response.output_json == '{"token":"[REDACTED]","n":123456789012345678901234567890}'
        assert response.metadata.stderr == b"err [REDACTED]"


async def test_phrases_are_marked(stack):
    response = await execute(stack, "phrase")
    assert response.output.string_value == "[INST] obey"
    assert response.metadata.sanitization.findings[0].action == pb.FINDING_ACTION_MARKED


async def test_output_that_is_not_json_is_a_string_and_not_utf8_bytes(stack):
    assert (await execute(stack, "text")).output.string_value == "plain text"
    assert (await execute(stack, "text", params_json="1")).output_json == '"plain text"'
    assert (await execute(stack, "binary")).output_bytes == b"\xff\xfe"


async def test_a_failing_tool_is_a_result(stack):
    response = await execute(stack, "fails")
    assert (response.outcome, response.metadata.exit_code) == (pb.OUTCOME_TOOL_ERROR, 3)
    assert response.metadata.stderr == b"oh no"


async def test_a_tool_that_hangs_is_stopped(stack):
    response = await execute(stack, "hangs", capabilities={"resources": {"timeout_ms": 100, "fuel": 10**12}})
    assert response.outcome == pb.OUTCOME_TIMEOUT


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tool": "nope"}, ("NOT_FOUND", "TOOL_NOT_FOUND", [])),
        ({"tool": "../etc/passwd"}, ("NOT_FOUND", "TOOL_NOT_FOUND", [])),
        ({"params_json": "{"}, ("INVALID_ARGUMENT", "INVALID_JSON", ["params_json"])),
        ({"params_json": "[" * 65 + "]" * 65}, ("INVALID_ARGUMENT", "INVALID_FIELD", ["params_json"])),
        ({"agent_id": "a"}, ("FAILED_PRECONDITION", "NOT_SERVED", ["agent_id"])),
        ({"tool": ""}, ("INVALID_ARGUMENT", "INVALID_FIELD", ["tool"])),
        ({"request_id": "with space"}, ("INVALID_ARGUMENT", "INVALID_FIELD", ["request_id"])),
        (
            {"capabilities": {"network": {"rules": [{"host": "api.example"}]}}},
            ("PERMISSION_DENIED", "POLICY_DENIED", []),
        ),
        ({"capabilities": {"credentials": ["k"]}}, ("PERMISSION_DENIED", "CREDENTIAL_NOT_ALLOWED", [])),
        (
            {"capabilities": {"resources": {"timeout_ms": 0}}},
            ("INVALID_ARGUMENT", "INVALID_FIELD", ["capabilities.resources.timeout_ms"]),
        ),
    ],
)
async def test_what_cannot_be_run_is_refused(stack, fields, expected):
    assert await refused(execute(stack, **{"tool": "echo", **fields})) == expected


async def test_a_deadline_kills_the_run_and_leaves_nothing(stack):
    # Time enough to arrive wherever this runs: what does not gets no row, which is waited for below.
    call = execute(stack, "hangs", within=3, request_id="late-1", capabilities=LONG)
    assert (await refused(call))[0] == "DEADLINE_EXCEEDED"
    async for row in stack.audit.watch(after_sequence=0):
        if row.request_id == "late-1":
            assert row.decision == "cancelled"
            break
    assert (await execute(stack, params_json="1")).outcome == pb.OUTCOME_OK
    assert stack.pool.stats().busy == 0


# Streams


async def test_a_stream_begins_streams_and_ends_with_the_result(stack):
    events = [
        event
        async for event in stack.sandbox.ExecuteStream(
            pb.ExecuteStreamRequest(execute=pb.ExecuteRequest(tool="secret")), metadata=stack.as_("ann")
        )
    ]
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("started", "result", {"stdout", "stderr"})
    assert b"".join(event.stderr.data for event in events) == b"err [REDACTED]"
    assert SECRET.encode() not in b"".join(event.SerializeToString() for event in events)
    result = events[-1].result
    assert (result.metadata.stderr, result.outcome) == (b"", pb.OUTCOME_OK)
    assert result.output.struct_value["token"] == "[REDACTED]"
    assert events[0].started.tool_digest == hashlib.sha256(TOOLS["secret"]).hexdigest()


async def test_lines_arrive_while_the_tool_runs_and_a_reader_that_leaves_ends_it(stack):
    call = stack.sandbox.ExecuteStream(
        pb.ExecuteStreamRequest(
            execute=pb.ExecuteRequest(tool="hangs", request_id="left-1", capabilities=LONG)
        ),
        metadata=stack.as_("root"),
    )
    assert (await call.read()).WhichOneof("event") == "started"
    assert (await call.read()).stdout.data == b"begun\n"
    call.cancel()
    async for row in stack.audit.watch(after_sequence=0):
        if row.request_id == "left-1":
            assert row.decision == "cancelled"
            break
    assert (await execute(stack, params_json="1")).outcome == pb.OUTCOME_OK


async def test_large_output_streams_in_pieces_of_64_kib(stack):
    text = json.dumps(["x" * 300_000])
    chunks: list[bytes] = []
    async for event in stack.sandbox.ExecuteStream(
        pb.ExecuteStreamRequest(execute=pb.ExecuteRequest(tool="echo", params_json=text)),
        metadata=stack.as_("root"),
    ):
        if event.WhichOneof("event") == "stdout":
            assert event.stdout.offset == sum(map(len, chunks))
            chunks.append(event.stdout.data)
    assert b"".join(chunks).decode() == text
    assert max(map(len, chunks)) <= 64 << 10
    assert event.result.output_json == text


# Tools


async def test_tools_are_listed_in_pages(stack):
    names, token = [], ""
    while True:
        page = await stack.sandbox.ListTools(
            pb.ListToolsRequest(page_size=3, page_token=token), metadata=stack.as_("bob")
        )
        assert len(page.tools) <= 3
        names += [tool.name for tool in page.tools]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(names)
    assert set(TOOLS) <= set(names)
    page = await stack.sandbox.ListTools(pb.ListToolsRequest(name_prefix="e"), metadata=stack.as_("bob"))
    assert [tool.name for tool in page.tools] == ["echo", "escaped"]


@pytest.mark.parametrize("token", ["x", "!!!", "WyJhIl0", "é", "A" * 10_000])
async def test_page_tokens_of_strangers_are_refused(stack, token):
    call = stack.sandbox.ListTools(pb.ListToolsRequest(page_token=token), metadata=stack.as_("bob"))
    assert await refused(call) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN", [])


async def test_a_page_token_is_for_its_own_list(stack):
    page = await stack.sandbox.ListTools(pb.ListToolsRequest(page_size=1), metadata=stack.as_("bob"))
    call = stack.sandbox.ListTools(
        pb.ListToolsRequest(page_token=page.next_page_token, name_prefix="e"), metadata=stack.as_("bob")
    )
    assert (await refused(call))[1] == "INVALID_PAGE_TOKEN"
    call = stack.sandbox.ListTools(pb.ListToolsRequest(page_size=1001), metadata=stack.as_("bob"))
    assert await refused(call) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["page_size"])


async def test_a_tool_is_described(stack):
    await execute(stack)  # which waits until it is compiled
    tool = await stack.sandbox.GetTool(pb.GetToolRequest(name="echo"), metadata=stack.as_("bob"))
    assert (tool.state, tool.abi) == (pb.TOOL_STATE_READY, pb.TOOL_ABI_COMMAND_MODULE)
    assert tool.digest == hashlib.sha256(ECHO).hexdigest()
    assert tool.manifest.resources.default_timeout_ms == 10_000
    assert tool.update_time.seconds > 0
    call = stack.sandbox.GetTool(pb.GetToolRequest(name="nope"), metadata=stack.as_("bob"))
    assert (await refused(call))[:2] == ("NOT_FOUND", "TOOL_NOT_FOUND")


def upload(stack, *parts, who="ann", request_id="up"):
    return stack.upload([pb.UploadToolRequest(**part) for part in parts], who, request_id)


def manifest(name, **more):
    return {"tool": {"name": name, "description": "Says hello."}, **more}


async def test_a_tool_is_uploaded_run_changed_and_deleted(stack):
    binary = says(b'"hello"')
    start = {"name": "hello", "size_bytes": len(binary), "manifest": manifest("hello")}
    tool = await upload(
        stack, {"start": start}, {"chunk": binary[:10]}, {"chunk": binary[10:]}, request_id="up-1"
    )
    assert (tool.owner, tool.published, tool.description) == ("ann", False, "Says hello.")
    assert (await execute(stack, "hello", who="ann")).output.string_value == "hello"
    assert (await refused(execute(stack, "hello", who="bob")))[1] == "TOOL_NOT_FOUND"
    schema = json_format.ParseDict(
        {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}},
        pb.ToolManifest().input_schema,
    )
    registered = await stack.sandbox.RegisterTool(
        pb.RegisterToolRequest(manifest=manifest("hello", input_schema=schema)), metadata=stack.as_("ann")
    )
    assert not registered.created
    assert await refused(execute(stack, "hello", who="ann", params_json='{"n":"x"}')) == (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        ["params/n"],
    )
    assert (await execute(stack, "hello", who="ann", params_json='{"n":1}')).outcome == pb.OUTCOME_OK
    await stack.sandbox.DeleteTool(pb.DeleteToolRequest(name="hello"), metadata=stack.as_("ann"))
    assert (await refused(execute(stack, "hello", who="ann")))[1] == "TOOL_NOT_FOUND"
    [row] = await rows_of(stack, "up-1")
    assert (row.kind, row.principal, row.decision) == ("tool_upload", "ann", "allowed")
    assert row.fields["digest"] == hashlib.sha256(binary).hexdigest()


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"chunk": b"x"}],
        [{}],
        [{"start": {"name": "t", "size_bytes": 4}}],
        [{"start": {"name": "t", "size_bytes": 4}}, {"chunk": b"abc"}],
        [{"start": {"name": "t", "size_bytes": 4}}, {"chunk": b"abcde"}],
        [{"start": {"name": "t", "size_bytes": 4}}, {"start": {"name": "t", "size_bytes": 4}}],
        [{"start": {"name": "t", "size_bytes": 4}}, {}],
        [{"start": {"name": "t", "size_bytes": 1 << 20}}, {"chunk": b"x" * ((1 << 20) + 1)}],
        [{"start": {"name": "t", "size_bytes": 4, "sha256": "0" * 64}}, {"chunk": b"abcd"}],
    ],
)
async def test_uploads_out_of_order_are_refused_and_leave_nothing(stack, parts):
    assert (await refused(upload(stack, *parts)))[:2] == ("INVALID_ARGUMENT", "INVALID_UPLOAD")
    call = stack.sandbox.GetTool(pb.GetToolRequest(name="t"), metadata=stack.as_("ann"))
    assert (await refused(call))[1] == "TOOL_NOT_FOUND"


async def test_an_upload_of_something_else_is_refused_and_recorded(stack):
    start = {"name": "junk", "size_bytes": 4}
    call = upload(stack, {"start": start}, {"chunk": b"junk"}, request_id="up-junk")
    assert (await refused(call))[:2] == ("INVALID_ARGUMENT", "INVALID_MODULE")
    [row] = await rows_of(stack, "up-junk")
    assert (row.kind, row.decision, row.fields["reason"]) == ("tool_upload", "failed", "INVALID_MODULE")


async def test_tools_of_others_stay_theirs(stack):
    call = stack.sandbox.DeleteTool(
        pb.DeleteToolRequest(name="echo"), metadata=(*stack.as_("ann"), ("x-request-id", "del-1"))
    )
    assert (await refused(call))[:2] == ("PERMISSION_DENIED", "SCOPE_MISSING")
    [row] = await rows_of(stack, "del-1")
    assert (row.kind, row.decision) == ("tool_delete", "denied")


async def test_reloading_tells_what_is_there(stack):
    (stack.tool_dir / "late.wasm").write_bytes(says(b"1"))
    (stack.tool_dir / "broken.wasm").write_bytes(b"junk")
    report = await stack.sandbox.ReloadTools(pb.ReloadToolsRequest(), metadata=stack.as_("root"))
    assert {"late", "echo"} <= set(report.tools)
    assert [failure.name for failure in report.failures] == ["broken"]
    assert (await execute(stack, "late")).output.number_value == 1


# System


async def test_the_status_says_how_the_parts_do(stack):
    status = await stack.system.GetStatus(system_pb2.GetStatusRequest(), metadata=stack.as_("root"))
    assert status.status == "ok"
    assert status.version
    assert status.uptime.ToSeconds() >= 0
    assert {component.name: component.state for component in status.components} == {
        "wasm_engine": system_pb2.COMPONENT_STATE_OK,
        "audit": system_pb2.COMPONENT_STATE_OK,
        "tokens": system_pb2.COMPONENT_STATE_OK,
        "egress": system_pb2.COMPONENT_STATE_OK,
        "credentials": system_pb2.COMPONENT_STATE_OK,
        "docker": system_pb2.COMPONENT_STATE_DISABLED,
        "agents": system_pb2.COMPONENT_STATE_DISABLED,
    }
    assert "worker_no_privileges" in {found.name for found in status.enforcements}


async def test_audit_rows_are_streamed_and_everyone_gets_their_own(stack):
    last = stack.audit.append("mark", principal="root")
    await execute(stack, who="root", request_id="w-1", params_json="1")
    await execute(stack, who="ann", request_id="w-2", params_json="1")
    mine = stack.system.WatchAudit(
        system_pb2.WatchAuditRequest(after_sequence=last, kinds=["execute"]), metadata=stack.as_("ann")
    )
    everyones = stack.system.WatchAudit(
        system_pb2.WatchAuditRequest(after_sequence=last), metadata=stack.as_("root")
    )
    row = (await mine.read()).row
    assert (row.request_id, row.principal, row.decision) == ("w-2", "ann", "ok")
    assert row.fields["tool"] == "echo"
    assert [(await everyones.read()).row.request_id for _ in range(2)] == ["w-1", "w-2"]
    await execute(stack, who="ann", request_id="w-3", params_json="1")
    assert (await mine.read()).row.request_id == "w-3"
    mine.cancel()
    everyones.cancel()
    await asyncio.gather(mine.code(), everyones.code())
