"""What a server says of itself, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf import json_format

from clawbox_client.results import Json, whole_numbers, word
from clawbox_client.tools import timestamp
from clawbox_client.v1 import system_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta


class Health(enum.Enum):
    """The answer of the gRPC health protocol for one service, or for all of them."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3

    @classmethod
    def _missing_(cls, value: object) -> Health:  # noqa: ARG003 - the signature is enum's
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class Component:
    """A part of the server; ``state`` is ok, degraded, down or disabled."""

    name: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Enforcement:
    """A protection, whether this machine can give it, and what stands in for it when not."""

    name: str
    in_force: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Status:
    """How a server does; ``status`` is ok or degraded."""

    status: str
    version: str
    start_time: datetime
    uptime: timedelta
    components: tuple[Component, ...]
    active_containers: int
    running_executions: int
    queued_executions: int
    enforcements: tuple[Enforcement, ...]


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One entry of the audit log; the meaning of each field is in system.proto."""

    sequence: int
    time: datetime
    kind: str
    principal: str
    request_id: str
    decision: str
    fields: Mapping[str, Json]


def status(message: system_pb2.GetStatusResponse) -> Status:
    """Reads the reply of GetStatus."""
    return Status(
        status=message.status,
        version=message.version,
        start_time=timestamp(message.start_time),
        uptime=message.uptime.ToTimedelta(),
        components=tuple(
            Component(one.name, word(system_pb2.ComponentState.DESCRIPTOR, one.state), one.detail)
            for one in message.components
        ),
        active_containers=message.active_containers,
        running_executions=message.running_executions,
        queued_executions=message.queued_executions,
        enforcements=tuple(Enforcement(one.name, one.in_force, one.detail) for one in message.enforcements),
    )


def audit_row(message: system_pb2.AuditRow) -> AuditRow:
    """Reads one row."""
    return AuditRow(
        sequence=message.sequence,
        time=timestamp(message.time),
        kind=message.kind,
        principal=message.principal,
        request_id=message.request_id,
        decision=message.decision,
        fields={
            key: whole_numbers(value) for key, value in json_format.MessageToDict(message.fields).items()
        },
    )
