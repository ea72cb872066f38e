"""Servers to be ill-treated by what their containers do, with nothing left of any container at the end.

Each has the small tools of tests/faults, too.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from clawbox_client import SyncClient

from tests.containers_world import Leftovers, containers_server, settings
from tests.faults.conftest import FAST, TOOLS
from tests.faults.containers.world import ControlGroups, LiveWorld
from tests.footprint import eventually
from tests.live import init

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.engine import EngineApi
    from tests.live import LiveServer


class Serve(Protocol):
    """Starts a server with settings of a test's own."""

    def __call__(
        self, containers: str = "", more: str = "", **options: Any
    ) -> AbstractContextManager[LiveWorld]:
        """``containers``: keys of [containers]; ``more``: of [images], then further sections."""


@contextlib.contextmanager
def around(server: LiveServer, engine: EngineApi, image: str) -> Iterator[LiveWorld]:
    """A server that has had one container already, so that everything it keeps for all of them is there."""
    with SyncClient(server.address, token=server.token) as client:
        first = client.spawn("first", image=image, hold=True)
        client.write_file(first.container_id, "/workspace/file", b"x")
        client.run_command(first.container_id, ["true"])
        (engine_id,) = Leftovers(server.home, engine).containers()
        groups = ControlGroups(engine, engine_id)
        client.remove_container(first.container_id, force=True)
        left = Leftovers(server.home, engine)
        eventually(lambda: not left.containers() and not left.sidecars(server.descendants()))
        yield LiveWorld(
            left,
            groups,
            image,
            server.descendants,
            lambda: [one.container_id for one in client.list_containers(include_finished=True)],
            server=server,
            client=client,
        )


@contextlib.contextmanager
def _serving(
    home: Path, engine: EngineApi, image: str, containers: str, more: str = "", **options: Any
) -> Iterator[LiveWorld]:
    """With nothing left at the end; a test that stops the server itself sees to what that leaves."""
    init(home, settings(home, engine.url, containers, more))
    (home / "tools").mkdir(exist_ok=True)
    for name, module in TOOLS.items():
        (home / "tools" / f"{name}.wasm").write_bytes(module)
    with containers_server(home, engine.url, **{**FAST, **options}) as server:
        with around(server, engine, image) as world:
            yield world
            stopped = server.process.poll() is not None
            if not stopped:
                world.remove_all()
        said = server.log.read_text()
        # Where a test fills the disk, the log tells where that was noticed.
        assert "Traceback" not in said or "No space left on device" in said, said[-8000:]
    # The state file is nobody's now.
    if not stopped:
        assert world.leftovers.rows() == []
        assert world.leftovers.folders() == []
    assert world.leftovers.containers() == set()
    assert world.leftovers.mounts() == list(world.before.mounts)


@pytest.fixture(scope="module")
def shared_server(
    tmp_path_factory: pytest.TempPathFactory, engine_api: EngineApi, busybox_image: str
) -> Iterator[LiveWorld]:
    """One for all tests of a module."""
    home = tmp_path_factory.mktemp("containers") / "clawbox"
    with _serving(home, engine_api, busybox_image, "max_containers = 40") as made:
        yield made


@pytest.fixture
def world(shared_server: LiveWorld) -> Iterator[LiveWorld]:
    """The module's server, with no containers before and none after."""
    yield shared_server
    shared_server.remove_all()


@pytest.fixture
def serve(tmp_path: Path, engine_api: EngineApi, busybox_image: str) -> Serve:
    """Starts servers for one test."""

    def start(containers: str = "", more: str = "", **options: Any) -> AbstractContextManager[LiveWorld]:
        return _serving(tmp_path / "clawbox", engine_api, busybox_image, containers, more, **options)

    return start
