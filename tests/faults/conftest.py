"""Servers to be ill-treated, with a few small tools but no interpreters, so that they start at once."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import wasmtime

from benchmarks.echo import ECHO_WAT
from tests.caller import Caller
from tests.live import LiveServer, init, running
from tests.unit.wasm import wat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


def _pause(milliseconds: int) -> str:
    """A module that waits so long and then writes ``"done"``."""
    return str(
        wat.module(
            "",
            data=wat.quoted('"done"'),
            start=f"""(i32.store (i32.const 2064) (i32.const 1))
              (i64.store (i32.const 2072) (i64.const {milliseconds * 1_000_000}))
              (drop (call $poll (i32.const 2048) (i32.const 4096) (i32.const 1) (i32.const 8)))
              (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 6)))""",
        )
    )


TOOLS = {
    name: bytes(wasmtime.wat2wasm(text))
    for name, text in {
        "echo": ECHO_WAT,
        "spin": wat.SPIN,
        "counter": wat.COUNTER,
        "brief": _pause(5),
        "second": _pause(1000),
    }.items()
}

FAST: dict[str, Any] = {
    "CLAWBOX_SANDBOX__BUILTIN_TOOLS": "false",
    "CLAWBOX_SANDBOX__WORKERS": "2",
    "CLAWBOX_SERVER__MAX_CONCURRENT_EXECUTIONS": "2",
}


class Serve(Protocol):
    """Starts a server."""

    def __call__(
        self, home: Path | None = None, settings: str = "", **options: Any
    ) -> AbstractContextManager[LiveServer]:
        """In ``home``, or in a folder of its own, with TOOLS."""


@pytest.fixture(scope="package")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `clawbox init` makes it, with TOOLS in it: each server has a copy."""
    home = tmp_path_factory.mktemp("template") / "clawbox"
    init(home)
    (home / "tools").mkdir(exist_ok=True)
    for name, module in TOOLS.items():
        (home / "tools" / f"{name}.wasm").write_bytes(module)
    return home


@pytest.fixture
def serve(tmp_path: Path, template: Path) -> Serve:
    """Starts servers for one test."""

    @contextlib.contextmanager
    def start(home: Path | None = None, settings: str = "", **options: Any) -> Iterator[LiveServer]:
        if home is None:
            home = shutil.copytree(template, tmp_path / "clawbox")
        with running(home, settings, **{**FAST, **options}) as server:
            yield server

    return start


def admin(server: LiveServer) -> Caller:
    """The administrator."""
    return Caller(server.address, server.token)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[LiveServer]:
    """A server that survives what is done to it."""
    home = shutil.copytree(template, tmp_path_factory.mktemp("faults") / "clawbox")
    with running(home, CLAWBOX_SERVER__UNIX_SOCKET=str(home / "sock"), **FAST) as live:
        yield live


@pytest.fixture
def caller(server: LiveServer) -> Iterator[Caller]:
    """The administrator of ``server``."""
    with admin(server) as made:
        yield made
