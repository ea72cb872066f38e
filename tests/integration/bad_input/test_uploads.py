"""Uploads that are not what they should be, and tools that go away: wholly there, or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest
from clawbox_client.v1 import sandbox_pb2 as pb

from clawbox.wasm.compiler import BUILTIN_FOLDER
from tests.caller import Caller, refusal, refused, upload_messages
from tests.footprint import eventually, held
from tests.integration.bad_input import modules
from tests.integration.bad_input.modules import compiled, pause, says

ECHO = compiled(modules.TEXTS["echo"])


def is_not_there(caller, name):
    return refused(lambda: caller.execute(name)).kind == ("NOT_FOUND", "TOOL_NOT_FOUND")


@pytest.fixture
def uploaded(caller):
    """Names of tools that are deleted in the end."""
    names: list[str] = []
    yield names
    for name in names:
        caller.delete(name)


# What is uploaded


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (modules.NO_START, ["_start"]),
        (modules.UNKNOWN_IMPORT, ["env", "reboot"]),
        (modules.UNKNOWN_WASI, ["fd_teleport"]),
        (modules.WRONG_TYPE, ["host_call"]),
        (modules.WASI_HTTP, ["wasi:http/outgoing-handler"]),
        ("(component)", []),
        ("(module)", ["_start"]),
    ],
)
def test_a_module_that_cannot_run_here(caller, text, named):
    found = refused(lambda: caller.upload("unfit", compiled(text)))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_MODULE")
    assert [word for word in named if word not in found.message] == []
    assert is_not_there(caller, "unfit")


@pytest.mark.parametrize("module", [b"no module", b"\x00asm", b"\x00asm\x01\x00\x00\x00\xff\xff", ECHO[:-20]])
def test_bytes_that_are_no_module(caller, module):
    found = refused(lambda: caller.upload("unfit", module))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_MODULE")
    assert is_not_there(caller, "unfit")


def test_a_manifest_that_is_wrong(caller):
    manifest = {"tool": {"name": "unfit"}, "inputSchema": {"type": "no such type"}}
    found = refused(lambda: caller.upload("unfit", ECHO, manifest))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_MANIFEST")
    assert any("input_schema" in path for path, _, _ in found.violations)
    denied = {"tool": {"name": "unfit"}, "network": {"allowlist": [{"host": "api.example"}]}}
    found = refused(lambda: caller.upload("unfit", ECHO, denied))
    assert found.kind == ("PERMISSION_DENIED", "POLICY_DENIED")
    assert is_not_there(caller, "unfit")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 65, "ünfit"])
def test_a_name_that_is_none(caller, name):
    found = refused(lambda: caller.upload(name, ECHO))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert [path for path, _, _ in found.violations] == ["start.name"]


# How it is uploaded


def _start(**fields):
    return pb.UploadToolRequest(start=pb.UploadToolStart(name="unfit", **fields))


def _chunk(data):
    return pb.UploadToolRequest(chunk=data)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([_start(size_bytes=len(ECHO)), _chunk(ECHO[:-1])], f"{len(ECHO) - 1} of {len(ECHO)} bytes"),
        ([_start(size_bytes=len(ECHO))], f"0 of {len(ECHO)} bytes"),
        ([_start(size_bytes=len(ECHO)), _chunk(ECHO), _chunk(b"x")], "more than"),
        ([_start(size_bytes=len(ECHO), sha256="0" * 64), _chunk(ECHO)], hashlib.sha256(ECHO).hexdigest()),
        ([_chunk(ECHO)], "start"),
        ([_start(size_bytes=len(ECHO)), _start(size_bytes=len(ECHO)), _chunk(ECHO)], "after the first"),
        ([_start(size_bytes=len(ECHO)), pb.UploadToolRequest(), _chunk(ECHO)], "after the first"),
        ([], "start"),
    ],
)
def test_messages_that_are_no_upload(caller, messages, words):
    found = refused(lambda: caller.send(messages))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_UPLOAD")
    assert words in found.message
    assert is_not_there(caller, "unfit")


def test_a_module_over_the_limit(caller):
    found = refused(lambda: caller.send([_start(size_bytes=1 << 40)]))
    assert found.kind == ("RESOURCE_EXHAUSTED", "TOOL_TOO_LARGE")
    assert found.metadata["max_tool_bytes"] == "67108864"


class Slow:
    """An upload that stops half-way until it is told to go on."""

    def __init__(self, caller, name, module):
        self.go_on = threading.Event()
        self._messages = upload_messages(name, module)
        self.call = caller.sandbox.UploadTool.future(self._half(), metadata=caller.metadata, timeout=60)

    def _half(self):
        yield next(self._messages)
        (whole,) = self._messages
        yield pb.UploadToolRequest(chunk=whole.chunk[:10])
        self.go_on.wait(60)
        yield pb.UploadToolRequest(chunk=whole.chunk[10:])


def _staged(server):
    return list((server.home / "tools" / ".clawbox" / "staging").iterdir())


def test_a_client_that_disappears_while_it_uploads(server, caller):
    with Caller(server.address, server.token) as other:
        upload = Slow(other, "unfit", ECHO)
        eventually(lambda: _staged(server))
    upload.go_on.set()
    eventually(lambda: not _staged(server))
    assert is_not_there(caller, "unfit")


def test_a_deadline_while_uploading(server, caller):
    go_on = threading.Event()

    def messages():
        yield _start(size_bytes=len(ECHO))
        yield _chunk(ECHO[:10])
        go_on.wait(60)

    try:
        assert refused(lambda: caller.send(messages(), within=0.3)).code == "DEADLINE_EXCEEDED"
    finally:
        go_on.set()
    eventually(lambda: not _staged(server))
    assert is_not_there(caller, "unfit")


def _compilers(server):
    """Processes that compile, under the server."""
    return [pid for pid in server.descendants() if "compile" in _command(pid)]


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture
def large():
    """A module that takes seconds to compile, and that no cache has."""
    interpreter = (BUILTIN_FOLDER / "javascript.wasm").read_bytes()
    name = secrets.token_bytes(32)
    return interpreter + bytes([0, len(name) + 1, len(name)]) + name  # an empty custom section


def test_a_client_that_disappears_while_its_tool_is_compiled(server, caller, large):
    with Caller(server.address, server.token) as other:
        messages = upload_messages("unfit", large)
        call = other.sandbox.UploadTool.future(messages, metadata=other.metadata, timeout=60)
        eventually(lambda: _compilers(server))
        assert caller.execute("echo", "1").output_json == "1"
    assert call.code() is grpc.StatusCode.CANCELLED
    eventually(lambda: not _compilers(server))
    assert is_not_there(caller, "unfit")


def test_a_compiler_that_is_killed(server, caller, large):
    """As the kernel does when memory is short."""
    call = caller.sandbox.UploadTool.future(
        upload_messages("unfit", large), metadata=caller.metadata, timeout=60
    )
    eventually(lambda: _compilers(server))
    for pid in _compilers(server):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    assert refusal(caught.value).kind == ("RESOURCE_EXHAUSTED", "COMPILE_LIMIT")
    assert is_not_there(caller, "unfit")


# Names that are taken


def test_an_upload_whose_name_exists(caller, uploaded):
    first = caller.upload("mine", ECHO)
    uploaded.append("mine")
    other = compiled(says("other"))
    for name in ("mine", "echo", "python"):
        found = refused(partial(caller.upload, name, other))
        assert (*found.kind, found.metadata["tool"]) == ("ALREADY_EXISTS", "TOOL_EXISTS", name)
    assert caller.tool("mine").digest == first.digest
    assert caller.upload("mine", other, replace=True).digest == hashlib.sha256(other).hexdigest()
    assert caller.execute("mine").output_json == '"other"'


def test_two_uploads_of_one_name_at_once(server, caller, uploaded):
    first = Slow(caller, "contested", ECHO)
    eventually(lambda: _staged(server))
    found = refused(lambda: caller.upload("contested", compiled(says("second"))))
    assert found.kind == ("ALREADY_EXISTS", "TOOL_EXISTS")
    first.go_on.set()
    assert first.call.result().digest == hashlib.sha256(ECHO).hexdigest()
    uploaded.append("contested")
    assert caller.execute("contested", "7").output_json == "7"


def test_of_a_crowd_that_uploads_one_name_exactly_one_has_it(caller, uploaded):
    modules_ = [compiled(says(f"number {number}")) for number in range(8)]

    def upload(module):
        try:
            return caller.upload("crowded", module).digest
        except grpc.RpcError as error:
            return refusal(error).reason

    with ThreadPoolExecutor(8) as crowd:
        said = list(crowd.map(upload, modules_))
    uploaded.append("crowded")
    (number,) = (number for number, word in enumerate(said) if word != "TOOL_EXISTS")
    assert said[number] == hashlib.sha256(modules_[number]).hexdigest()
    assert caller.execute("crowded").output_json == f'"number {number}"'


# Tools that go away


def test_a_tool_that_is_deleted_while_it_runs(server, caller):
    caller.upload("brief", compiled(says("begun\n", then=pause(1500) + "(call $exit (i32.const 0))")))
    events = caller.stream("brief")
    digest = next(events).started.tool_digest
    assert next(events).stdout.data == b"begun\n"
    with held(server):
        caller.delete("brief")
        assert is_not_there(caller, "brief")
        assert caller.status().running_executions == 1
    result = list(events)[-1].result
    assert (result.outcome, result.output_json) == (pb.OUTCOME_OK, '"begun\\n"')
    assert result.metadata.tool_digest == digest


def test_a_tool_that_is_replaced_while_it_runs(caller, uploaded):
    caller.upload("changing", compiled(says("old\n", then="(loop br 0)")))
    uploaded.append("changing")
    limits = {"resources": {"timeout_ms": 1000, "fuel": 100_000_000_000}}
    events = caller.stream("changing", capabilities=limits)
    digest = next(events).started.tool_digest
    assert next(events).stdout.data == b"old\n"
    caller.upload("changing", compiled(says("new")), replace=True)
    assert caller.execute("changing").output_json == '"new"'
    result = list(events)[-1].result
    assert (result.outcome, result.metadata.tool_digest) == (pb.OUTCOME_TIMEOUT, digest)
    assert caller.tool("changing").digest != digest


def test_a_tool_that_ships_cannot_be_deleted(caller):
    found = refused(lambda: caller.delete("python"))
    assert found.kind == ("FAILED_PRECONDITION", "WRONG_STATE")
    assert refused(lambda: caller.delete("nope")).kind == ("NOT_FOUND", "TOOL_NOT_FOUND")


# Files that are put into the folder


def test_a_file_that_is_no_module(server, caller, uploaded):
    path = server.home / "tools" / "broken.wasm"
    path.write_bytes(compiled(modules.UNKNOWN_IMPORT))
    report = caller.sandbox.ReloadTools(pb.ReloadToolsRequest(), metadata=caller.metadata, timeout=30)
    uploaded.append("broken")
    (failure,) = report.failures
    assert (failure.name, failure.previous_in_service) == ("broken", False)
    assert "reboot" in failure.error
    found = refused(lambda: caller.execute("broken"))
    assert found.kind == ("FAILED_PRECONDITION", "TOOL_NOT_READY")
    assert "reboot" in found.message
    assert caller.tool("broken").state == pb.TOOL_STATE_FAILED


def test_a_file_that_gets_worse_leaves_the_version_before_in_service(server, caller, uploaded):
    caller.upload("fragile", ECHO)
    uploaded.append("fragile")
    (server.home / "tools" / "fragile.wasm").write_bytes(b"no module")
    eventually(lambda: caller.tool("fragile").load_error)
    assert caller.execute("fragile", "7").output_json == "7"
    assert caller.tool("fragile").digest == hashlib.sha256(ECHO).hexdigest()
