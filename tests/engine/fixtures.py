"""Fixtures for tests that need a Docker engine, and what is said of tests that found none.

Nothing is started for a run that has no such test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from clawbox.wasm.build.commands import BuildError
from tests.engine import java
from tests.engine.api import EngineApi
from tests.engine.images import ImageMaker, make_image, shell_less_layer
from tests.engine.private import EngineMissingError, PrivateEngine
from tools import agent_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEFAULT_URL = "unix:///var/run/docker.sock"
RUNSC_ARGUMENTS = ["--network=host", "--host-uds=open", "--host-fifo=open"]
"""A guest's sockets are then real ones of its own network namespace, where clawbox can listen."""
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


@pytest.fixture(scope="session")
def agent_image(session_images: ImageMaker) -> str:
    """Reference of what ``make agent-base`` builds: python3, pip, Node.js, npm, git, curl, wget."""
    try:
        archive = agent_base.archive(keep=True)
    except BuildError as error:
        without_engine(EngineMissingError(f"no agent image for it: {error}"))
    return session_images.add(
        "agent-base", lambda name: agent_base.load(archive, session_images.engine, name)
    )


@pytest.fixture(scope="session")
def java_image(agent_image: str, session_images: ImageMaker) -> str:
    """Reference of ``agent_image`` with a ``java`` besides."""
    try:
        layer = java.layer()
    except BuildError as error:
        without_engine(EngineMissingError(f"no Java for it: {error}"))
    api = session_images.engine
    return session_images.add("java", lambda name: api.add_layer(agent_image, layer, name))


@pytest.fixture(scope="session")
def runsc_engine() -> Iterator[PrivateEngine]:
    """A private engine with the runtime ``runsc``; where Go is there to build it (``make runsc``)."""
    runsc = Path(sys.prefix) / "bin/runsc"
    if not runsc.is_file() and shutil.which("go") is None:
        pytest.skip(f"{_MISSING}no runsc, and no Go that would build it")
    if not runsc.is_file():
        without_engine(EngineMissingError("no runsc: `make runsc` builds it"))
    runtime = {"path": str(runsc), "runtimeArgs": RUNSC_ARGUMENTS}
    with contextlib.ExitStack() as held:
        try:
            engine = held.enter_context(PrivateEngine({"runtimes": {"runsc": runtime}}))
        except EngineMissingError as error:
            without_engine(error)
        yield engine


@pytest.fixture(scope="session")
def runsc_busybox_image(runsc_engine: PrivateEngine) -> str:
    """``busybox_image`` on ``runsc_engine``."""
    return _made(lambda: make_image(runsc_engine.api, name="busybox"))
