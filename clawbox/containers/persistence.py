"""A container as it is kept: one row, whose document has everything. Pure."""

from __future__ import annotations

import dataclasses
from typing import Final

import msgspec

from clawbox.containers.labels import ForeignLabelsError, from_labels, to_labels
from clawbox.containers.record import Container, EgressState
from clawbox.containers.states import Ending, State, Status
from clawbox.store import ContainerRow

_VERSION: Final = 1


class RowError(Exception):
    """A row that this version cannot read; the text says why, and nothing of what is in it."""


class _Status(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    state: State
    reason: str
    exit_code: int | None
    oom_killed: bool
    ending: Ending | None
    outside_signal: int | None


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    labels: dict[str, str]
    """Who it is, as its labels in the engine say: one form for both."""
    status: _Status
    command: tuple[str, ...]
    working_dir: str
    engine_id: str
    runtime: str
    egress: EgressState
    egress_detail: str
    started_ms: int | None
    finished_ms: int | None
    expires_ms: int | None
    purge_ms: int | None


_decoder: Final = msgspec.json.Decoder(_Document)
_SAME: Final = (
    "command",
    "working_dir",
    "engine_id",
    "runtime",
    "egress",
    "egress_detail",
    "started_ms",
    "finished_ms",
    "expires_ms",
    "purge_ms",
)


def to_row(container: Container) -> ContainerRow:
    """What is kept of a container; the progress of a pull is not."""
    status = _Status(**{name: getattr(container.status, name) for name in _Status.__struct_fields__})
    document = _Document(
        version=_VERSION,
        labels=to_labels(container.identity),
        status=status,
        **{name: getattr(container, name) for name in _SAME},
    )
    return ContainerRow(
        container_id=container.container_id,
        owner=container.owner,
        state=container.status.state.value,
        created_ms=container.identity.created_ms,
        document=msgspec.json.encode(document),
    )


def from_row(row: ContainerRow) -> Container:
    """The container that was kept. Raises RowError."""
    try:
        document = _decoder.decode(row.document)
        identity = from_labels(document.labels)
    except (msgspec.MsgspecError, ForeignLabelsError, RecursionError) as error:
        raise RowError(f"the row cannot be read: {type(error).__name__}") from None
    if document.version != _VERSION or identity.container_id != row.container_id:
        raise RowError("the row is of another version, or of another container")
    status = Status(
        **{field.name: getattr(document.status, field.name) for field in dataclasses.fields(Status)}
    )
    return Container(identity=identity, status=status, **{name: getattr(document, name) for name in _SAME})
