"""What callers ask of containers: values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clawbox.containers.narrowing import ContainerRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clawbox.containers.record import Container
    from clawbox.containers.states import State


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceCall:
    """Which folder a container gets."""

    workspace_id: str = ""
    """The caller's own name of a kept one; empty: a fresh one."""
    read_only: bool = False
    delete_on_removal: bool | None = None

    @property
    def stays(self) -> bool:
        """Whether it is to be there after its container; unless somebody said, one with a name is."""
        return bool(self.workspace_id) if self.delete_on_removal is None else not self.delete_on_removal


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnCall:
    """What one Spawn asks for, as received and not yet checked."""

    task: str
    request_id: str = ""
    image: str | None = None
    template: str | None = None
    command: tuple[str, ...] = ()
    hold: bool = False
    requested: ContainerRequest = field(default_factory=ContainerRequest)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    workspace: WorkspaceCall = field(default_factory=WorkspaceCall)
    labels: Mapping[str, str] = field(default_factory=dict)
    agent_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFilter:
    """Which containers are meant; what is set must all match."""

    states: frozenset[State] = frozenset()
    """Empty: the active ones, or all with ``include_finished``."""
    include_finished: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    owner: str = ""
    request_id: str = ""
    agent_id: str = ""

    def matches(self, container: Container) -> bool:
        """Whether it is one of them."""
        identity, state = container.identity, container.status.state
        return (
            (state in self.states if self.states else self.include_finished or state.is_active)
            and all(identity.labels.get(key) == value for key, value in self.labels.items())
            and self.template in {"", identity.template}
            and self.owner in {"", identity.owner}
            and self.request_id in {"", identity.request_id}
            and self.agent_id in {"", identity.agent_id}
        )


# What a watch tells


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A part of what is there when a watch begins."""

    containers: tuple[Container, ...]
    complete: bool
    revision: str = ""
    """With the last part."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A container is new, or changed."""

    container: Container
    revision: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A container was forgotten."""

    container_id: str
    revision: str


WatchEvent = Snapshot | Changed | Forgotten
