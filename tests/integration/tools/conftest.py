"""Tools built from source, run one instance a call in the engine that the workers use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clawbox.wasm.build import build
from clawbox.wasm.build.builtin import SOURCES, build_builtin
from clawbox.wasm.builtin import FOLDER
from tests.integration.tools.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

OUTPUT = Path(__file__).parents[3] / ".cache" / "tests" / "tools"


@pytest.fixture(scope="session")
def interpreters() -> Path:
    """The folder with python.wasm and javascript.wasm, built if they are not up to date."""
    build_builtin(print)
    return FOLDER


@pytest.fixture(scope="session")
def python(interpreters: Path) -> Sandbox:
    return Sandbox(interpreters / "python.wasm")


@pytest.fixture(scope="session")
def javascript(interpreters: Path) -> Sandbox:
    return Sandbox(interpreters / "javascript.wasm")


@pytest.fixture(scope="session")
def example() -> Callable[[str], Sandbox]:
    """Builds an example tool by name."""

    def built(name: str) -> Sandbox:
        return Sandbox(build(SOURCES / name, OUTPUT, print).wasm)

    return built
