"""Containers, wire and domain: requests become values, values become messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clawbox_client.v1 import capabilities_pb2, containers_pb2

from clawbox.containers.calls import ContainerFilter, SpawnCall, WorkspaceCall
from clawbox.containers.environment import check_environment
from clawbox.containers.host import workspace_folders
from clawbox.containers.labels import check_labels
from clawbox.containers.record import EgressState
from clawbox.containers.spec import engine_name
from clawbox.containers.states import State
from clawbox.errors import FieldViolation, invalid_field, invalid_fields
from clawbox.rpc.convert_capabilities import container_request, grant_message, policy, rule_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from clawbox.config import ImageTemplate
    from clawbox.containers.record import Container

MAX_STATES: Final = 64
MAX_GRACE_MS: Final = 600_000
PART_CONTAINERS: Final = 100
"""Most containers in one message of a snapshot."""
PART_BYTES: Final = 2 << 20
"""After which such a message, or a page, takes no more containers: each may have 128 KiB of arguments."""

_STATES: Final = {
    containers_pb2.ContainerState.Value(f"CONTAINER_STATE_{state.name}"): state for state in State
}
_TO_STATE: Final = {state: number for number, state in _STATES.items()}
_EGRESS: Final = {
    EgressState.READY: containers_pb2.EGRESS_STATE_READY,
    EgressState.SOCKET_ONLY: containers_pb2.EGRESS_STATE_SOCKET_ONLY,
    EgressState.PORT_TAKEN: containers_pb2.EGRESS_STATE_PROXY_PORT_TAKEN,
    EgressState.RESTARTING: containers_pb2.EGRESS_STATE_RESTARTING,
    EgressState.NONE: containers_pb2.EGRESS_STATE_NONE,
    EgressState.DIRECT: containers_pb2.EGRESS_STATE_DIRECT,
}


# Requests


def container_id(text: str, *, field: str = "container_id") -> str:
    """The id of a container, which a request must have. Raises INVALID_FIELD."""
    if not text:
        raise invalid_field(field, "must be set", "required")
    return text


def spawn_call(request: containers_pb2.SpawnRequest, request_id: str, *, any_host: bool) -> SpawnCall:
    """What a Spawn asks for. Raises INVALID_FIELD for what cannot even be said to the domain."""
    source = request.WhichOneof("source")
    for name in ("image", "template"):
        if source == name and not getattr(request, name):
            raise invalid_field(name, "is empty; leave it out for the default", "required")
    # Before they are copied: a request has room for far more of them than any container may have.
    check_environment(request.env)
    check_labels(request.labels)
    return SpawnCall(
        task=request.task,
        request_id=request_id,
        image=request.image if source == "image" else None,
        template=request.template if source == "template" else None,
        command=tuple(request.command),
        hold=request.hold,
        requested=container_request(request, any_host=any_host),
        env=dict(request.env),
        workspace=_workspace_call(request.workspace),
        labels=dict(request.labels),
    )


def _workspace_call(spec: containers_pb2.WorkspaceSpec) -> WorkspaceCall:
    if spec.workspace_id:
        workspace_folders.check_id(spec.workspace_id)
    return WorkspaceCall(
        workspace_id=spec.workspace_id,
        read_only=spec.read_only,
        delete_on_removal=spec.delete_on_removal if spec.HasField("delete_on_removal") else None,
    )


def container_filter(message: containers_pb2.ContainerFilter) -> ContainerFilter:
    """Which containers are meant. Raises INVALID_FIELD."""
    if len(message.states) > MAX_STATES:
        raise invalid_field("filter.states", f"has more than {MAX_STATES} states", "max_items")
    unknown = [
        FieldViolation(f"filter.states[{index}]", f"{number} is no state", "enum")
        for index, number in enumerate(message.states)
        if number not in _STATES
    ]
    if unknown:
        raise invalid_fields(unknown)
    check_labels(message.labels, at="filter.labels")
    return ContainerFilter(
        states=frozenset(_STATES[number] for number in message.states),
        include_finished=message.include_finished,
        labels=dict(message.labels),
        template=message.template,
        owner=message.owner,
        request_id=message.request_id,
        agent_id=message.agent_id,
    )


def grace_ms(request: containers_pb2.ContainersStopRequest) -> int | None:
    """Milliseconds between the stop signal and SIGKILL; None: the default. Raises INVALID_FIELD."""
    if not request.HasField("grace_ms"):
        return None
    if request.grace_ms > MAX_GRACE_MS:
        raise invalid_field("grace_ms", f"must be at most {MAX_GRACE_MS}", "maximum")
    return request.grace_ms


# Containers


def container(record: Container) -> containers_pb2.Container:
    """A container, as callers see it."""
    identity, status = record.identity, record.status
    message = containers_pb2.Container(
        container_id=record.container_id,
        name=engine_name(record.container_id),
        owner=record.owner,
        agent_id=identity.agent_id,
        task=identity.task,
        template=identity.template,
        image=identity.image,
        image_id=identity.image_id,
        image_digest=identity.image_digest,
        command=record.command,
        policy=policy(identity.grant.isolation),
        state=_TO_STATE[status.state],
        state_reason=status.reason,
        oom_killed=status.oom_killed,
        grant=grant_message(identity.grant),
        env_names=sorted(identity.env_names),
        workspace=containers_pb2.Workspace(
            workspace_id=identity.workspace_id,
            read_only=identity.workspace_read_only,
            delete_on_removal=identity.workspace_goes,
        ),
        labels=identity.labels,
        runtime=record.runtime,
        egress=containers_pb2.EgressStatus(state=_EGRESS[record.egress], detail=record.egress_detail),
        request_id=identity.request_id,
    )
    if status.exit_code is not None:
        message.exit_code = status.exit_code
    if record.pull is not None and status.state is State.CREATING:
        message.pull.received_bytes = record.pull.received_bytes
        message.pull.total_bytes = record.pull.total_bytes
        message.pull.detail = record.pull.detail
    message.create_time.FromMilliseconds(identity.created_ms)
    _set_time(message.start_time, record.started_ms)
    _set_time(message.finish_time, record.finished_ms)
    _set_time(message.expire_time, record.expires_ms)
    _set_time(message.purge_time, record.purge_ms)
    return message


def _set_time(field: Timestamp, milliseconds: int | None) -> None:
    if milliseconds is not None:
        field.FromMilliseconds(milliseconds)


def parts(records: Sequence[Container]) -> Iterator[list[containers_pb2.Container]]:
    """Containers as lists of messages, each small enough for one message; none for no containers."""
    part: list[containers_pb2.Container] = []
    size = 0
    for record in records:
        message = container(record)
        if part and (len(part) == PART_CONTAINERS or size + message.ByteSize() > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(message)
        size += message.ByteSize()
    if part:
        yield part


# Templates


def template(name: str, value: ImageTemplate) -> containers_pb2.Template:
    """A template, as the operator configured it."""
    resources = value.resources.model_dump(exclude_none=True)
    message = containers_pb2.Template(
        name=name,
        description=value.description,
        image=value.image,
        command=value.command,
        capabilities=capabilities_pb2.Capabilities(
            network=capabilities_pb2.NetworkCapabilities(
                rules=[rule_message(rule) for rule in value.network_allowlist]
            ),
            credentials=sorted(value.credentials),
            resources=capabilities_pb2.Resources(**resources),
        ),
        user=value.user,
        working_dir=value.working_dir,
        home=value.home,
    )
    if value.max_lifetime_ms is not None:
        message.max_lifetime_ms = value.max_lifetime_ms
    return message
