"""Wire and domain: the one place where messages become values and values become messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from clawbox_client.v1 import sandbox_pb2, system_pb2

from clawbox import json_text
from clawbox.errors import ClawboxError, FieldViolation, Reason, invalid_field
from clawbox.policy import DEFAULT_MAX_CONCURRENT, ToolCeiling, limit_ranges
from clawbox.rpc.convert_capabilities import rule_message, rule_to_mapping
from clawbox.rpc.json_values import json_to_value, set_struct, struct_to_json, struct_to_object
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.model import Abi, Level, LogEntry, Outcome, OutputChunk, OutputStream
from clawbox.wasm.output import Action, OutputForm

if TYPE_CHECKING:
    from clawbox.audit import AuditRow
    from clawbox.wasm.executor import Execution
    from clawbox.wasm.output import Report
    from clawbox.wasm.tool_entry import ReloadReport, ToolEntry

INLINE_BYTES = 8 << 10
"""Messages up to this size are converted on the loop: a thread would cost more."""

_OUTCOMES = {outcome: sandbox_pb2.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome}
_LEVELS = {
    Level.DEBUG: sandbox_pb2.LOG_LEVEL_DEBUG,
    Level.INFO: sandbox_pb2.LOG_LEVEL_INFO,
    Level.WARN: sandbox_pb2.LOG_LEVEL_WARN,
    Level.ERROR: sandbox_pb2.LOG_LEVEL_ERROR,
    Level.UNKNOWN: sandbox_pb2.LOG_LEVEL_UNSPECIFIED,
}
_STREAMS = {stream: sandbox_pb2.Stream.Value(f"STREAM_{stream.name}") for stream in OutputStream}
_ACTIONS = {action: sandbox_pb2.FindingAction.Value(f"FINDING_ACTION_{action.name}") for action in Action}
_ABIS = {abi: sandbox_pb2.ToolAbi.Value(f"TOOL_ABI_{abi.name}") for abi in Abi}
_RESOURCES = (
    "default_timeout_ms",
    "max_timeout_ms",
    "default_memory_mb",
    "max_memory_mb",
    "default_fuel",
    "max_fuel",
)


# Parameters


async def params(request: sandbox_pb2.ExecuteRequest) -> bytes:
    """The parameters of a request as JSON text; ``null`` when it has none.

    ``params_json`` comes back byte for byte. ``params`` becomes compact JSON with sorted keys, as in the Rust
    clawbox; a double that is an integer is written as one. Raises INVALID_JSON, INVALID_FIELD.
    """
    match request.WhichOneof("input"):
        case "params_json":
            text = request.params_json.encode()
            if len(text) <= INLINE_BYTES:
                check_json(text)
            else:
                await asyncio.to_thread(check_json, text)
            return text
        case "params":
            if request.params.ByteSize() <= INLINE_BYTES:
                return struct_to_json(request.params)
            return await asyncio.to_thread(struct_to_json, request.params)
        case _:
            return b"null"


def check_json(text: bytes) -> None:
    """Check ``params_json``; see :func:`clawbox.json_text.check`. Raises INVALID_JSON, INVALID_FIELD."""
    try:
        json_text.check(text)
    except json_text.NotJsonError as error:
        raise ClawboxError(
            Reason.INVALID_JSON,
            "params_json is not JSON: {problem} at byte {position}",
            violations=[FieldViolation("params_json", str(error), "json")],
            problem=error.problem,
            position=error.position,
        ) from None
    except json_text.JsonTooBigError as error:
        raise invalid_field("params_json", f"has {error}", f"max_{error.what}") from None


# Output


async def set_output(
    response: sandbox_pb2.ExecuteResponse, output: bytes | None, form: OutputForm, *, as_text: bool
) -> None:
    """Put what a tool returned into the reply, in the form in which the request gave its input.

    ``as_text``: the request gave ``params_json``.
    """
    if output is None:
        return
    if form is OutputForm.BINARY:
        response.output_bytes = output
    elif as_text:
        response.output_json = (
            output.decode() if form is OutputForm.JSON else json_text.encode(output.decode()).decode()
        )
    elif form is OutputForm.TEXT:
        response.output.string_value = output.decode()
    elif len(output) <= INLINE_BYTES:
        json_to_value(output, response.output)
    else:
        await asyncio.to_thread(json_to_value, output, response.output)


# Executions


def execution_metadata(
    execution: Execution, *, queued_us: int, streamed: bool = False
) -> sandbox_pb2.ExecutionMetadata:
    """What a run used, wrote and reached. ``streamed``: what it wrote was sent already."""
    result = execution.scanned.result
    metadata = sandbox_pb2.ExecutionMetadata(
        duration_us=result.duration_us,
        queued_us=queued_us + result.queued_us,
        fuel_consumed=result.fuel_consumed,
        peak_memory_bytes=result.peak_memory_bytes,
        truncations=[
            sandbox_pb2.Truncation(stream=_STREAMS[stream], kept_bytes=kept)
            for stream, kept in result.truncated
        ],
        egress_calls=result.egress_calls,
        host_calls=result.host_calls,
        tool_digest=execution.tool_digest,
    )
    if not streamed:
        metadata.stdout = result.stdout
        metadata.stderr = result.stderr
        metadata.logs.extend(log_entry(entry) for entry in result.logs)
    if execution.scanned.report.findings:
        metadata.sanitization.CopyFrom(sanitization(execution.scanned.report))
    if result.exit_code is not None:
        metadata.exit_code = result.exit_code
    return metadata


def outcome(value: Outcome) -> sandbox_pb2.Outcome.ValueType:
    """How a run ended."""
    return _OUTCOMES[value]


def log_entry(entry: LogEntry) -> sandbox_pb2.LogEntry:
    """One log entry."""
    return sandbox_pb2.LogEntry(
        level=_LEVELS[entry.level], message=entry.message, offset_us=max(0, entry.offset_us)
    )


def chunk_event(chunk: OutputChunk) -> sandbox_pb2.ExecuteStreamResponse:
    """Bytes that a run wrote."""
    message = sandbox_pb2.OutputChunk(data=chunk.data, offset=chunk.offset)
    if chunk.stream is OutputStream.STDERR:
        return sandbox_pb2.ExecuteStreamResponse(stderr=message)
    return sandbox_pb2.ExecuteStreamResponse(stdout=message)


def sanitization(report: Report) -> sandbox_pb2.Sanitization:
    """What the output scan found and did."""
    return sandbox_pb2.Sanitization(
        issues_found=report.issues_found,
        actions_taken=report.actions_taken,
        findings=[
            sandbox_pb2.Finding(
                pattern=finding.pattern,
                action=_ACTIONS[finding.action],
                location=finding.location,
                count=finding.count,
            )
            for finding in report.findings
        ],
    )


# Tools


def manifest(message: sandbox_pb2.ToolManifest, *, any_host: bool) -> Manifest:
    """The manifest of a message; zeros and empty strings are left out.

    A large schema takes up to a second: for a thread. Raises INVALID_MANIFEST, INVALID_FIELD.
    """
    value: dict[str, Any] = {"tool": {"name": message.tool.name, "description": message.tool.description}}
    if message.tool.version:
        value["tool"]["version"] = message.tool.version
    if message.HasField("network"):
        network: dict[str, Any] = {"allowlist": [rule_to_mapping(rule) for rule in message.network.allowlist]}
        if message.network.max_concurrent:
            network["max_concurrent"] = message.network.max_concurrent
        value["network"] = network
    if message.HasField("credentials"):
        value["credentials"] = {"available": list(message.credentials.available)}
    resources = {name: number for name in _RESOURCES if (number := getattr(message.resources, name))}
    if resources:
        value["resources"] = resources
    if message.HasField("input_schema"):
        value["input_schema"] = struct_to_object(message.input_schema, "manifest.input_schema")
    if message.HasField("output_schema"):
        value["output_schema"] = struct_to_object(message.output_schema, "manifest.output_schema")
    return Manifest.from_value(value, any_host=any_host)


def manifest_message(value: Manifest, ceiling: ToolCeiling) -> sandbox_pb2.ToolManifest:
    """A manifest as a message, with the defaults and maxima that are in force filled in."""
    limits = limit_ranges(value, ceiling)
    message = sandbox_pb2.ToolManifest(
        tool=sandbox_pb2.ToolInfo(
            name=value.tool.name, description=value.tool.description, version=value.tool.version
        ),
        network=sandbox_pb2.ToolNetwork(
            allowlist=[rule_message(rule) for rule in value.network_rules],
            max_concurrent=value.max_concurrent or DEFAULT_MAX_CONCURRENT,
        ),
        credentials=sandbox_pb2.ToolCredentials(available=value.credential_names),
        resources=sandbox_pb2.ToolResources(
            default_timeout_ms=limits["timeout_ms"].default,
            max_timeout_ms=limits["timeout_ms"].maximum,
            default_memory_mb=limits["memory_mb"].default,
            max_memory_mb=limits["memory_mb"].maximum,
            default_fuel=limits["fuel"].default,
            max_fuel=limits["fuel"].maximum,
        ),
    )
    if value.input_schema is not None:
        message.input_schema.SetInParent()
        set_struct(message.input_schema, value.input_schema)
    if value.output_schema is not None:
        message.output_schema.SetInParent()
        set_struct(message.output_schema, value.output_schema)
    return message


def tool(entry: ToolEntry, ceiling: ToolCeiling) -> sandbox_pb2.Tool:
    """A tool of the catalog."""
    message = sandbox_pb2.Tool(
        name=entry.name,
        description=entry.manifest.tool.description,
        version=entry.manifest.tool.version,
        manifest=manifest_message(entry.manifest, ceiling),
        owner=entry.owner,
        published=entry.published,
        state=sandbox_pb2.ToolState.Value(f"TOOL_STATE_{entry.state.name}"),
        load_error=entry.load_error,
        warnings=entry.warnings,
        size_bytes=entry.size_bytes,
    )
    if entry.code is not None:
        message.abi = _ABIS[entry.code.abi]
        message.digest = entry.code.digest
    message.update_time.FromDatetime(entry.update_time)
    return message


def reload_report(report: ReloadReport) -> sandbox_pb2.ReloadToolsResponse:
    """What the tool folder holds now."""
    return sandbox_pb2.ReloadToolsResponse(
        reloaded=report.reloaded,
        tools=report.tools,
        failures=[
            sandbox_pb2.ToolFailure(
                name=failure.name, error=failure.error, previous_in_service=failure.previous_in_service
            )
            for failure in report.failures
        ],
    )


# Audit


def audit_row(row: AuditRow) -> system_pb2.AuditRow:
    """One row of the audit log."""
    message = system_pb2.AuditRow(
        sequence=row.sequence,
        kind=row.kind,
        principal=row.principal,
        request_id=row.request_id,
        decision=row.decision,
    )
    message.time.FromJsonString(row.time)
    set_struct(message.fields, row.fields)
    return message
