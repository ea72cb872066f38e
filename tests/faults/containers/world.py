"""What a server with containers has at a moment, to be compared with what it had before a fault."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox_client import ContainerState

from tests.footprint import eventually, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox_client import Container, SyncClient

    from tests.containers_world import Leftovers
    from tests.engine import EngineApi
    from tests.live import LiveServer

_CGROUPS = Path("/sys/fs/cgroup")
_ENGINE_ID = re.compile("[0-9a-f]{64}")


class ControlGroups:
    """Control groups of an engine's containers, found where ``container``, which runs, has its own."""

    def __init__(self, engine: EngineApi, container: str) -> None:
        self._engine = engine
        pid = engine.container(container)["State"]["Pid"]
        self._parents = set[Path]()
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            folder = _CGROUPS / controllers.removeprefix("name=") / path.lstrip("/")
            if folder.is_dir() and container in folder.name:
                self._parents.add(folder.parent)
        assert self._parents
        self._before = self._orphans()

    def of(self, container: str) -> Path:
        """The one of a container that runs, where its processes are limited (v1) or all of it (v2)."""
        found = [path for parent in self._parents for path in parent.glob(f"*{container}*")]
        return next((path for path in found if (path / "pids.max").exists()), found[0])

    def orphans(self) -> set[str]:
        """Those of containers that the engine does not have, and that were not there at first."""
        return self._orphans() - self._before

    def _orphans(self) -> set[str]:
        found = {
            matched[0]
            for parent in self._parents
            for group in parent.iterdir()
            if (matched := _ENGINE_ID.search(group.name)) is not None
        }
        return found - self._engine.container_ids()


@dataclass(frozen=True)
class Held:
    """What is there because of containers."""

    containers: frozenset[str]
    folders: tuple[str, ...]
    workspaces: tuple[str, ...]
    mounts: tuple[str, ...]
    cgroups: frozenset[str]
    processes: tuple[tuple[str, int], ...]
    """Names of the server's descendants, and how many there are of each."""
    known: tuple[str, ...]
    """Ids that callers can list, finished ones included."""


@dataclass
class World:
    """A server, its administrator, and an engine's image for it."""

    leftovers: Leftovers
    groups: ControlGroups
    image: str
    descendants: Callable[[], list[int]]
    known: Callable[[], list[str]]
    """Ids of the containers that the registry has."""
    before: Held = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.held()

    def held(self) -> Held:
        """What is there now."""
        return Held(
            containers=frozenset(self.leftovers.containers()),
            folders=tuple(self.leftovers.folders()),
            workspaces=tuple(self.leftovers.workspaces()),
            mounts=tuple(self.leftovers.mounts()),
            cgroups=frozenset(self.groups.orphans()),
            processes=tuple(sorted(Counter(map(name_of, self.descendants())).items())),
            known=tuple(sorted(self.known())),
        )

    def nothing_is_left(self) -> None:
        """Wait until all is as it was; fails with what is not."""
        eventually(
            lambda: self.held() == self.before, 20, lambda: f"left: {self.held()}\nbefore: {self.before}"
        )


@dataclass
class LiveWorld(World):
    """The same around a server in a process of its own."""

    server: LiveServer = field(kw_only=True)
    client: SyncClient = field(kw_only=True)

    def workspace_of(self, container: Container) -> Path:
        """Where what is /workspace to a container is on the host."""
        (folder,) = (
            path
            for path in (self.server.home / "workspaces").glob("*/*")
            if path.name == container.workspace.workspace_id
        )
        return folder / "files"

    def remove_all(self) -> None:
        """End and forget every container, and see that nothing is left."""
        eventually(lambda: not list(self.client.list_containers(states=[ContainerState.CREATING])))
        for container in list(self.client.list_containers(include_finished=True)):
            self.client.remove_container(container.container_id, force=True, delete_workspace=True)
        self.nothing_is_left()
