"""What is asked of the Containers service: the messages of its requests, and how long a call may take."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from clawbox_client.requests import refuse_unknown
from clawbox_client.tools import network_rule
from clawbox_client.v1 import capabilities_pb2, containers_pb2, sandbox_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from clawbox_client.containers import ContainerState

SPAWN_DEADLINE = 300.0
"""Seconds that a spawn may take, because an image may have to be pulled first."""

GRACE_SECONDS = 10.0
"""What a server leaves a program between the stop signal and SIGKILL unless it is told otherwise."""

ALLOWANCE = 30.0
"""Seconds that a deadline leaves beyond what the work itself may take."""

ContainerPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
"""An absolute path in a container. A string stands for the bytes that :func:`os.fsencode` makes of it."""


class SpawnOptions(TypedDict, total=False):
    """What a container takes besides its task and source. Left out means the template's or server's own."""

    command: Sequence[str]
    """The whole argument vector, in place of the image's entrypoint and command."""
    hold: bool
    """Keeps the container alive with a program that does nothing, for ``exec`` and ``run_command``."""
    direct: bool
    """On the operator's Docker network, past the sidecar, where the operator allows it."""
    network: Sequence[str | capabilities_pb2.NetworkRule] | None
    """Where it may connect: hosts (``api.example``, ``*.example``, ``api.example:8443``) or rules; ``[]`` is
    no network."""
    max_concurrent: int
    """Outgoing requests at once; 0 is the template's."""
    credentials: Sequence[str]
    """Names of credentials that may be attached to its requests. Left out: none."""
    timeout_ms: int | None
    """Most time from its start."""
    max_lifetime_ms: int | None
    """Most time from its creation."""
    memory_mb: int | None
    cpu_millis: int | None
    """Thousandths of a core."""
    cpu_shares: int | None
    pids: int | None
    max_output_bytes: int | None
    env: Mapping[str, str]
    workspace_id: str
    """The caller's own name of a workspace that is kept; empty is a fresh one."""
    read_only_workspace: bool
    delete_workspace: bool | None
    """Whether the workspace goes with the container. None: a fresh one does, a kept one does not."""
    labels: Mapping[str, str]
    request_id: str
    """Makes a repeated call safe for 24 hours."""
    deadline: float | None
    """Seconds that the whole call may take; None is :data:`SPAWN_DEADLINE`."""


class FilterOptions(TypedDict, total=False):
    """Which containers are meant. What is set must all match; nothing is the active ones."""

    states: Sequence[ContainerState]
    include_finished: bool
    labels: Mapping[str, str]
    template: str
    owner: str
    request_id: str
    agent_id: str


class ProcessOptions(TypedDict, total=False):
    """What a process inside a container takes besides its command."""

    env: Mapping[str, str]
    working_dir: str
    """Empty: ``/workspace``, or what the template says."""
    user: str
    """``UID`` or ``UID:GID`` in decimal; empty is the container's own."""
    timeout_ms: int | None
    """Most time from its start; then it is killed with all its descendants."""


def spawn(task: str, image: str, template: str, options: SpawnOptions) -> containers_pb2.SpawnRequest:
    """A container to create. Raises ValueError (two sources, a bad network rule) and TypeError."""
    if image and template:
        raise ValueError("give image or template, not both")
    refuse_unknown(options, SpawnOptions)
    command = options.get("command", ())
    _refuse_string(command, "command")
    workspace_id, delete = options.get("workspace_id", ""), options.get("delete_workspace")
    read_only = options.get("read_only_workspace", False)
    wants_workspace = bool(workspace_id) or read_only or delete is not None
    direct = options.get("direct", False)
    source = {name: value for name, value in (("image", image), ("template", template)) if value}
    return containers_pb2.SpawnRequest(
        task=task,
        **source,
        command=command,
        hold=options.get("hold", False),
        policy=capabilities_pb2.EXECUTION_POLICY_CONTAINER_DIRECT
        if direct
        else capabilities_pb2.EXECUTION_POLICY_UNSPECIFIED,
        capabilities=_capabilities(options),
        env=options.get("env", {}),
        workspace=containers_pb2.WorkspaceSpec(
            workspace_id=workspace_id, read_only=read_only, delete_on_removal=delete
        )
        if wants_workspace
        else None,
        max_lifetime_ms=options.get("max_lifetime_ms"),
        labels=options.get("labels", {}),
        request_id=options.get("request_id", ""),
    )


def _capabilities(options: SpawnOptions) -> capabilities_pb2.Capabilities | None:
    network, credentials = options.get("network"), options.get("credentials", ())
    max_concurrent = options.get("max_concurrent", 0)
    _refuse_string(network, "network")
    _refuse_string(credentials, "credentials")
    if max_concurrent and network is None:
        raise ValueError("max_concurrent goes with network")
    resources = capabilities_pb2.Resources(
        timeout_ms=options.get("timeout_ms"),
        memory_mb=options.get("memory_mb"),
        max_output_bytes=options.get("max_output_bytes"),
        cpu_shares=options.get("cpu_shares"),
        cpu_millis=options.get("cpu_millis"),
        pids=options.get("pids"),
    )
    limited = bool(resources.ListFields())
    if network is None and not credentials and not limited:
        return None
    return capabilities_pb2.Capabilities(
        network=None
        if network is None
        else capabilities_pb2.NetworkCapabilities(
            rules=[network_rule(rule) for rule in network], max_concurrent=max_concurrent
        ),
        credentials=credentials,
        resources=resources if limited else None,
    )


def _refuse_string(value: Iterable[object] | None, name: str) -> None:
    if isinstance(value, str):
        raise TypeError(f"{name} is a list, not one string")


def container_filter(options: FilterOptions) -> containers_pb2.ContainerFilter:
    """Which containers are meant. Raises TypeError for an unknown option."""
    refuse_unknown(options, FilterOptions)
    return containers_pb2.ContainerFilter(
        # The number of a state of the enum here is its number on the wire.
        states=[containers_pb2.ContainerState.ValueType(state.value) for state in options.get("states", ())],
        include_finished=options.get("include_finished", False),
        labels=options.get("labels", {}),
        template=options.get("template", ""),
        owner=options.get("owner", ""),
        request_id=options.get("request_id", ""),
        agent_id=options.get("agent_id", ""),
    )


def exec_start(
    container_id: str,
    command: Sequence[str],
    options: ProcessOptions,
    *,
    size: tuple[int, int] | None,
    tty: bool,
    exec_id: str,
    keep_running: bool,
) -> containers_pb2.ExecStart:
    """A process to start; ``size`` is rows and columns. Raises TypeError for an unknown option."""
    refuse_unknown(options, ProcessOptions)
    _refuse_string(command, "command")
    return containers_pb2.ExecStart(
        container_id=container_id,
        command=command,
        env=options.get("env", {}),
        working_dir=options.get("working_dir", ""),
        user=options.get("user", ""),
        tty=tty,
        size=None if size is None else containers_pb2.TerminalSize(rows=size[0], columns=size[1]),
        timeout_ms=options.get("timeout_ms"),
        exec_id=exec_id,
        keep_running=keep_running,
    )


def run_command(
    container_id: str,
    command: Sequence[str],
    stdin: bytes,
    max_output_bytes: int | None,
    options: ProcessOptions,
) -> containers_pb2.RunCommandRequest:
    """A process to run to its end. Raises TypeError for an unknown option."""
    refuse_unknown(options, ProcessOptions)
    _refuse_string(command, "command")
    return containers_pb2.RunCommandRequest(
        container_id=container_id,
        command=command,
        env=options.get("env", {}),
        working_dir=options.get("working_dir", ""),
        user=options.get("user", ""),
        stdin=stdin,
        timeout_ms=options.get("timeout_ms"),
        max_output_bytes=max_output_bytes,
    )


def command_deadline(deadline: float | None, options: ProcessOptions, default: float | None) -> float | None:
    """Seconds for RunCommand: the caller's; else the client's, or more where the process may take more."""
    if deadline is not None or default is None:
        return deadline
    timeout_ms = options.get("timeout_ms")
    return default if timeout_ms is None else max(default, timeout_ms / 1000 + ALLOWANCE)


def stop_deadline(deadline: float | None, grace_ms: int | None, default: float | None) -> float | None:
    """Seconds for Stop: the caller's; else the client's, or more where the grace period is longer."""
    if deadline is not None or default is None:
        return deadline
    grace = GRACE_SECONDS if grace_ms is None else grace_ms / 1000
    return max(default, grace + ALLOWANCE)


def logs(
    container_id: str,
    streams: Sequence[str],
    *,
    tail: int | None,
    since: datetime | None,
    offsets: tuple[int, int] | None,
    follow: bool,
) -> containers_pb2.ContainersLogsRequest:
    """Which output to stream. Raises ValueError for more than one beginning, and for a stream of no name."""
    if sum(one is not None for one in (tail, since, offsets)) > 1:
        raise ValueError("give one of tail, since and offsets")
    _refuse_string(streams, "streams")
    request = containers_pb2.ContainersLogsRequest(
        container_id=container_id, streams=[_stream(name) for name in streams], follow=follow
    )
    if tail is not None:
        request.tail_lines = tail
    if since is not None:
        request.since.FromDatetime(since)
    if offsets is not None:
        request.offsets.CopyFrom(containers_pb2.LogOffsets(stdout=offsets[0], stderr=offsets[1]))
    return request


def _stream(name: str) -> sandbox_pb2.Stream.ValueType:
    if name == "stdout":
        return sandbox_pb2.STREAM_STDOUT
    if name == "stderr":
        return sandbox_pb2.STREAM_STDERR
    raise ValueError(f"{name!r} is neither stdout nor stderr")


def path_bytes(path: ContainerPath) -> bytes:
    """The bytes of a path."""
    return os.fsencode(path)
