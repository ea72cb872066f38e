"""One server for all tests here, and what its containers look like from inside, told once."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clawbox_client import NotFound, SyncClient

from tests.containers_world import Leftovers, containers_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox_client.containers import Container

    from tests.engine import EngineApi
    from tests.live import LiveServer

INSIDE = Path(__file__).with_name("inside.py")
PIDS = 64
MEMORY_MB = 300

TEMPLATES = """
[images.templates.root]
image = "{agent}"
user = "0:0"
command = ["sleep", "1000"]
[images.templates.pinned]
image = "{agent}"
user = "1000:1000"
command = ["sleep", "1000"]
"""


@dataclass
class Box:
    """A container that runs, from all sides."""

    client: SyncClient
    container: Container
    engine: Any
    """What the engine says of it."""

    @property
    def container_id(self) -> str:
        """clawbox's."""
        return self.container.container_id

    def run(self, *command: str, stdin: bytes = b"", **options: Any) -> str:
        """What a command inside prints; it must end well."""
        done = self.client.run_command(
            self.container_id, command, stdin=stdin, timeout_ms=60_000, deadline=70, **options
        )
        assert done.exit_code == 0, (done.exit_code, done.stdout, done.stderr)
        return done.stdout

    def read(self, path: str) -> bytes:
        """A file of its."""
        return self.client.read_file(self.container_id, path)


@pytest.fixture(scope="package")
def server(
    tmp_path_factory: pytest.TempPathFactory, engine_url: str, agent_image: str
) -> Iterator[LiveServer]:
    """A server that makes containers of the agent image."""
    home = tmp_path_factory.mktemp("hardened") / "clawbox"
    more = TEMPLATES.format(agent=agent_image)
    with containers_server(home, engine_url, "max_containers = 20", more) as server:
        yield server


@pytest.fixture(scope="package")
def client(server: LiveServer) -> Iterator[SyncClient]:
    """The administrator."""
    with SyncClient(server.address, token=server.token) as client:
        yield client


@pytest.fixture(scope="package")
def leftovers(server: LiveServer, engine_api: EngineApi) -> Leftovers:
    """What the server has at the engine and on disk."""
    return Leftovers(server.home, engine_api)


@pytest.fixture
def spawn(client: SyncClient, engine_api: EngineApi) -> Iterator[Any]:
    """Makes containers for one test."""
    made: list[str] = []

    def make(**options: Any) -> Box:
        container = client.spawn("a test", **options)
        made.append(container.container_id)
        return Box(client, container, engine_api.container(container.name))

    yield make
    for container_id in made:
        with contextlib.suppress(NotFound):
            client.remove_container(container_id, force=True)


@pytest.fixture(scope="package")
def box(client: SyncClient, engine_api: EngineApi, agent_image: str) -> Iterator[Box]:
    """A container that tests leave as it was."""
    container = client.spawn("to look at", image=agent_image, hold=True, pids=PIDS, memory_mb=MEMORY_MB)
    yield Box(client, container, engine_api.container(container.name))
    client.remove_container(container.container_id, force=True)


def told_by(box: Box, port: int) -> Any:
    """What ``inside.py`` tells."""
    return json.loads(box.run("python3", "-", str(port), stdin=INSIDE.read_bytes()))


@pytest.fixture(scope="package")
def inside(box: Box, server: LiveServer) -> Any:
    """What a program in ``box`` sees, and may do."""
    return told_by(box, server.port)
