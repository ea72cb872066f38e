"""Capabilities, manifests and results between messages and values."""

import pytest
from clawbox_client.v1 import sandbox_pb2
from google.protobuf import json_format

from clawbox.errors import ClawboxError, Reason
from clawbox.policy import NetworkRule, Requested, ShapeAction, TlsMode, ToolCeiling
from clawbox.rpc import convert, convert_capabilities
from clawbox.wasm.executor import Execution
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.model import Level, LogEntry, Outcome, OutputChunk, OutputStream, RunResult
from clawbox.wasm.output import Action, Finding, OutputForm, Report, Scanned

CEILING = ToolCeiling(
    default_timeout_ms=30_000,
    max_timeout_ms=120_000,
    default_memory_mb=256,
    max_memory_mb=1024,
    default_fuel=10**8,
    max_fuel=10**11,
)


def requested(capabilities, any_host=False):
    request = json_format.ParseDict({"tool": "t", "capabilities": capabilities}, sandbox_pb2.ExecuteRequest())
    return convert_capabilities.requested(request, any_host=any_host)


def test_absent_is_not_empty():
    assert convert_capabilities.requested(sandbox_pb2.ExecuteRequest(), any_host=False) is None
    assert requested({}) == Requested()
    assert requested({}).network is None
    assert requested({"network": {}}).network == ()
    assert requested({"resources": {}}).timeout_ms is None
    assert requested({"resources": {"timeoutMs": 0}}).timeout_ms == 0


def test_everything_of_a_request_arrives():
    assert requested(
        {
            "network": {
                "rules": [
                    {"host": "a.example"},
                    {
                        "host": "*.b.example",
                        "ports": [8443],
                        "methods": ["GET"],
                        "pathPrefixes": ["/v1"],
                        "tlsMode": "TLS_MODE_INTERCEPT",
                        "onShape": "SHAPE_ACTION_REPORT",
                    },
                    {"host": "c.example", "ports": [443], "tlsMode": "TLS_MODE_TUNNEL"},
                ],
                "maxConcurrent": 3,
            },
            "credentials": ["k"],
            "resources": {"timeoutMs": 1, "memoryMb": 2, "fuel": 3, "maxOutputBytes": 4},
        }
    ) == Requested(
        network=(
            NetworkRule(host="a.example"),
            NetworkRule(
                host="*.b.example",
                ports=(8443,),
                methods=("GET",),
                path_prefixes=("/v1",),
                on_shape=ShapeAction.REPORT,
            ),
            NetworkRule(host="c.example", ports=(443,), tls_mode=TlsMode.TUNNEL),
        ),
        max_concurrent=3,
        credentials=("k",),
        timeout_ms=1,
        memory_mb=2,
        fuel=3,
        max_output_bytes=4,
    )


def test_rules_that_are_none_are_all_named():
    with pytest.raises(ClawboxError) as caught:
        requested(
            {
                "network": {
                    "rules": [{"host": "ok.example"}, {"host": "UP PER"}, {"host": "a.b", "ports": [0]}]
                }
            }
        )
    assert caught.value.reason is Reason.INVALID_FIELD
    assert {violation.field.partition("]")[0] for violation in caught.value.violations} == {
        "capabilities.network.rules[1",
        "capabilities.network.rules[2",
    }


def test_every_host_needs_the_operator():
    with pytest.raises(ClawboxError):
        requested({"network": {"rules": [{"host": "*"}]}})
    assert requested({"network": {"rules": [{"host": "*"}]}}, any_host=True).network == (
        NetworkRule(host="*"),
    )


@pytest.mark.parametrize("name", ["cpuShares", "cpuMillis", "pids"])
def test_limits_of_containers_are_refused_for_tools(name):
    with pytest.raises(ClawboxError, match="for containers"):
        requested({"resources": {name: 1}})


MANIFEST = {
    "tool": {"name": "demo", "description": "Does things.", "version": "2.0"},
    "network": {
        "allowlist": [
            "api.example.com",
            {"host": "*.b.example", "ports": [8443], "methods": ["GET"], "on_shape": "redact"},
        ],
        "max_concurrent": 2,
    },
    "credentials": {"available": ["k1", "k2"]},
    "resources": {"default_timeout_ms": 10, "max_timeout_ms": 20, "max_fuel": 7, "default_fuel": 5},
    "input_schema": {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 5}},
        "required": ["n"],
    },
    "output_schema": {"type": "array", "items": {"enum": [1, "a", None, True, 1.5]}},
}


def test_a_manifest_survives_the_way_out_and_back():
    manifest = Manifest.from_value(MANIFEST)
    message = convert.manifest_message(manifest, CEILING)
    again = convert.manifest(sandbox_pb2.ToolManifest.FromString(message.SerializeToString()), any_host=False)
    assert again.model_copy(update={"resources": manifest.resources}) == manifest
    assert again.resources.default_timeout_ms == 10
    assert again.resources.default_memory_mb == 256


def test_what_a_manifest_message_leaves_out_stays_out():
    message = sandbox_pb2.ToolManifest(tool=sandbox_pb2.ToolInfo(name="demo", description="x"))
    assert convert.manifest(message, any_host=False) == Manifest.from_value(
        {"tool": {"name": "demo", "description": "x"}}
    )
    assert convert.manifest(message, any_host=False).tool.version == "0.1.0"


def test_a_bad_manifest_is_refused_with_its_problems():
    message = sandbox_pb2.ToolManifest(tool=sandbox_pb2.ToolInfo(name="no spaces"))
    with pytest.raises(ClawboxError) as caught:
        convert.manifest(message, any_host=False)
    assert caught.value.reason is Reason.INVALID_MANIFEST
    assert "tool.name" in {violation.field for violation in caught.value.violations}


def execution(**fields):
    result = RunResult(Outcome.OK, **fields)
    report = Report((Finding("slack_token", Action.REDACTED, "stderr", 2),), ("credential_pattern_detected",))
    return Execution(tool_digest="d" * 64, scanned=Scanned(result, OutputForm.JSON, report))


def test_metadata_says_what_a_run_did():
    metadata = convert.execution_metadata(
        execution(
            stdout=b"out",
            stderr=b"err",
            logs=(LogEntry(Level.WARN, "careful", 5), LogEntry(Level.UNKNOWN, "odd", 6)),
            truncated=((OutputStream.STDERR, 9),),
            exit_code=0,
            fuel_consumed=1,
            peak_memory_bytes=2,
            host_calls=3,
            egress_calls=4,
            duration_us=5,
            queued_us=6,
        ),
        queued_us=100,
    )
    assert json_format.MessageToDict(metadata, preserving_proto_field_name=True) == {
        "duration_us": "5",
        "queued_us": "106",
        "fuel_consumed": "1",
        "peak_memory_bytes": "2",
        "logs": [
            {"level": "LOG_LEVEL_WARN", "message": "careful", "offset_us": "5"},
            {"message": "odd", "offset_us": "6"},
        ],
        "stdout": "b3V0",
        "stderr": "ZXJy",
        "truncations": [{"stream": "STREAM_STDERR", "kept_bytes": "9"}],
        "sanitization": {
            "issues_found": 2,
            "actions_taken": ["credential_pattern_detected"],
            "findings": [
                {
                    "pattern": "slack_token",
                    "action": "FINDING_ACTION_REDACTED",
                    "location": "stderr",
                    "count": 2,
                }
            ],
        },
        "egress_calls": 4,
        "host_calls": 3,
        "tool_digest": "d" * 64,
        "exit_code": 0,
    }


def test_the_result_of_a_stream_repeats_nothing():
    metadata = convert.execution_metadata(
        execution(stdout=b"out", stderr=b"err", logs=(LogEntry(Level.INFO, "x", 1),)),
        queued_us=0,
        streamed=True,
    )
    assert (metadata.stdout, metadata.stderr, list(metadata.logs)) == (b"", b"", [])
    assert not metadata.HasField("exit_code")


def test_every_outcome_and_level_has_its_number():
    assert {convert.outcome(value) for value in Outcome} == set(range(1, 12))
    assert [convert.log_entry(LogEntry(level, "", 0)).level for level in Level] == [1, 2, 3, 4, 0]


def test_chunks_go_to_their_stream():
    event = convert.chunk_event(OutputChunk(OutputStream.STDERR, b"x", 7))
    assert (event.WhichOneof("event"), event.stderr.data, event.stderr.offset) == ("stderr", b"x", 7)
    assert convert.chunk_event(OutputChunk(OutputStream.STDOUT, b"x", 0)).WhichOneof("event") == "stdout"
