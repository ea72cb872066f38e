"""Requests that cannot be run, and callers that leave: each its own clear status."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from clawbox_client.v1 import sandbox_pb2 as pb

from tests.caller import UNLIMITED, Caller, refusal, refused
from tests.footprint import eventually

MIB = 1 << 20
PROJECT = Path(__file__).parents[3]
ENDLESS = json.dumps({"code": "while True: pass"})


def test_no_tool_named(caller):
    found = refused(lambda: caller.execute(""))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert found.metadata["field"] == "tool"


@pytest.mark.parametrize("name", ["nope", "../../etc/passwd", "a" * 10_000, "tool\n"])
def test_an_unknown_tool(caller, name):
    found = refused(lambda: caller.execute(name))
    assert found.kind == ("NOT_FOUND", "TOOL_NOT_FOUND")
    assert found.metadata["tool"] == name[:64]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'a': 1}",
        "[1,]",
        "NaN",
        "-Infinity",
        "01",
        '{"a": 1} {}',
        '{"a": 1, "a": 2}',
        '"\\ud800"',
        "\x00",
    ],
)
def test_malformed_json(caller, text):
    found = refused(lambda: caller.execute("echo", text))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_JSON")
    assert [path for path, _, _ in found.violations] == ["params_json"]


def test_json_that_is_too_deep(caller):
    found = refused(lambda: caller.execute("echo", "[" * 100_000 + "]" * 100_000))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert found.metadata["field"] == "params_json"


@pytest.mark.parametrize(
    ("params", "broken"),
    [
        ("{}", [("params", "REQUIRED")]),
        ("[]", [("params", "TYPE")]),
        ('{"name": "ABC"}', [("params/name", "PATTERN")]),
        ('{"name": "abc", "items": [{"n": 1}, {"n": 0}]}', [("params/items/1/n", "MINIMUM")]),
        ('{"name": "abc", "nmae": 1}', [("params", "ADDITIONAL_PROPERTIES")]),
        (
            '{"name": 1, "items": {}}',
            [("params/items", "TYPE"), ("params/name", "TYPE")],
        ),
    ],
)
def test_a_schema_violation_names_path_and_rule(caller, params, broken):
    found = refused(lambda: caller.execute("typed", params))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_INPUT")
    assert sorted(found.broken_rules) == broken
    assert found.metadata["tool"] == "typed"
    assert found.metadata["rule"].upper().replace("_", "") in {rule.replace("_", "") for _, rule in broken}


def test_the_interpreters_say_what_they_take(caller):
    found = refused(lambda: caller.execute("python", '{"cod": "1"}'))
    assert found.broken_rules == [("params", "REQUIRED"), ("params", "ADDITIONAL_PROPERTIES")]
    assert "'code'" in found.message


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"\x0a\x04echo\x1a\x02\xff\xfe", "text that is not UTF-8"),
        (b"\x0a\xff\xff\xff\xff\x0f", "a field longer than the message"),
        (b"\xff\xff\xff\xff", "no message"),
    ],
)
def test_bytes_that_are_no_request(caller, raw, what):
    method = caller.channel.unary_unary("/clawbox.v1.Sandbox/Execute")
    found = refused(lambda: method(raw, metadata=caller.metadata, timeout=30))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_MESSAGE"), what


def test_a_message_of_one_byte_too_many(server, caller):
    room = 10 * MIB - pb.ExecuteRequest(tool="echo", params_json="x" * (10 * MIB)).ByteSize()
    largest = '"' + "x" * (10 * MIB + room - 2) + '"'
    assert pb.ExecuteRequest(tool="echo", params_json=largest).ByteSize() == 10 * MIB
    assert caller.execute("echo", largest).outcome == pb.OUTCOME_OUTPUT_EXCEEDED
    found = refused(lambda: caller.execute("echo", largest[:-1] + 'x"'))
    assert found.kind == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert found.metadata["limit"] == str(10 * MIB)
    # Far beyond, gRPC itself refuses it before it is read; the connection is as good as before.
    with Caller(server.address, server.token) as other:
        assert refused(lambda: other.execute("echo", largest * 3)).code == "RESOURCE_EXHAUSTED"
        assert other.execute("echo", "1").output_json == "1"


def test_a_message_of_one_byte_too_many_on_a_stream(caller):
    text = '"' + "x" * (10 * MIB) + '"'
    assert refused(lambda: list(caller.stream("echo", text))).kind == (
        "RESOURCE_EXHAUSTED",
        "MESSAGE_TOO_LARGE",
    )


@pytest.mark.parametrize("tool", ["spin", "python"])
def test_a_deadline_of_a_millisecond(caller, tool):
    for _ in range(30):
        found = refused(lambda: caller.execute(tool, ENDLESS, within=0.001, capabilities=UNLIMITED))
        assert found.code == "DEADLINE_EXCEEDED"


def test_a_deadline_while_waiting_for_a_place(caller):
    with ExitStack() as stack:
        for _ in range(2):
            call = caller.begin("spin", capabilities=UNLIMITED)
            stack.callback(call.cancel)
        eventually(lambda: caller.status().running_executions == 2)
        assert refused(lambda: caller.execute("echo", within=0.1)).code == "DEADLINE_EXCEEDED"
        eventually(lambda: caller.status().queued_executions == 0)


def test_a_full_queue_says_when_to_come_back(caller):
    with ExitStack() as stack:
        calls = [caller.begin("spin", capabilities=UNLIMITED) for _ in range(4)]
        for call in calls:
            stack.callback(call.cancel)
        eventually(lambda: caller.status().queued_executions == 2)
        assert caller.status().running_executions == 2
        found = refused(lambda: caller.execute("echo"))
        assert found.kind == ("RESOURCE_EXHAUSTED", "EXECUTION_LIMIT")
        assert found.retry_after is not None
        assert (found.metadata["running"], found.metadata["queued"]) == ("2", "2")
        # Whoever waits gets the place of who leaves.
        calls[0].cancel()
        eventually(lambda: caller.status().queued_executions == 1)
        assert caller.status().running_executions == 2


CLIENT = """
import sys
from tests.caller import Caller, UNLIMITED
caller = Caller(sys.argv[1], sys.stdin.readline())
if sys.argv[2] == "stream":
    for event in caller.stream("python", sys.argv[3], capabilities=UNLIMITED):
        pass
else:
    caller.execute("python", sys.argv[3], capabilities=UNLIMITED)
"""


@pytest.mark.parametrize("how", ["unary", "stream"])
def test_a_client_that_is_killed(server, caller, how):
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.address, how, ENDLESS],
        stdin=subprocess.PIPE,
        cwd=PROJECT,
        text=True,
    ) as client:
        assert client.stdin is not None
        client.stdin.write(server.token)
        client.stdin.close()
        eventually(lambda: caller.status().running_executions == 1)
        client.kill()
    eventually(lambda: caller.status().running_executions == 0)


def test_a_client_whose_connection_breaks_while_it_waits(server, caller):
    with ExitStack() as stack:
        for _ in range(2):
            call = caller.begin("spin", capabilities=UNLIMITED)
            stack.callback(call.cancel)
        eventually(lambda: caller.status().running_executions == 2)
        with Caller(server.address, server.token) as other:
            waiting = other.begin("spin", capabilities=UNLIMITED)
            eventually(lambda: caller.status().queued_executions == 1)
        assert waiting.code() is grpc.StatusCode.CANCELLED
        eventually(lambda: caller.status().queued_executions == 0)
        assert caller.status().running_executions == 2


def test_strangers_that_speak_something_else(server, caller):
    host, _, port = server.address.partition(":")
    for said in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello", os.urandom(4096)):
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(said)
            assert caller.execute("echo", "1").output_json == "1"


def test_metadata_that_is_too_large(server):
    with Caller(server.address, server.token) as other:
        request = pb.ExecuteRequest(tool="echo")
        metadata = (*other.metadata, ("x-large", "x" * 100_000))
        found = refused(lambda: other.sandbox.Execute(request, metadata=metadata, timeout=30))
        assert found.code == "RESOURCE_EXHAUSTED"


def test_asking_for_more_than_is_allowed(caller):
    asked = {"network": {"rules": [{"host": "api.example"}]}}
    found = refused(lambda: caller.execute("echo", capabilities=asked))
    assert found.kind == ("PERMISSION_DENIED", "POLICY_DENIED")
    assert "capabilities.network.rules[0]" in found.message
    assert "api.example" in found.message
    found = refused(lambda: caller.execute("echo", capabilities={"resources": {"memory_mb": 4096}}))
    assert found.kind == ("PERMISSION_DENIED", "POLICY_DENIED")
    assert "capabilities.resources.memory_mb" in found.message
    found = refused(lambda: caller.execute("echo", capabilities={"credentials": ["github"]}))
    assert found.kind == ("PERMISSION_DENIED", "CREDENTIAL_NOT_ALLOWED")


def test_a_method_that_is_not_served(caller):
    method = caller.channel.unary_unary("/clawbox.v1.Containers/Spawn")
    with pytest.raises(grpc.RpcError) as caught:
        method(b"", metadata=caller.metadata, timeout=30)
    assert refusal(caught.value).kind == ("UNIMPLEMENTED", "UNKNOWN_METHOD")
