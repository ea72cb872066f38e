"""What sidecars tell becomes rows and numbers; what a hostile one tells stays within bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from prometheus_client import generate_latest

from clawbox.children.channel import FrameError
from clawbox.egress.findings import Action, Place
from clawbox.egress.messages import Found, Grant, Limits, Row
from clawbox.egress.patterns import Kind
from clawbox.egress.recording import (
    CALLS_KNOWN,
    DENIALS_WITH_ROWS,
    LATE_SECONDS,
    LIVES_AT_ONCE,
    SandboxRecorder,
)
from clawbox.network_rules import NetworkRule
from clawbox.telemetry import Metrics

ALLOWED = Row(
    way="intercept",
    decision="allowed",
    reason="",
    method="GET",
    scheme="https",
    host="api.test",
    port=443,
    path="/v1?key=[REDACTED]",
    rule=0,
    address="192.0.2.1:443",
    status=200,
    bytes_up=10,
    bytes_down=2000,
    duration_us=1500,
    upstream_us=900,
    credential="github",
    removed=("Cookie",),
    found=(Found("github", Kind.KNOWN, Place.BODY, Action.REDACTED, 2),),
    call="request-1",
)
DENIED = msgspec.structs.replace(
    ALLOWED, decision="denied", reason="host_not_allowed", status=403, credential="", found=(), removed=()
)


class Log:
    def __init__(self):
        self.rows: list[dict[str, Any]] = []

    def append(self, kind, *, principal="", request_id="", decision="", **fields):
        self.rows.append(
            {"kind": kind, "principal": principal, "request_id": request_id, "decision": decision, **fields}
        )
        return len(self.rows)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
async def recorder(log, metrics):
    grant = Grant(sandbox="wasm-1", owner="ann", rules=(NetworkRule.parse("api.test"),))
    recorder = SandboxRecorder(grant, log, metrics)
    yield recorder
    recorder.close()


def number(metrics, line):
    text = generate_latest(metrics.registry).decode()
    found = [float(entry.rpartition(" ")[2]) for entry in text.splitlines() if entry.startswith(line + " ")]
    return found[0] if found else 0


async def test_a_request_becomes_a_row_of_the_owner_and_its_call(recorder, log):
    recorder.expect("request-1")
    recorder.row(ALLOWED)
    assert log.rows == [
        {
            "kind": "egress",
            "principal": "ann",
            "request_id": "request-1",
            "decision": "allowed",
            "sandbox": "wasm-1",
            "reason": "",
            "way": "intercept",
            "method": "GET",
            "scheme": "https",
            "host": "api.test",
            "port": 443,
            "path": "/v1?key=[REDACTED]",
            "rule": "api.test",
            "address": "192.0.2.1:443",
            "status": 200,
            "bytes_up": 10,
            "bytes_down": 2000,
            "duration_us": 1500,
            "upstream_us": 900,
            "credential": "github",
            "removed": ["Cookie"],
            "found": [{"name": "github", "kind": "known", "place": "body", "action": "redacted", "count": 2}],
        }
    ]


async def test_a_request_is_counted(recorder, metrics):
    recorder.row(ALLOWED)
    recorder.row(DENIED)
    assert number(metrics, 'clawbox_egress_requests_total{decision="allowed",reason=""}') == 1
    assert number(metrics, 'clawbox_egress_requests_total{decision="denied",reason="host_not_allowed"}') == 1
    assert number(metrics, 'clawbox_egress_bytes_total{direction="down"}') == 4000
    assert number(metrics, "clawbox_egress_upstream_duration_seconds_count") == 2
    assert number(metrics, 'clawbox_egress_leak_findings_total{action="redacted",kind="known"}') == 2


async def test_a_call_that_nobody_made_is_not_named(recorder, log):
    recorder.row(ALLOWED)
    assert log.rows[0]["request_id"] == ""


async def test_names_of_calls_are_kept_for_a_while_only(recorder, log):
    for call in range(CALLS_KNOWN + 1):
        recorder.expect(f"request-{call}")
    recorder.row(msgspec.structs.replace(ALLOWED, call="request-0"))
    recorder.row(ALLOWED)
    assert [row["request_id"] for row in log.rows] == ["", "request-1"]


async def test_what_a_hostile_sidecar_says_is_bounded(recorder, log, metrics):
    recorder.row(
        msgspec.structs.replace(
            ALLOWED,
            decision="x" * 500,
            reason="y" * 500,
            way="z",
            rule=7,
            bytes_up=-(2**62),
            bytes_down=2**63,
            upstream_us=-5,
            found=(Found("n", Kind.KNOWN, Place.BODY, Action.REFUSED, -1),),
        )
    )
    (row,) = log.rows
    assert (row["decision"], row["reason"], row["way"]) == ("other", "other", "other")
    assert (row["bytes_up"], row["bytes_down"], row["upstream_us"]) == (0, 2**53, 0)
    assert "rule" not in row
    assert number(metrics, 'clawbox_egress_requests_total{decision="other",reason="other"}') == 1


async def test_rule_75_denials_beyond_a_rate_become_one_counted_row(recorder, log, metrics):
    for _ in range(DENIALS_WITH_ROWS + 40):
        recorder.row(DENIED)
    recorder.row(msgspec.structs.replace(DENIED, reason="port_not_allowed"))
    assert len(log.rows) == DENIALS_WITH_ROWS
    recorder.row(ALLOWED)
    assert log.rows[-1]["decision"] == "allowed"
    recorder.close()
    counted = log.rows[-1]
    assert (counted["kind"], counted["decision"], counted["count"]) == ("egress", "denied", 41)
    assert counted["reasons"] == {"host_not_allowed": 40, "port_not_allowed": 1}
    assert (counted["principal"], counted["sandbox"]) == ("ann", "wasm-1")
    assert number(metrics, 'clawbox_egress_requests_total{decision="denied",reason="host_not_allowed"}') == (
        DENIALS_WITH_ROWS + 40
    )


async def test_requests_without_a_row_are_counted(recorder, log, metrics):
    recorder.unwritten(5)
    recorder.unwritten(-3)
    recorder.close()
    assert [row["reasons"] for row in log.rows] == [{"audit_unavailable": 5}]
    assert number(metrics, 'clawbox_egress_requests_total{decision="denied",reason="audit_unavailable"}') == 5


async def test_a_suspension_has_a_row(recorder, log, metrics):
    recorder.suspended()
    recorder.suspended()
    (row,) = log.rows
    assert (row["kind"], row["reason"]) == ("egress_suspended", "credentials_suspended")
    assert number(metrics, "clawbox_egress_suspensions_total") == 1


def test_a_sidecar_cannot_tell_of_more_than_its_grant_lets_it_send(log):
    """Else one that was taken over fills the disk, with rows that nobody's requests caused."""
    now = 0.0
    grant = Grant("sandbox-9", "ann", limits=Limits(requests_per_second=2, burst=5, max_concurrent=3))
    recorder = SandboxRecorder(grant, log, Metrics(), clock=lambda: now)
    for _ in range(LIVES_AT_ONCE * 5 + 3 + 64 + int(LATE_SECONDS * 2)):
        recorder.row(ALLOWED)
    with pytest.raises(FrameError, match="more requests"):
        recorder.row(ALLOWED)
    now += 10
    for _ in range(20):
        recorder.row(ALLOWED)
    with pytest.raises(FrameError):
        recorder.row(msgspec.structs.replace(ALLOWED, decision="failed"))
