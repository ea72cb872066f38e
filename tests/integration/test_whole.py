"""The whole, as somebody uses it for the first time: the public client, and what needs no client of ours."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import clawbox_client as cb
import grpc
import pytest
import wasmtime
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from benchmarks.echo import ECHO_WAT
from clawbox.children.enforcement import can_have_own_uids
from tests.footprint import held

SERVICES = {
    # Without root there are none, with or without an engine.
    *(["clawbox.v1.Containers"] if can_have_own_uids() else []),
    "clawbox.v1.Sandbox",
    "clawbox.v1.System",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


@pytest.fixture
def client(live_server):
    with cb.SyncClient(live_server.address, token=live_server.token) as made:
        yield made


def test_a_first_session(live_server, client):
    assert client.health("clawbox.v1.Sandbox") is cb.Health.SERVING
    assert {tool.name for tool in client.list_tools()} >= {"python", "javascript"}

    python = client.run_python("import math\nprint('pi')\nresult = round(math.pi * input, 3)", 2)
    assert (python.stdout, python.result) == ("pi\n", 6.283)
    script = client.run_javascript("console.log('twice'); result = input.map(x => 2 * x)", [1, 2])
    assert (script.stdout, script.result) == ("twice\n", [2, 4])

    schema = {"type": "object", "required": ["n"]}
    manifest = {"tool": {"name": "mirror", "description": "says it again"}, "input_schema": schema}
    tool = client.upload_tool("mirror", bytes(wasmtime.wat2wasm(ECHO_WAT)), manifest=manifest)
    try:
        assert (tool.owner, tool.state, tool.abi) == ("admin", "ready", "command_module")
        result = client.execute("mirror", {"n": 2**63}, request_id="mirrored")
        assert result.output == {"n": 2**63}
        with pytest.raises(cb.InvalidArgument) as refused:
            client.execute("mirror", {})
        assert refused.value.reason == "INVALID_INPUT"
    finally:
        client.delete_tool("mirror")
    with pytest.raises(cb.NotFound):
        client.get_tool("mirror")

    with client.watch_audit(after_sequence=0, kinds=["execute"], deadline=30) as rows:
        row = next(row for row in rows if row.request_id == "mirrored")
    assert (row.principal, row.decision, row.fields["tool"]) == ("admin", "ok", "mirror")
    status = client.status()
    assert (status.status, status.running_executions) == ("ok", 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{live_server.metrics_port}/metrics", timeout=10) as page:
        assert b'clawbox_wasm_executions_total{status="ok",tool="mirror"} 1.0' in page.read()


ISOLATION = [
    (
        "import builtins, json\nbuiltins.left = json.left = 1",
        "import builtins, json\nresult = hasattr(json, 'left')",
    ),
    ("open('/tmp/left', 'w').write('x')", "import os\nresult = os.path.exists('/tmp/left')"),
    ("import os\nos.environ['LEFT'] = '1'", "import os\nresult = 'LEFT' in os.environ"),
]


@pytest.mark.parametrize(("leave", "find"), ISOLATION)
def test_nothing_of_one_call_is_in_the_next(client, leave, find):
    client.run_python(leave)
    assert client.run_python(find).result is False


@pytest.mark.parametrize(
    "source",
    [
        "open('/etc/passwd').read()",
        "import os\nos.listdir('/')[0]",
        "import os\nos.stat('/proc/self')",
        "import socket\nsocket.create_connection(('127.0.0.1', 9800), 2)",
        "import subprocess\nsubprocess.run(['id'])",
        "import os\nos.fork()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9801/metrics')",
        "import clawbox\nclawbox.http_request('GET', 'http://127.0.0.1:9801/metrics')",
    ],
)
def test_code_reaches_nothing_of_the_host(live_server, client, source):
    source = source.replace("9800", str(live_server.port)).replace("9801", str(live_server.metrics_port))
    found = client.run_python(source)
    assert found.outcome is cb.Outcome.TOOL_ERROR
    assert found.error is not None


def test_the_environment_of_the_server_is_not_seen(client):
    seen = client.run_python("import os\nresult = sorted(os.environ)").result
    assert [name for name in seen if name.startswith(("CLAWBOX", "HOME", "PATH"))] == []


async def test_many_at_once_get_their_own_answers(live_server):
    async with cb.Client(live_server.address, token=live_server.token) as client:
        calls = (client.run_python("result = input * 2", number) for number in range(24))
        assert [found.result for found in await asyncio.gather(*calls)] == [2 * n for n in range(24)]


async def test_output_comes_while_the_code_runs(live_server):
    code = "import time\nprint('first', flush=True)\ntime.sleep(1)\nprint('second')"
    async with cb.Client(live_server.address, token=live_server.token) as client:
        events = client.execute_stream("python", {"code": code})
        seen: list[Any] = []
        async for event in events:
            seen.append(event)
            if isinstance(event, cb.Stdout) and b"first" in event.data:
                with held(live_server):  # a second is soon over where much else goes on
                    status = await client.status()
                assert status.running_executions >= 1
    assert isinstance(seen[0], cb.Started)
    assert b"".join(event.data for event in seen if isinstance(event, cb.Stdout)) == b"first\nsecond\n"
    assert seen[-1].outcome is cb.Outcome.OK


# What a tool such as grpcurl does: nothing but the server's own descriptions


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services(live_server, version):
    with grpc.insecure_channel(live_server.address) as channel:
        ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        (reply,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=30)
    assert {service.name for service in reply.list_services_response.service} == SERVICES


def test_a_call_with_nothing_but_what_the_server_tells_of_itself(live_server):
    with grpc.insecure_channel(live_server.address) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName("clawbox.v1.Sandbox").FindMethodByName("Execute")
        request = message_factory.GetMessageClass(method.input_type)()
        json_format.Parse('{"tool":"python","params":{"code":"print(6*7)"}}', request, descriptor_pool=pool)
        call: Any = channel.unary_unary(
            "/clawbox.v1.Sandbox/Execute",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        reply = call(request, metadata=(("authorization", f"Bearer {live_server.token}"),), timeout=60)
        found = json.loads(json_format.MessageToJson(reply, descriptor_pool=pool))
    assert found["outcome"] == "OUTCOME_OK"
    assert found["output"] == {"stdout": "42\n", "stderr": "", "result": None, "error": None}
