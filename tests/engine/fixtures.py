"""Fixtures for tests that need a Docker engine, and what is said of tests that found none.

Nothing is started for a run that has no such test.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests.engine.api import EngineApi
from tests.engine.images import ImageMaker, shell_less_layer
from tests.engine.private import EngineMissingError, PrivateEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEFAULT_URL = "unix:///var/run/docker.sock"
_MISSING = "no Docker engine: "


def without_engine(error: EngineMissingError) -> NoReturn:
    """End a test that cannot have what it needs: failed where CI=true, else named when all is over."""
    reason = f"{_MISSING}{error}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each test that did not run for want of an engine."""
    missed = [
        report
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple) and _MISSING in report.longrepr[2]
    ]
    if missed:
        terminalreporter.section("NOT TESTED, for want of a Docker engine", red=True, bold=True)
        for report in missed:
            terminalreporter.line(report.nodeid)
        terminalreporter.line(missed[0].longrepr[2])


@pytest.fixture(scope="session")
def engine_url() -> Iterator[str]:
    """Where an engine answers: where ``DOCKER_HOST`` says or at the usual place, else one of our own.

    What is not our own keeps all that it has; tests remove what they make there.
    """
    for url in (os.environ.get("DOCKER_HOST", ""), DEFAULT_URL):
        if url and EngineApi(url, timeout=10).answers():
            yield url
            return
    with contextlib.ExitStack() as held:
        try:
            engine = held.enter_context(PrivateEngine())
        except EngineMissingError as error:
            without_engine(error)
        yield engine.url


@pytest.fixture
def start_engine() -> Iterator[Callable[..., PrivateEngine]]:
    """Starts engines for one test, to be stopped and started again: ``start_engine({"runtimes": …})``."""
    with contextlib.ExitStack() as held:

        def start(config: Mapping[str, object] | None = None) -> PrivateEngine:
            try:
                return held.enter_context(PrivateEngine(config))
            except EngineMissingError as error:
                without_engine(error)

        yield start


@pytest.fixture(scope="session")
def engine_api(engine_url: str) -> EngineApi:
    """The engine, to be asked by a test itself."""
    return EngineApi(engine_url)


@pytest.fixture(scope="session")
def session_images(engine_api: EngineApi) -> Iterator[ImageMaker]:
    """Makes images that are there until all tests are done."""
    maker = ImageMaker(engine_api)
    try:
        yield maker
    finally:
        maker.remove()


@pytest.fixture
def images(engine_api: EngineApi) -> Iterator[ImageMaker]:
    """Makes images for one test: ``images(["VOLUME /data"])`` is a reference."""
    maker = ImageMaker(engine_api)
    try:
        yield maker
    finally:
        maker.remove()


@pytest.fixture(scope="session")
def busybox_image(session_images: ImageMaker) -> str:
    """Reference of an image with a shell and the usual commands in ``/bin``; no command, no user."""
    return _made(lambda: session_images(name="busybox"))


@pytest.fixture(scope="session")
def shell_less_image(session_images: ImageMaker) -> str:
    """Reference of an image without any shell: ``/bin/`` cat, echo, false, id, nc, sleep, true, wget."""
    return _made(lambda: session_images(layer=shell_less_layer(), name="shell-less"))


def _made(make: Callable[[], str]) -> str:
    try:
        return make()
    except EngineMissingError as error:
        without_engine(error)
