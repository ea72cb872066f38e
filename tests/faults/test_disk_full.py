"""The audit log cannot be written: nothing new runs, what runs is still recorded, and it mends itself."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from functools import partial
from pathlib import Path

import grpc
import pytest
from clawbox_client.v1 import sandbox_pb2 as pb

from clawbox.audit.verify import verify
from tests.caller import refused
from tests.faults.conftest import admin
from tests.footprint import eventually, held

SMALL_DISK = 'mkdir -p "$0" && mount -t tmpfs -o size=SIZE,mode=700 none "$0" && exec "$@"'


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB, on which the log has nothing but its small reserve."""
    return _disk(tmp_path / "disk", "4m")


@pytest.fixture
def large_disk(tmp_path):
    """A disk of 16 MiB."""
    return _disk(tmp_path / "disk", "16m")


def _disk(folder, size):
    """A folder that is a disk of that size, and the command that starts another, which alone sees it so."""
    inner = ["sh", "-c", SMALL_DISK.replace("SIZE", size), str(folder)]
    reasons = []
    for outer in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        tried = subprocess.run([*outer, *inner, "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return folder, [*outer, *inner]
        reasons.append(tried.stderr)
    pytest.skip(f"this machine lets nobody mount a disk of their own: {reasons}")


def _fill(path):
    """Use every byte that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    assert os.statvfs(path).f_bavail == 0


def _runs(caller, request_id):
    try:
        return caller.execute("echo", request_id=request_id).outcome == pb.OUTCOME_OK
    except grpc.RpcError:
        return False


def _refused_for_the_audit(caller):
    found = refused(lambda: caller.execute("echo"))
    assert found.kind == ("UNAVAILABLE", "AUDIT_UNAVAILABLE")
    assert found.retry_after is not None
    return found


def _audit_component(caller):
    (found,) = (part for part in caller.status().components if part.name == "audit")
    return found


def test_a_full_disk_stops_new_work_and_nothing_is_lost(serve, small_disk):
    folder, wrapper = small_disk
    with serve(wrapper=wrapper, CLAWBOX_LOGGING__AUDIT_DIR=str(folder)) as server, admin(server) as caller:
        inside = Path(f"/proc/{server.process.pid}/root{folder}")
        assert caller.execute("echo", "1").output_json == "1"
        with held(server):  # or it could have ended by then
            running = caller.begin("second", request_id="while-full")
            eventually(lambda: caller.status().running_executions == 1)
            _fill(inside / "filler")
        ran = 0
        while _runs(caller, f"last-{ran}"):  # the last block of the log has room for a few rows
            ran += 1
        assert "No space left" in _refused_for_the_audit(caller).message
        # It began before, so it ends well, and its row goes where room was kept for it.
        assert running.result().output_json == '"done"'
        _refused_for_the_audit(caller)
        assert caller.status().status == "degraded"
        assert "No space left" in _audit_component(caller).detail
        (inside / "filler").unlink()
        eventually(lambda: caller.status().status == "ok")
        assert caller.execute("echo", "2").output_json == "2"
        verdict = verify(inside)
        rows = (inside / "audit.jsonl").read_text()
        assert verdict.ok
        assert verdict.gaps == ()
        assert rows.count('"while-full"') == 1
        assert rows.count('"last-') == ran
        _reports_nothing_else(server)


def test_a_log_that_takes_no_more_stops_new_work_until_it_does(serve):
    """Whatever the reason: here it is the largest file that the server may write."""
    with serve() as server, admin(server) as caller:
        caller.execute("echo", "1")
        log = server.home / "audit" / "audit.jsonl"
        limit = partial(resource.prlimit, server.process.pid, resource.RLIMIT_FSIZE)
        before = limit()
        with held(server):  # or its row could have been written by then
            running = caller.begin("second", request_id="lost")
            eventually(lambda: caller.status().running_executions == 1)
            limit((log.stat().st_size, before[1]))
        # What ran has run; its row is counted as lost, and a row says so later.
        assert running.result().outcome == pb.OUTCOME_OK
        _refused_for_the_audit(caller)
        limit(before)
        eventually(lambda: caller.status().status == "ok")
        assert caller.execute("echo", "2").output_json == "2"
        assert server.stop(signal.SIGTERM) == 0
    verdict = verify(server.home / "audit")
    assert verdict.ok
    assert len(verdict.gaps) == 1


def test_where_the_operator_wants_it_so_work_goes_on_without_a_log(serve):
    """And its log may be for people."""
    text = {"CLAWBOX_LOGGING__FORMAT": "text", "CLAWBOX_LOGGING__LEVEL": "debug"}
    with serve(CLAWBOX_AUDIT__ON_ERROR="continue", **text) as server, admin(server) as caller:
        caller.execute("echo", "1")
        size = (server.home / "audit" / "audit.jsonl").stat().st_size
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, hard))
        for _ in range(3):
            assert caller.execute("echo", "1").output_json == "1"
        assert caller.status().status == "degraded"
        assert "3 rows are lost" in _audit_component(caller).detail
        log = server.log.read_text()
        assert "serving" in log
        assert not log.startswith("{")


def _reports_nothing_else(server):
    assert "Traceback" not in server.log.read_text()


def test_rule_99_what_fills_the_disk_stops_neither_calls_nor_their_rows(serve, large_disk):
    folder, wrapper = large_disk
    with serve(wrapper=wrapper, CLAWBOX_LOGGING__AUDIT_DIR=str(folder)) as server, admin(server) as caller:
        inside = Path(f"/proc/{server.process.pid}/root{folder}")
        assert caller.execute("echo", "1").output_json == "1"
        for number in range(40):  # more than the blocks that the log began would hold
            _fill(inside / f"filler-{number}")
            assert caller.execute("echo", "1", request_id=f"full-{number}").output_json == "1"
        assert caller.status().status == "ok"
        assert verify(inside).ok
        assert (inside / "audit.jsonl").read_text().count('"full-') == 40
        _reports_nothing_else(server)
