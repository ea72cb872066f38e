"""Everything that containers take, from a server's settings: one context that has all of it running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.children.files.folder import KIND, KIND_OBJECT
from clawbox.children.launcher import Launcher
from clawbox.containers.docker import DockerBackend
from clawbox.containers.execs import Execs
from clawbox.containers.files import ContainerFiles
from clawbox.containers.host.folders import StateFolder
from clawbox.containers.host.workspaces import Workspaces
from clawbox.containers.manager import ContainerManager
from clawbox.containers.mounts import MountError
from clawbox.containers.output.capture import OutputCapture
from clawbox.containers.registry import Registry
from clawbox.containers.spec import EngineTerms
from clawbox.containers.terms import Surroundings
from clawbox.containers.wanted import offer_of
from clawbox.egress.keeper.bootstrap import IDENTITY_FILE
from clawbox.egress.setup import egress_setup, sandbox_limits
from clawbox.egress.tls.upstream import private_authorities, system_authorities
from clawbox.errors import ClawboxError
from clawbox.network_rules import ShapeAction
from clawbox.store import Store, state_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from clawbox.audit import Audit
    from clawbox.children.uids import UidRange
    from clawbox.config import Config
    from clawbox.containers.backend import ContainerBackend
    from clawbox.containers.terms import WaysOut
    from clawbox.sandboxes import Sandboxes
    from clawbox.store import RequestIds

OPEN_FILES: Final = 4096
SETTLE_SECONDS: Final = 30.0
"""How long a server that starts waits for the containers that an earlier one left."""


class ContainersUnavailableError(Exception):
    """This server can serve no containers; the text says why."""


@dataclass(frozen=True, slots=True)
class ContainerService:
    """What serves containers."""

    manager: ContainerManager
    execs: Execs
    output: OutputCapture
    backend: ContainerBackend
    files: ContainerFiles
    request_ids: RequestIds
    store: Store


@contextlib.asynccontextmanager
async def container_service(
    config: Config,
    folder: Path,
    *,
    ways_out: WaysOut,
    uids: UidRange,
    audit: Audit,
    sandboxes: Sandboxes,
) -> AsyncIterator[ContainerService]:
    """Containers, for as long as this is entered; ``folder`` is that of the server's state.

    The engine may be away. Raises :class:`ContainersUnavailableError` for settings and folders with which
    there can be none.
    """
    settings = config.containers
    try:
        offer = offer_of(config)
        backend = DockerBackend(settings.docker_url)
        folders = StateFolder(folder / "containers")
        await asyncio.to_thread(folders.open)
        store = Store(state_url(config.state, folder))
        installation = await _installation(folder / "containers.installation", ways_out)
        upstream_ca = egress_setup(config).upstream_ca
    except (ValueError, MountError, OSError, ClawboxError) as error:
        raise ContainersUnavailableError(str(error)) from error
    workspaces = Workspaces(
        settings.workspace_root, settings.workspace_max_bytes, max_kept=settings.max_workspaces
    )
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(backend)
        try:
            await stack.enter_async_context(store)
            await stack.enter_async_context(workspaces)
        except (MountError, OSError, ClawboxError) as error:
            raise ContainersUnavailableError(str(error)) from error
        output = await stack.enter_async_context(
            OutputCapture(backend, folder / "output", shapes=settings.redact_shapes)
        )
        execs = await stack.enter_async_context(
            Execs(backend, taken=_uids(config), shapes=settings.redact_shapes)
        )
        launcher = await stack.enter_async_context(Launcher({KIND: KIND_OBJECT}, None, at_once=False))
        around = Surroundings(
            backend=backend,
            registry=Registry(store.containers),
            folders=folders,
            workspaces=workspaces,
            ways_out=ways_out,
            uids=uids,
            companions=(execs, output),
            installation=installation,
            machine=platform.machine(),
            engine=EngineTerms(
                runtime=settings.runtime,
                open_files=min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
                direct_network=settings.direct_network,
            ),
            limits=sandbox_limits(config.egress, config.proxy),
            on_shape=ShapeAction(config.egress.on_shape),
            authorities=(*system_authorities(), *private_authorities(upstream_ca)),
            retention_ms=settings.retention_ms,
            max_finished=settings.max_finished,
        )
        manager = await stack.enter_async_context(
            ContainerManager(
                around,
                offer,
                store.containers,
                max_containers=settings.max_containers,
                sandboxes=sandboxes,
                pull_policy=settings.pull_policy,
                audit=audit,
                expected=bool(settings.docker_url or os.environ.get("DOCKER_HOST")),
                stop_at_end=config.server.on_shutdown == "stop",
            )
        )
        await manager.monitor.first_look(SETTLE_SECONDS)
        yield ContainerService(
            manager, execs, output, backend, ContainerFiles(launcher), store.request_ids, store
        )


async def _installation(cache: Path, ways_out: WaysOut) -> str:
    """Who this installation is: derived by the keeper once, for an idle server needs none.

    Anew where the identity key was put there later: with another key it is another installation.
    """
    with contextlib.suppress(OSError):
        key = await asyncio.to_thread((cache.parent / IDENTITY_FILE).stat)
        written = await asyncio.to_thread(cache.stat)
        found = await asyncio.to_thread(cache.read_text, "ascii")
        if key.st_ctime_ns <= written.st_mtime_ns and re.fullmatch("[0-9a-f]{32}", found):
            return found
    found = await ways_out.installation()
    await asyncio.to_thread(cache.write_text, found, "ascii")
    return found


def _uids(config: Config) -> range:
    """Every uid that a sandbox may get."""
    first = config.children.uid_first
    return range(first, first + config.children.uid_count)
