"""SIGTERM and SIGINT: what runs may finish, then everything goes, and nothing is left."""

from __future__ import annotations

import signal
import time
from functools import partial

import grpc
import pytest
from grpc_health.v1 import health_pb2

from clawbox.audit.verify import verify
from tests.caller import UNLIMITED, refusal, refused
from tests.faults.conftest import admin
from tests.footprint import eventually, held, is_alive

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_may_finish(serve, sig):
    with serve() as server, admin(server) as caller:
        children = server.descendants()
        with held(server):  # a second is soon over where much else goes on
            calls = [caller.begin("second") for _ in range(2)]
            eventually(lambda: caller.status().running_executions == 2)
            queued = caller.begin("echo", "7")
            eventually(lambda: caller.status().queued_executions == 1)
            watch = caller.channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )(health_pb2.HealthCheckRequest(service="clawbox.v1.Sandbox"), timeout=30)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            server.process.send_signal(sig)
            assert next(watch).status == NOT_SERVING
            with admin(server) as late:
                for one in (caller, late):
                    found = refused(partial(one.execute, "echo"))
                    assert found.kind == ("UNAVAILABLE", "SHUTTING_DOWN")
                    assert found.retry_after is not None
            assert not any(call.done() for call in calls)
        assert [call.result().output_json for call in calls] == ['"done"'] * 2
        assert queued.result().output_json == "7"
        assert server.process.wait(20) == 0
        eventually(lambda: not [pid for pid in children if is_alive(pid)])
    assert verify(server.home / "audit").ok
    assert "Traceback" not in server.log.read_text()


def test_what_runs_too_long_is_ended_after_the_grace_period(serve):
    with serve(CLAWBOX_SERVER__GRACE_MS="300") as server, admin(server) as caller:
        running = caller.begin("spin", capabilities=UNLIMITED, request_id="too-long")
        stream = caller.stream("spin", capabilities=UNLIMITED)
        assert next(stream).WhichOneof("event") == "started"
        eventually(lambda: caller.status().running_executions == 2)
        waiting = caller.begin("echo")
        eventually(lambda: caller.status().queued_executions == 1)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
        for call in (running, waiting):
            with pytest.raises(grpc.RpcError) as caught:
                call.result()
            assert refusal(caught.value).kind == ("UNAVAILABLE", "SHUTTING_DOWN")
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert refusal(caught.value).kind == ("UNAVAILABLE", "SHUTTING_DOWN")
    rows = (server.home / "audit" / "audit.jsonl").read_text()
    (row,) = (line for line in rows.splitlines() if '"too-long"' in line)
    assert '"cancelled"' in row
    assert verify(server.home / "audit").ok


def test_a_second_signal_ends_it_at_once(serve):
    with serve() as server, admin(server) as caller:
        children = server.descendants()
        call = caller.begin("spin", capabilities=UNLIMITED)
        eventually(lambda: caller.status().running_executions == 1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in server.log.read_text())
        assert server.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        eventually(lambda: not [pid for pid in children if is_alive(pid)])
        assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_watchers_are_told_that_the_server_stops(serve):
    with serve() as server, admin(server) as caller, caller.audit(after=0) as rows:
        caller.execute("echo")
        assert next(rows).kind == "execute"
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in rows:
                pass
        assert refusal(caught.value).kind == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert server.process.wait(20) == 0


def test_a_signal_while_tools_are_compiled(serve, tmp_path):
    """Before anything serves long: the first seconds of a server are no worse a time to stop."""
    with serve(CLAWBOX_SANDBOX__CACHE_DIR=str(tmp_path / "cold")) as server:
        assert server.stop() == 0
        assert server.descendants() == []
    assert "Traceback" not in server.log.read_text()
