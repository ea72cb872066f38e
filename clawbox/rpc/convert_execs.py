"""Processes inside containers, wire and domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clawbox_client.v1 import containers_pb2, sandbox_pb2

from clawbox.containers.backend import Stream
from clawbox.containers.environment import check_environment
from clawbox.containers.execs.calls import ExecCall, RunCall
from clawbox.containers.execs.events import Exited, Gap, Output, Started
from clawbox.errors import invalid_field
from clawbox.policy import over_limit
from clawbox.rpc import convert_output

if TYPE_CHECKING:
    from clawbox.containers.execs.events import ExecEvent, RunResult


def exec_call(start: containers_pb2.ExecStart) -> ExecCall:
    """What an Exec asks for, not yet checked."""
    check_environment(start.env)  # before it is copied
    size = {}
    if start.HasField("size"):
        if not start.tty:
            raise invalid_field("size", "is for a terminal; set tty, or leave it out", "conflict")
        size = {"rows": start.size.rows, "columns": start.size.columns}
    return ExecCall(
        command=tuple(start.command),
        env=dict(start.env),
        working_dir=start.working_dir,
        user=start.user,
        tty=start.tty,
        timeout_ms=start.timeout_ms if start.HasField("timeout_ms") else None,
        exec_id=start.exec_id,
        keep_running=start.keep_running,
        **size,
    )


def run_call(request: containers_pb2.RunCommandRequest, most: int) -> RunCall:
    """What a RunCommand asks for; ``most`` bytes are kept of stdout and stderr each at the most."""
    check_environment(request.env)  # before it is copied
    asked = most
    if request.HasField("max_output_bytes"):
        asked = request.max_output_bytes
        if not asked:
            raise invalid_field(
                "max_output_bytes", "must be at least 1; leave it out for the most", "minimum"
            )
        if asked > most:
            raise over_limit("max_output_bytes", asked, most, "grant")
    return RunCall(
        command=tuple(request.command),
        env=dict(request.env),
        working_dir=request.working_dir,
        user=request.user,
        stdin=request.stdin,
        timeout_ms=request.timeout_ms if request.HasField("timeout_ms") else None,
        max_output_bytes=asked,
    )


def run_response(result: RunResult) -> containers_pb2.RunCommandResponse:
    """How a process ended, and what it wrote."""
    ended = result.ended
    response = containers_pb2.RunCommandResponse(
        stdout=result.stdout,
        stderr=result.stderr,
        truncations=[convert_output.truncation(cut.stream, cut.kept_bytes) for cut in result.truncations],
        timed_out=ended.timed_out,
        lost=ended.lost,
        reason=ended.reason,
        duration_ms=ended.duration_ms,
        sanitization=convert_output.sanitization(ended.findings),
    )
    if ended.exit_code is not None:
        response.exit_code = ended.exit_code
    return response


def event(value: ExecEvent | None) -> containers_pb2.ExecResponse:
    """One event of a process; None: nothing happened for a while."""
    match value:
        case None:
            return containers_pb2.ExecResponse(keepalive=containers_pb2.ExecKeepalive())
        case Started(exec_id, stdin_offset, attached):
            started = containers_pb2.ExecStarted(
                exec_id=exec_id, stdin_offset=stdin_offset, attached=attached
            )
            return containers_pb2.ExecResponse(started=started)
        case Output():
            chunk = sandbox_pb2.OutputChunk(data=value.data, offset=value.offset)
            if value.stream is Stream.STDERR:
                return containers_pb2.ExecResponse(stderr=chunk)
            return containers_pb2.ExecResponse(stdout=chunk)
        case Gap(stream, offset, length):
            return containers_pb2.ExecResponse(gap=convert_output.gap(stream, offset, length))
        case Exited():
            return containers_pb2.ExecResponse(exited=_exited(value))


def _exited(value: Exited) -> containers_pb2.ExecExited:
    message = containers_pb2.ExecExited(
        timed_out=value.timed_out,
        lost=value.lost,
        reason=value.reason,
        duration_ms=value.duration_ms,
        sanitization=convert_output.sanitization(value.findings),
    )
    if value.exit_code is not None:
        message.exit_code = value.exit_code
    return message
