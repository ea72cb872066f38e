"""The one world of all tests here, and what takes long to make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.programs.world import CLIENTS, World, need, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("programs")) as world:
        yield world


@pytest.fixture(scope="session", autouse=True)
def begin_early(request: pytest.FixtureRequest) -> None:
    """What takes long is begun with the first test, so that others run meanwhile."""
    if any("go_program" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("go_program")


@pytest.fixture(scope="session")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Gives the program once it is built: the first time that takes half a minute, for Go's own library."""
    if shutil.which("go") is None:
        yield lambda: need("go")
        return
    folder = tmp_path_factory.mktemp("go")
    program = folder / "fetch"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GOCACHE": str(Path(sys.prefix) / "cache/go"),
        "GOFLAGS": "'-gcflags=all=-N -l'",  # takes less time
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    with subprocess.Popen(
        [need("go"), "build", "-o", program, CLIENTS / "fetch.go"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as building:
        yield lambda: _built(building, program)


def _built(building: subprocess.Popen[bytes], program: Path) -> Path:
    said, _ = building.communicate()
    assert building.returncode == 0, said.decode()
    return program
