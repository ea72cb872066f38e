"""What all containers of one server share: where things are, and what its machine and engine give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from clawbox.children.uids import UidRange
    from clawbox.containers.backend import ContainerBackend
    from clawbox.containers.host.folders import StateFolder
    from clawbox.containers.host.workspaces import Workspaces
    from clawbox.containers.quarters import Companion
    from clawbox.containers.registry import Registry
    from clawbox.containers.spec import EngineTerms
    from clawbox.egress.messages import Grant, Limits
    from clawbox.egress.sandbox_door import SandboxDoor
    from clawbox.network_rules import ShapeAction


class WaysOut(Protocol):
    """What gives sandboxes their ways out: :class:`clawbox.egress.supervisor.EgressSupervisor`."""

    def sandbox(self, grant: Grant) -> AbstractAsyncContextManager[SandboxDoor]:
        """A way out with this grant. Entering raises SANDBOX_UNAVAILABLE or SHUTTING_DOWN."""

    async def mac(self, text: str) -> bytes:
        """The MAC of a container's labels. Raises SANDBOX_UNAVAILABLE."""

    async def installation(self) -> str:
        """Who this installation is, for as long as it has its identity key. Raises SANDBOX_UNAVAILABLE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What everything that works on containers needs."""

    backend: ContainerBackend
    registry: Registry
    folders: StateFolder
    workspaces: Workspaces
    ways_out: WaysOut
    uids: UidRange
    companions: Sequence[Companion]
    installation: str
    """The label by which this server knows its own."""
    machine: str
    """As uname(2) names it."""
    engine: EngineTerms
    limits: Limits
    """Of each sidecar."""
    on_shape: ShapeAction
    authorities: tuple[bytes, ...]
    """What programs trust besides their sandbox's own authority: certificates, DER each."""
    retention_ms: int
    max_finished: int
    """Of each owner: so nobody's containers are forgotten because of somebody else's."""
