"""The one server of all tests here, and a container that holds for those that leave it as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.containers_world import Leftovers
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
