"""A private engine starts, comes back with what it had, and leaves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine import ImageMaker, PrivateEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    StartEngine = Callable[..., PrivateEngine]

SLEEP = ["sleep", "1000"]


def test_a_private_engine_runs_a_container_and_leaves_nothing(start_engine: StartEngine) -> None:
    engine = start_engine()
    image = ImageMaker(engine.api)()
    container = engine.api.create(image, SLEEP)
    engine.api.start(container)
    running = engine.leftovers()
    assert any(line.startswith("process") for line in running)
    assert any(line.startswith("mount") for line in running)
    assert any(line.startswith("control group") for line in running)
    engine.close()
    assert engine.leftovers() == []
    assert not engine.api.answers()


def test_what_it_ran_goes_even_when_the_daemon_was_killed(start_engine: StartEngine) -> None:
    engine = start_engine()
    image = ImageMaker(engine.api)()
    container = engine.api.create(image, SLEEP)
    engine.api.start(container)
    pid = engine.api.container(container)["State"]["Pid"]
    engine.kill()
    assert f"process {pid}" in engine.leftovers()
    engine.close()
    assert engine.leftovers() == []


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_engine_comes_back_with_its_images_and_containers(start_engine: StartEngine, how: str) -> None:
    engine = start_engine()
    image = ImageMaker(engine.api)()
    container = engine.api.create(image, ["true"])
    getattr(engine, how)()
    assert not engine.api.answers()
    engine.start()
    assert engine.api.container(container)["Config"]["Image"] == image
    engine.api.start(container)
    assert engine.api.wait(container) == 0


def test_an_engine_knows_the_runtimes_of_its_settings(start_engine: StartEngine) -> None:
    engine = start_engine({"runtimes": {"other": {"path": "/bin/false", "runtimeArgs": ["--network=host"]}}})
    assert "other" in engine.api.info()["Runtimes"]


def test_two_engines_live_beside_each_other(start_engine: StartEngine) -> None:
    first, second = start_engine(), start_engine()
    image = ImageMaker(first.api)()
    assert first.api.image(image)["Id"] in first.api.image_ids()
    assert second.api.image_ids() == set()
