"""One server for what it survives, with the engine that all tests share; each other test has its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.containers_engine.world import Host, World, client_of, reaching

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clawbox_client import SyncClient

    from tests.egress_world.upstream import Upstream
    from tests.engine import EngineApi
    from tests.live import LiveServer


@pytest.fixture
def world(tmp_path: Path, engine_api: EngineApi) -> Iterator[World]:
    """A new installation, whose containers are removed at the end however it went."""
    made = World.at(tmp_path / "clawbox", engine_api)
    yield made
    for container in made.left.containers():
        engine_api.remove_container(container)


@pytest.fixture(scope="package")
def upstream() -> Iterator[Upstream]:
    """What containers may reach."""
    with Host() as upstream:
        yield upstream


@pytest.fixture(scope="package")
def shared_world(tmp_path_factory: pytest.TempPathFactory, engine_api: EngineApi) -> World:
    """The installation of ``shared``."""
    return World.at(tmp_path_factory.mktemp("faults") / "clawbox", engine_api)


@pytest.fixture(scope="package")
def shared(shared_world: World, upstream: Upstream) -> Iterator[LiveServer]:
    """A server that survives what is done to its containers."""
    with shared_world.server(more=reaching(upstream)) as server:
        yield server


@pytest.fixture
def client(shared: LiveServer) -> Iterator[SyncClient]:
    """The administrator of ``shared``."""
    with client_of(shared) as made:
        yield made
