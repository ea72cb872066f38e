"""A container as clawbox knows it: one value, replaced whenever something changes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clawbox.containers.labels import Identity
    from clawbox.containers.states import Status


class EgressState(enum.Enum):
    """Which listeners of its sidecar serve a container; the values are kept."""

    READY = "ready"
    SOCKET_ONLY = "socket_only"
    PORT_TAKEN = "port_taken"
    RESTARTING = "restarting"
    NONE = "none"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Pull:
    """How far the pull of its image has come."""

    received_bytes: int
    total_bytes: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """Everything that is told of a container. Times are milliseconds since 1970."""

    identity: Identity
    status: Status
    command: tuple[str, ...] = ()
    """What runs behind the gate."""
    working_dir: str = "/workspace"
    engine_id: str = ""
    runtime: str = ""
    egress: EgressState = EgressState.NONE
    egress_detail: str = ""
    pull: Pull | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    expires_ms: int | None = None
    """When a time limit will end it."""
    purge_ms: int | None = None
    """When it will be forgotten."""

    @property
    def container_id(self) -> str:
        """Its id."""
        return self.identity.container_id

    @property
    def owner(self) -> str:
        """The principal that made it."""
        return self.identity.owner

    @property
    def active(self) -> bool:
        """Whether it can still change."""
        return self.status.state.is_active
