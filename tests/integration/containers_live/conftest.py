"""The one server of all tests here, and a container that holds for those that leave it as it was."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from tests.containers_world import Leftovers
from tests.integration.containers.docker.registry import Registry
from tests.integration.containers_live import world as worlds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox_client import Container

    from tests.engine import EngineApi
    from tests.integration.containers_live.world import Outside, World


@pytest.fixture(scope="package")
def reachable() -> Iterator[Outside]:
    """What containers may reach."""
    with worlds.outside() as outside:
        yield outside


@pytest.fixture(scope="package")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    engine_url: str,
    engine_api: EngineApi,
    busybox_image: str,
    reachable: Outside,
) -> Iterator[World]:
    """The server. At the end nothing is left of what it had, and no secret is anywhere."""
    home = tmp_path_factory.mktemp("live") / "clawbox"
    with worlds.running(home, engine_url, busybox_image, reachable) as world:
        yield world
    left = Leftovers(home, engine_api)
    assert left.containers() == set()
    said = world.server.log.read_text() + "".join(
        path.read_text(errors="replace") for path in (home / "audit").iterdir() if path.is_file()
    )
    assert worlds.SECRET not in said


@pytest.fixture(scope="package")
def held(world: World) -> Iterator[Container]:
    """A container of ann's that holds, with the credential in its grant; tests leave it as it was."""
    options = {"network": ["api.example.test"], "credentials": ["api"]}
    with worlds.container(world.ann, **options) as made:
        yield made


@pytest.fixture(scope="package")
def direct_network(engine_api: EngineApi) -> Iterator[str]:
    """The name of a network of the engine's that leads nowhere."""
    name = f"clawbox-test-{secrets.token_hex(4)}"
    engine_api.call("POST", "/networks/create", as_json={"Name": name, "Driver": "bridge", "Internal": True})
    try:
        yield name
    finally:
        engine_api.call("DELETE", f"/networks/{name}")


@pytest.fixture(scope="package")
def operated(
    tmp_path_factory: pytest.TempPathFactory,
    engine_url: str,
    busybox_image: str,
    reachable: Outside,
    direct_network: str,
) -> Iterator[World]:
    """A server whose operator allows example.test, and containers past the sidecar."""
    with worlds.running(
        tmp_path_factory.mktemp("operated") / "clawbox",
        engine_url,
        busybox_image,
        reachable,
        containers=f'direct_network = "{direct_network}"',
        allowed=["example.test"],
        policy='allowed_policies = ["container", "container_direct"]',
    ) as world:
        yield world


@pytest.fixture(scope="package")
def registry() -> Iterator[Registry]:
    """A registry with nothing in it."""
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="package")
def pulling(
    tmp_path_factory: pytest.TempPathFactory,
    engine_url: str,
    busybox_image: str,
    reachable: Outside,
    registry: Registry,
) -> Iterator[World]:
    """A server that pulls images that are missing, and whose operator allows no network."""
    with worlds.running(
        tmp_path_factory.mktemp("pulling") / "clawbox",
        engine_url,
        busybox_image,
        reachable,
        allowed=[],
        pull_policy="missing",
        registry=registry.host,
    ) as world:
        yield world
