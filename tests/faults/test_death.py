"""The server is killed outright: nothing of it survives, and the next one goes on where it was."""

from __future__ import annotations

import os
import secrets
import subprocess
import threading
from pathlib import Path

import grpc
import pytest
from clawbox_client.v1 import sandbox_pb2 as pb

from clawbox.audit.verify import verify
from clawbox.wasm.compiler import BUILTIN_FOLDER
from tests.caller import UNLIMITED, Caller, upload_messages
from tests.faults.conftest import TOOLS, admin
from tests.footprint import eventually, is_alive
from tests.live import CLAWBOX, free_ports


def _killed(server):
    """Kill the server; what it had started."""
    children = server.descendants()
    assert children
    server.process.kill()
    server.process.wait()
    return children


def test_a_killed_server_leaves_no_process(serve):
    with serve() as server, admin(server) as caller:
        calls = [caller.begin("spin", capabilities=UNLIMITED) for _ in range(2)]
        eventually(lambda: caller.status().running_executions == 2)
        children = _killed(server)
        eventually(lambda: not [pid for pid in children if is_alive(pid)])
        for call in calls:
            assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_the_next_server_goes_on_where_the_killed_one_was(serve, tmp_path):
    path = tmp_path / "sock"
    go_on = threading.Event()

    def half_an_upload():
        messages = upload_messages("unfinished", TOOLS["echo"])
        yield next(messages)
        yield pb.UploadToolRequest(chunk=TOOLS["echo"][:10])
        go_on.wait(60)

    with serve(CLAWBOX_SERVER__UNIX_SOCKET=str(path)) as server, admin(server) as caller:
        caller.execute("echo", "1", request_id="before")
        caller.upload("mine", TOOLS["counter"])
        upload = caller.sandbox.UploadTool.future(half_an_upload(), metadata=caller.metadata)
        staging = server.home / "tools" / ".clawbox" / "staging"
        eventually(lambda: list(staging.iterdir()))
        _killed(server)
        go_on.set()
        with pytest.raises(grpc.RpcError):
            upload.result()
        home, rows = server.home, verify(server.home / "audit").rows
    assert path.is_socket()
    assert list(staging.iterdir())

    with serve(home, CLAWBOX_SERVER__UNIX_SOCKET=str(path)) as server:
        assert list(staging.iterdir()) == []
        with Caller(f"unix:{path}", server.token) as caller:
            assert caller.execute("counter").output_json == "1"
            assert caller.tool("mine").owner == "admin"
            assert "unfinished" not in caller.tools()
            with caller.audit(after=0, kinds=["execute"]) as found:
                assert next(found).request_id == "before"
    assert not path.exists()
    verdict = verify(home / "audit")
    assert verdict.ok
    assert verdict.rows > rows
    assert verdict.first_sequence == 1


def test_a_second_server_does_not_start_in_the_same_folder(server):
    """And does not disturb the first."""
    environment = {**os.environ, "CLAWBOX_PORT": str(free_ports()[0]), "CLAWBOX_METRICS__PORT": "0"}
    ended = subprocess.run(
        [CLAWBOX, "serve", "--config", server.home / "config.toml"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert "a server that is running writes there" in ended.stderr
    assert "Traceback" not in ended.stderr
    with admin(server) as caller:
        assert caller.execute("echo", "1").output_json == "1"


def test_a_torn_audit_log_is_mended_and_said_to_be(serve):
    with serve() as server, admin(server) as caller:
        caller.execute("echo", "1")
        _killed(server)
    log = server.home / "audit" / "audit.jsonl"
    log.write_bytes(log.read_bytes() + b'{"sequence": 99, "ti')
    with serve(server.home) as again, admin(again) as caller:
        caller.execute("echo", "1")
    verdict = verify(server.home / "audit")
    assert verdict.ok
    assert len(verdict.gaps) == 1


def test_a_compiler_dies_with_its_server(serve):
    name = secrets.token_bytes(32)  # in a custom section: no cache has it
    module = (BUILTIN_FOLDER / "javascript.wasm").read_bytes() + bytes([0, 33, 32]) + name
    with serve() as server, admin(server) as caller:
        call = caller.sandbox.UploadTool.future(upload_messages("big", module), metadata=caller.metadata)
        eventually(lambda: any("compile" in _command(pid) for pid in server.descendants()))
        children = _killed(server)
        eventually(lambda: not [pid for pid in children if is_alive(pid)])
        assert call.code() is grpc.StatusCode.UNAVAILABLE


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
