"""What happened can be read: in the metrics, in the log, in the audit log."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import pytest

from clawbox.audit.verify import verify
from tests.caller import UNLIMITED, Caller, refused
from tests.faults.conftest import admin
from tests.footprint import BusyWorkers, eventually


def scrape(server):
    """Every sample of ``/metrics``, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {
        sample: float(value)
        for sample, value in re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)", text, re.MULTILINE)
    }


def test_metrics_count_what_happened(serve):
    with serve() as server, admin(server) as caller:
        for _ in range(3):
            caller.execute("echo", "1")
        caller.execute("spin", capabilities={"resources": {"fuel": 1000}})
        refused(lambda: caller.execute("nope"))
        with Caller(server.address, "wrong") as stranger:
            refused(lambda: stranger.execute("echo"))
        busy = BusyWorkers(server)
        call = caller.begin("spin", capabilities=UNLIMITED)
        eventually(busy)
        during = scrape(server)
        assert during["clawbox_executions_running"] == during["clawbox_pool_workers_busy"] == 1
        assert during["clawbox_rpcs_in_flight"] == 1
        call.cancel()
        eventually(lambda: scrape(server)["clawbox_executions_running"] == 0)
        eventually(lambda: scrape(server)["clawbox_tools_loaded"] == 5)  # they may have had to be compiled
        after = scrape(server)
    execute = 'method="/clawbox.v1.Sandbox/Execute"'
    counted = {
        f'clawbox_rpcs_total{{code="OK",{execute}}}': 4,
        f'clawbox_rpcs_total{{code="NOT_FOUND",{execute}}}': 1,
        f'clawbox_rpcs_total{{code="UNAUTHENTICATED",{execute}}}': 1,
        f'clawbox_rpcs_total{{code="CANCELLED",{execute}}}': 1,
        f"clawbox_rpc_duration_seconds_count{{{execute}}}": 7,
        'clawbox_wasm_executions_total{status="ok",tool="echo"}': 3,
        'clawbox_wasm_executions_total{status="error",tool="spin"}': 2,
        'clawbox_wasm_outcomes_total{outcome="fuel_exhausted",tool="spin"}': 1,
        'clawbox_wasm_outcomes_total{outcome="cancelled",tool="spin"}': 1,
        'clawbox_wasm_fuel_consumed_count{tool="echo"}': 3,
        'clawbox_refused_tokens_total{reason="TOKEN_INVALID"}': 1,
        'clawbox_pool_worker_restarts_total{cause="cancelled"}': 1,
        "clawbox_tools_loaded": 5,
        "clawbox_audit_failures_total": 0,
    }
    assert {name: after.get(name) for name in counted} == counted
    assert after["clawbox_pool_workers"] >= 1


@pytest.mark.parametrize("path", ["/", "/metrics/x"])
def test_the_metrics_port_serves_metrics_alone(server, path):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=10)
    assert caught.value.code == 404
    caught.value.close()


def test_each_call_has_one_row_and_the_log_holds_no_secret(serve):
    with serve() as server, admin(server) as caller:
        caller.execute("echo", '"sesame-open-up"', request_id="ok-1")
        refused(lambda: caller.execute("nope", request_id="refused-1"))
        with Caller(server.address, "a-wrong-token-0123456789") as stranger:
            refused(lambda: stranger.execute("echo", request_id="stranger-1"))
        token = server.token
    rows = [json.loads(line) for line in (server.home / "audit" / "audit.jsonl").read_text().splitlines()]
    by_id = {row["request_id"]: row for row in rows if row["kind"] == "execute"}
    assert (by_id["ok-1"]["decision"], by_id["ok-1"]["principal"]) == ("ok", "admin")
    assert by_id["refused-1"]["decision"] in {"denied", "failed"}
    (strange,) = (row for row in rows if row["kind"] == "token_refused")
    assert (strange["decision"], strange["principal"]) == ("denied", "")
    everything = server.log.read_text() + json.dumps(rows)
    for secret in (token, "a-wrong-token-0123456789", "sesame-open-up"):
        assert secret not in everything
    assert verify(server.home / "audit").ok
    for line in server.log.read_text().splitlines():
        json.loads(line)
