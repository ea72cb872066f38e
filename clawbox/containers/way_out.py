"""One container's way out: its sidecar, what its programs are told of it, and where they find it."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.containers.gate import FOLDER
from clawbox.containers.host.folders import SOCKET
from clawbox.containers.host.namespaces import (
    PROXY_PORT,
    NamespaceDeniedError,
    PortTakenError,
    listen_inside,
)
from clawbox.containers.narrowing import Isolation
from clawbox.containers.record import EgressState
from clawbox.egress.environment import proxy_url, sandbox_environment, sandbox_files
from clawbox.egress.messages import Grant
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from clawbox.containers.entry import Holdings
    from clawbox.containers.labels import Identity
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.terms import Surroundings
    from clawbox.egress.sandbox_door import SandboxDoor

TOKEN_BYTES: Final = 32


def variables(identity: Identity, token: str) -> dict[str, str]:
    """What a container's programs are told of its way out; nothing where they do not use it."""
    if identity.grant.isolation is Isolation.DIRECT:
        return {"CLAWBOX_CONTAINER_ID": identity.container_id}
    return sandbox_environment(
        folder=FOLDER,
        token=token,
        socket=f"{FOLDER}/{SOCKET}",
        proxy=proxy_url("127.0.0.1", PROXY_PORT),
        sandbox=identity.container_id,
    )


def digest(token: str) -> str:
    """What is kept of a token: its SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


async def open_door(identity: Identity, held: Holdings, around: Surroundings) -> SandboxDoor:
    """Start a container's sidecar, which also cleans its output. Raises SANDBOX_UNAVAILABLE."""
    grant = Grant(
        sandbox=identity.container_id,
        owner=identity.owner,
        rules=identity.grant.network.rules,
        credentials=tuple(sorted(identity.grant.credentials)),
        on_shape=around.on_shape,
        limits=msgspec.structs.replace(around.limits, max_concurrent=identity.grant.network.max_concurrent),
    )
    return await held.enter("the sidecar", around.ways_out.sandbox(grant))


async def open_way_out(
    identity: Identity, quarters: Quarters, held: Holdings, around: Surroundings
) -> SandboxDoor:
    """Start a container's sidecar, with its Unix socket and the files with its authorities.

    Raises SANDBOX_UNAVAILABLE.
    """
    door = await open_door(identity, held, around)
    if identity.grant.isolation is Isolation.DIRECT:
        return door
    files = await asyncio.to_thread(
        sandbox_files, folder=FOLDER, ca_pem=door.ca_pem, authorities=around.authorities
    )
    await asyncio.to_thread(quarters.folder.write, files)
    door.admit(bytes.fromhex(identity.token_sha256))
    # Until the container runs nobody is in it.
    door.listen_unix(
        quarters.folder.socket, lambda pid: quarters.cgroup is not None and quarters.cgroup.holds(pid)
    )
    return door


async def listen(identity: Identity, quarters: Quarters) -> tuple[EgressState, str]:
    """Have the sidecar listen inside a container that runs, too; which listeners serve it then, and why.

    Raises SANDBOX_UNAVAILABLE when that cannot be, unless a program inside is why.
    """
    if identity.grant.isolation is Isolation.DIRECT:
        return EgressState.DIRECT, "it is on the engine's network, past the sidecar"
    door = quarters.door
    assert door is not None
    try:
        listener = await listen_inside(quarters.pid, quarters.pidfd)
    except PortTakenError:
        return EgressState.PORT_TAKEN, f"a program inside has taken port {PROXY_PORT}"
    except NamespaceDeniedError as error:
        raise ClawboxError(
            Reason.SANDBOX_UNAVAILABLE,
            "no listener can be opened inside the container: {why}",
            why=error,
        ) from error
    door.listen_namespace(listener)
    return EgressState.READY, ""
