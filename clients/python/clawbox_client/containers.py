"""Containers as a server tells of them, as values; the meaning of each field is in containers.proto."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from clawbox_client.results import Finding, findings, truncated, word
from clawbox_client.tools import timestamp
from clawbox_client.v1 import capabilities_pb2, containers_pb2, sandbox_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp


class ContainerState(enum.Enum):
    """What a container does. CREATING, RUNNING and PAUSED are active, the others are final."""

    UNKNOWN = 0
    """This client is older than the server and does not know the word."""
    CREATING = 1
    RUNNING = 2
    PAUSED = 3
    COMPLETED = 4
    FAILED = 5
    TIMED_OUT = 6
    STOPPED = 7
    KILLED = 8
    LOST = 9

    @classmethod
    def _missing_(cls, value: object) -> ContainerState:  # noqa: ARG003 - the signature is enum's
        return cls.UNKNOWN

    @property
    def active(self) -> bool:
        """Whether it has not ended yet."""
        return self in {ContainerState.CREATING, ContainerState.RUNNING, ContainerState.PAUSED}


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that a container may connect to; no ports, methods or prefixes are all of them."""

    host: str
    ports: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    path_prefixes: tuple[str, ...] = ()
    tls_mode: str = "unknown"
    on_shape: str = "unknown"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use; None where nothing is said."""

    timeout_ms: int | None = None
    memory_mb: int | None = None
    max_output_bytes: int | None = None
    cpu_shares: int | None = None
    cpu_millis: int | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a container may reach and use; no rules, no network."""

    network: tuple[Rule, ...] = ()
    max_concurrent: int = 0
    credentials: tuple[str, ...] = ()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder that a container has as ``/workspace``."""

    workspace_id: str
    read_only: bool
    delete_on_removal: bool


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far the pull of an image has come."""

    received_bytes: int
    total_bytes: int
    detail: str


@dataclass(frozen=True, slots=True)
class Container:
    """A container."""

    container_id: str
    name: str
    owner: str
    agent_id: str
    task: str
    template: str
    image: str
    image_id: str
    image_digest: str
    """Of the image in its repository; empty for one that is in none."""
    command: tuple[str, ...]
    policy: str
    """``container`` or ``container_direct``."""
    state: ContainerState
    state_reason: str
    exit_code: int | None
    """As Docker reports it, so 128+n may be signal n; None until it has ended, and when nobody knows."""
    oom_killed: bool
    grant: Grant = field(repr=False)
    env_names: tuple[str, ...]
    workspace: Workspace
    labels: Mapping[str, str]
    runtime: str
    egress: str
    """``ready``, ``socket_only``, ``proxy_port_taken``, ``restarting``, ``none``, ``direct``, ``unknown``."""
    egress_detail: str
    pull: PullProgress | None
    request_id: str
    create_time: datetime | None
    start_time: datetime | None
    finish_time: datetime | None
    expire_time: datetime | None
    purge_time: datetime | None

    @property
    def active(self) -> bool:
        """Whether it has not ended yet."""
        return self.state.active


@dataclass(frozen=True, slots=True)
class ContainersSnapshot:
    """A part of what is there when a watch begins; what no part of a complete snapshot names is gone."""

    containers: tuple[Container, ...]
    complete: bool
    revision: str


@dataclass(frozen=True, slots=True)
class ContainerChanged:
    """A container that is new or has changed. ``revision`` is where a later watch may go on."""

    container: Container
    revision: str


@dataclass(frozen=True, slots=True)
class ContainerRemoved:
    """A container was forgotten."""

    container_id: str
    revision: str


ContainerEvent: TypeAlias = ContainersSnapshot | ContainerChanged | ContainerRemoved


@dataclass(frozen=True, slots=True)
class KillResult:
    """A container that was killed, and the end of what it had written."""

    container: Container
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    truncated: Mapping[str, int]
    """Which streams were cut to a limit, and how many bytes were kept."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a process inside a container ended, and the beginning of what it wrote."""

    exit_code: int | None
    """As Docker reports it, so 128+n may be signal n; None when it is not known."""
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    truncated: Mapping[str, int]
    timed_out: bool
    lost: bool
    reason: str
    duration_ms: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether it ended with 0."""
        return self.exit_code == 0 and not self.timed_out

    @property
    def stdout(self) -> str:
        """What it wrote to stdout."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What it wrote to stderr."""
        return self.stderr_bytes.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes that a container's program wrote to ``stdout`` or ``stderr``; a character may be cut in two."""

    stream: str
    data: bytes
    offset: int
    """How many redacted bytes of this stream came before these."""
    time: datetime | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Output that was written and is no longer kept."""

    stream: str
    offset: int
    length: int


LogEvent: TypeAlias = LogChunk | Gap


@dataclass(frozen=True, slots=True)
class ContainerStats:
    """What a container uses; units are in the names."""

    time: datetime | None
    memory_bytes: int
    memory_limit_bytes: int
    cpu_time_us: int
    cpu_millis: int
    pids: int
    pids_limit: int
    block_read_bytes: int
    block_write_bytes: int
    egress_allowed: int
    egress_denied: int
    egress_sent_bytes: int
    egress_received_bytes: int


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What a path names. Paths are bytes, because that is what Linux has."""

    path: bytes
    type: str
    """``regular``, ``directory``, ``symlink``, ``other`` or ``unknown``."""
    size_bytes: int
    mode: int
    modify_time: datetime | None
    link_target: bytes
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of container that the operator configured."""

    name: str
    description: str
    image: str
    command: tuple[str, ...]
    grant: Grant
    user: str
    max_lifetime_ms: int | None
    working_dir: str
    home: str


def container(message: containers_pb2.Container) -> Container:
    """Reads a Container message."""
    workspace, pull = message.workspace, message.pull
    return Container(
        container_id=message.container_id,
        name=message.name,
        owner=message.owner,
        agent_id=message.agent_id,
        task=message.task,
        template=message.template,
        image=message.image,
        image_id=message.image_id,
        image_digest=message.image_digest,
        command=tuple(message.command),
        policy=word(capabilities_pb2.ExecutionPolicy.DESCRIPTOR, message.policy),
        state=ContainerState(message.state),
        state_reason=message.state_reason,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        oom_killed=message.oom_killed,
        grant=grant(message.grant),
        env_names=tuple(message.env_names),
        workspace=Workspace(workspace.workspace_id, workspace.read_only, workspace.delete_on_removal),
        labels=dict(message.labels),
        runtime=message.runtime,
        egress=word(containers_pb2.EgressState.DESCRIPTOR, message.egress.state),
        egress_detail=message.egress.detail,
        pull=PullProgress(pull.received_bytes, pull.total_bytes, pull.detail)
        if message.HasField("pull")
        else None,
        request_id=message.request_id,
        create_time=_time(message.create_time),
        start_time=_time(message.start_time),
        finish_time=_time(message.finish_time),
        expire_time=_time(message.expire_time),
        purge_time=_time(message.purge_time),
    )


def grant(message: capabilities_pb2.Capabilities) -> Grant:
    """Reads what may be reached and used."""
    resources = message.resources
    return Grant(
        network=tuple(
            Rule(
                rule.host,
                tuple(rule.ports),
                tuple(rule.methods),
                tuple(rule.path_prefixes),
                word(capabilities_pb2.TlsMode.DESCRIPTOR, rule.tls_mode),
                word(capabilities_pb2.ShapeAction.DESCRIPTOR, rule.on_shape),
            )
            for rule in message.network.rules
        ),
        max_concurrent=message.network.max_concurrent,
        credentials=tuple(message.credentials),
        limits=Limits(
            timeout_ms=resources.timeout_ms if resources.HasField("timeout_ms") else None,
            memory_mb=resources.memory_mb if resources.HasField("memory_mb") else None,
            max_output_bytes=resources.max_output_bytes if resources.HasField("max_output_bytes") else None,
            cpu_shares=resources.cpu_shares if resources.HasField("cpu_shares") else None,
            cpu_millis=resources.cpu_millis if resources.HasField("cpu_millis") else None,
            pids=resources.pids if resources.HasField("pids") else None,
        ),
    )


def container_event(message: containers_pb2.ContainersWatchResponse) -> ContainerEvent | None:
    """Reads one message of Watch; None for a kind of event that this client does not know."""
    match message.WhichOneof("event"):
        case "snapshot":
            found = tuple(container(one) for one in message.snapshot.containers)
            return ContainersSnapshot(found, message.snapshot.complete, message.revision)
        case "changed":
            return ContainerChanged(container(message.changed), message.revision)
        case "removed":
            return ContainerRemoved(message.removed.container_id, message.revision)
        case _:
            return None


def kill_result(message: containers_pb2.ContainersKillResponse) -> KillResult:
    """Reads the reply of Kill."""
    return KillResult(
        container(message.container),
        message.stdout,
        message.stderr,
        truncated(message.truncations),
        findings(message.sanitization),
    )


def command_result(message: containers_pb2.RunCommandResponse) -> CommandResult:
    """Reads the reply of RunCommand."""
    return CommandResult(
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        stdout_bytes=message.stdout,
        stderr_bytes=message.stderr,
        truncated=truncated(message.truncations),
        timed_out=message.timed_out,
        lost=message.lost,
        reason=message.reason,
        duration_ms=message.duration_ms,
        findings=findings(message.sanitization),
    )


def log_event(message: containers_pb2.ContainersLogsResponse) -> LogEvent | None:
    """Reads one message of Logs; None for a kind of event that this client does not know."""
    match message.WhichOneof("event"):
        case "chunk":
            chunk = message.chunk
            stream = word(sandbox_pb2.Stream.DESCRIPTOR, chunk.stream)
            return LogChunk(stream, chunk.data, chunk.offset, _time(chunk.time))
        case "gap":
            return gap(message.gap)
        case _:
            return None


def gap(message: containers_pb2.OutputGap) -> Gap:
    """Reads what is missing."""
    return Gap(word(sandbox_pb2.Stream.DESCRIPTOR, message.stream), message.offset, message.length)


def stats(message: containers_pb2.ContainersStatsResponse) -> ContainerStats:
    """Reads one message of Stats."""
    return ContainerStats(
        time=_time(message.time),
        memory_bytes=message.memory_bytes,
        memory_limit_bytes=message.memory_limit_bytes,
        cpu_time_us=message.cpu_time_us,
        cpu_millis=message.cpu_millis,
        pids=message.pids,
        pids_limit=message.pids_limit,
        block_read_bytes=message.block_read_bytes,
        block_write_bytes=message.block_write_bytes,
        egress_allowed=message.egress_allowed,
        egress_denied=message.egress_denied,
        egress_sent_bytes=message.egress_sent_bytes,
        egress_received_bytes=message.egress_received_bytes,
    )


def file_info(message: containers_pb2.FileInfo) -> FileInfo:
    """Reads what a path names."""
    return FileInfo(
        path=message.path,
        type=word(containers_pb2.FileType.DESCRIPTOR, message.type),
        size_bytes=message.size_bytes,
        mode=message.mode,
        modify_time=_time(message.modify_time),
        link_target=message.link_target,
        uid=message.uid,
        gid=message.gid,
    )


def template(message: containers_pb2.Template) -> Template:
    """Reads a kind of container."""
    return Template(
        name=message.name,
        description=message.description,
        image=message.image,
        command=tuple(message.command),
        grant=grant(message.capabilities),
        user=message.user,
        max_lifetime_ms=message.max_lifetime_ms if message.HasField("max_lifetime_ms") else None,
        working_dir=message.working_dir,
        home=message.home,
    )


def _time(message: Timestamp) -> datetime | None:
    # An absent Timestamp reads as 1970: no container is from then.
    return timestamp(message) if message.seconds or message.nanos else None


def file_part(message: containers_pb2.ReadFileResponse) -> FileInfo | bytes | None:
    """Reads one message of ReadFile; None for a kind of part that this client does not know."""
    match message.WhichOneof("part"):
        case "info":
            return file_info(message.info)
        case "chunk":
            return message.chunk
        case _:
            return None
