"""What programs in containers wrote, and what was done to it, as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clawbox_client.v1 import containers_pb2, sandbox_pb2

from clawbox.containers.backend import Stream
from clawbox.containers.output.findings import FindingAction, actions_taken
from clawbox.containers.output.reading import Gap, Offsets, Oldest, Since, TailLines
from clawbox.errors import FieldViolation, invalid_field, invalid_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from clawbox.containers.output.capture import Tail
    from clawbox.containers.output.findings import OutputFinding
    from clawbox.containers.output.reading import Begin, Chunk
    from clawbox.containers.usage import Usage

_STREAMS: Final = {
    sandbox_pb2.STREAM_STDOUT: Stream.STDOUT,
    sandbox_pb2.STREAM_STDERR: Stream.STDERR,
}
TO_STREAM: Final = {stream: number for number, stream in _STREAMS.items()}
_ACTIONS: Final = {
    FindingAction.REDACTED: sandbox_pb2.FINDING_ACTION_REDACTED,
    FindingAction.MARKED: sandbox_pb2.FINDING_ACTION_MARKED,
}
_MAX_STREAMS: Final = 8
_FIRST_SECOND: Final = -62_135_596_800
_LAST_SECOND: Final = 253_402_300_799
_MOST: Final = (1 << 32) - 1


def streams(numbers: Sequence[int]) -> frozenset[Stream]:
    """Which streams a request names; both when it names none. Raises INVALID_FIELD."""
    unknown = [
        FieldViolation(f"streams[{index}]", "must be stdout or stderr", "enum")
        for index, number in enumerate(numbers[:_MAX_STREAMS])
        if number not in _STREAMS
    ]
    if len(numbers) > _MAX_STREAMS:
        unknown.append(FieldViolation("streams", f"has more than {_MAX_STREAMS} entries", "max_items"))
    if unknown:
        raise invalid_fields(unknown)
    return frozenset(_STREAMS[number] for number in numbers) or frozenset(Stream)  # type: ignore[index]


def sanitization(found: Sequence[OutputFinding]) -> sandbox_pb2.Sanitization | None:
    """What was found in output and done about it; None for nothing."""
    if not found:
        return None
    return sandbox_pb2.Sanitization(
        issues_found=min(sum(one.count for one in found), _MOST),
        actions_taken=actions_taken(found),
        findings=[
            sandbox_pb2.Finding(
                pattern=one.pattern,
                action=_ACTIONS[one.action],
                location=one.stream.value,
                count=one.count,
            )
            for one in found
        ],
    )


def gap(stream: Stream, offset: int, length: int) -> containers_pb2.OutputGap:
    """Output that is no longer there."""
    return containers_pb2.OutputGap(stream=TO_STREAM[stream], offset=offset, length=length)


def begin(request: containers_pb2.ContainersLogsRequest) -> Begin:
    """Where a request for output wants to begin. Raises INVALID_FIELD."""
    match request.WhichOneof("begin"):
        case "tail_lines":
            return TailLines(request.tail_lines)
        case "since":
            if not _is_timestamp(request.since):
                raise invalid_field("since", "is no time", "timestamp")
            return Since(max(request.since.ToNanoseconds(), 0))
        case "offsets":
            return Offsets(request.offsets.stdout, request.offsets.stderr)
        case _:
            return Oldest()


def _is_timestamp(time: Timestamp) -> bool:
    """Whether it is one that Timestamp's own rules allow: the years 1 to 9999."""
    return _FIRST_SECOND <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < 10**9


def log_event(piece: Chunk | Gap) -> containers_pb2.ContainersLogsResponse:
    """A piece of a container's output."""
    if isinstance(piece, Gap):
        return containers_pb2.ContainersLogsResponse(gap=gap(piece.stream, piece.offset, piece.length))
    chunk = containers_pb2.LogChunk(stream=TO_STREAM[piece.stream], data=piece.data, offset=piece.offset)
    chunk.time.FromNanoseconds(piece.time_ns)
    return containers_pb2.ContainersLogsResponse(chunk=chunk)


def truncation(stream: Stream, kept_bytes: int) -> sandbox_pb2.Truncation:
    """That a stream was cut."""
    return sandbox_pb2.Truncation(stream=TO_STREAM[stream], kept_bytes=kept_bytes)


def set_tail(response: containers_pb2.ContainersKillResponse, tail: Tail) -> None:
    """Put the end of what a container wrote into a reply."""
    response.stdout = tail.stdout
    response.stderr = tail.stderr
    response.truncations.extend(truncation(stream, kept) for stream, kept in tail.truncations)
    found = sanitization(tail.found)
    if found is not None:
        response.sanitization.CopyFrom(found)


def stats(usage: Usage) -> containers_pb2.ContainersStatsResponse:
    """What a container uses."""
    sample, egress = usage.sample, usage.egress
    message = containers_pb2.ContainersStatsResponse(
        memory_bytes=sample.memory_bytes,
        memory_limit_bytes=sample.memory_limit_bytes,
        cpu_time_us=sample.cpu_ns // 1000,
        cpu_millis=usage.cpu_millis,
        pids=sample.pids,
        pids_limit=sample.pids_limit,
        block_read_bytes=sample.block_read_bytes,
        block_write_bytes=sample.block_write_bytes,
        egress_allowed=egress.allowed,
        egress_denied=egress.denied,
        egress_sent_bytes=egress.sent_bytes,
        egress_received_bytes=egress.received_bytes,
    )
    message.time.FromNanoseconds(sample.time_ns)
    return message
