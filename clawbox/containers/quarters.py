"""What control holds of one container while there is something of it: folders, its way out, its processes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from clawbox.containers.users import User

if TYPE_CHECKING:
    from collections.abc import Collection

    from clawbox.containers.host.cgroups import Cgroup
    from clawbox.containers.host.folders import ContainerFolder
    from clawbox.containers.host.workspaces import Workspace
    from clawbox.containers.labels import Identity
    from clawbox.containers.record import Container
    from clawbox.egress.sandbox_door import SandboxDoor


@dataclass(eq=False, slots=True)
class Quarters:
    """One container's own."""

    container_id: str
    engine_id: str
    user: User
    folder: ContainerFolder
    workspace: Workspace
    door: SandboxDoor | None
    """Its sidecar; None: this server has no way out, or what there was of the container is over."""
    max_output_bytes: int
    pid: int = 0
    """Of its first process; 0: it does not run."""
    pidfd: int = -1
    """Of the same process, so that no other is ever meant by its number."""
    cgroup: Cgroup | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its program has ended."""


def quarters_of(
    identity: Identity, engine_id: str, folder: ContainerFolder, workspace: Workspace
) -> Quarters:
    """Those of a container that does not run, or whose processes are yet to be found."""
    return Quarters(
        container_id=identity.container_id,
        engine_id=engine_id,
        user=User(identity.uid, identity.gid),
        folder=folder,
        workspace=workspace,
        door=None,
        max_output_bytes=identity.grant.limits.max_output_bytes,
    )


class Companion(Protocol):
    """What goes along with containers: the capture of their output, the processes inside them."""

    async def began(self, container: Container, quarters: Quarters, *, adopted: bool) -> None:
        """It is about to run (its gate is still closed), or ``adopted``: it ran before this server did."""

    async def ended(self, container: Container, quarters: Quarters) -> None:
        """Its program has ended; what it left is to be finished before callers are told."""

    async def forgotten(self, container_id: str) -> None:
        """It is no more; nor is anything to be left of it."""

    async def abandoned(self, known: Collection[str]) -> None:
        """There are no containers but those with these ids: nothing is to be left of others."""
