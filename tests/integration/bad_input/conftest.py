"""One server for all bad input, and a check after each test that nothing of it is left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from clawbox_client.v1 import sandbox_pb2 as pb

from clawbox.wasm.compiler import BUILTIN_FOLDER
from tests.caller import Caller
from tests.footprint import Footprint, eventually, footprint
from tests.integration.bad_input.modules import MANIFESTS, TEXTS, compiled
from tests.live import LiveServer, init, running

if TYPE_CHECKING:
    from collections.abc import Iterator

RESTING = (("clawbox-worker", 2), ("clawbox-worker-", 1))
"""Names are cut to 15 bytes: the last is ``clawbox-worker-fork``."""

SETTINGS = """
[containers]
enabled = false

[children]
uid_first = 930000
uid_count = 100
"""


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """With one warm worker, so that how many processes there are at rest is known."""
    home = tmp_path_factory.mktemp("bad") / "clawbox"
    init(home)
    tools = home / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in TEXTS.items():
        (tools / f"{name}.wasm").write_bytes(compiled(text))
    for name, manifest in MANIFESTS.items():
        (tools / f"{name}.json").write_text(json.dumps(manifest))
    # The interpreter itself, with a schema for what it returns.
    (tools / "python-typed.wasm").write_bytes((BUILTIN_FOLDER / "python.wasm").read_bytes())
    manifest = json.loads((BUILTIN_FOLDER / "python.json").read_text())
    manifest["tool"]["name"] = "python-typed"
    manifest["output_schema"] = {"properties": {"result": {"type": "integer"}}}
    (tools / "python-typed.json").write_text(json.dumps(manifest))
    with running(
        home,
        SETTINGS,
        CLAWBOX_SANDBOX__WORKERS="1",
        CLAWBOX_SANDBOX__ON_INJECTION="block",
        CLAWBOX_SERVER__MAX_CONCURRENT_EXECUTIONS="2",
        CLAWBOX_SERVER__MAX_QUEUED_EXECUTIONS="2",
    ) as live:
        yield live


@pytest.fixture(scope="package")
def caller(server: LiveServer) -> Iterator[Caller]:
    """The administrator, on a connection that stays."""
    with Caller(server.address, server.token) as made:
        yield made


@pytest.fixture(scope="package")
def at_rest(server: LiveServer, caller: Caller) -> Footprint:
    """What the server holds when it has nothing to do: a worker that served, and one that waits."""
    ready = set(TEXTS) | {"python", "python-typed", "javascript"}
    eventually(
        lambda: {tool for tool in ready if caller.tool(tool).state == pb.TOOL_STATE_READY} == ready, 120
    )
    for interpreter in ("python", "javascript"):
        caller.execute(interpreter, json.dumps({"code": "1"}))
    seen: list[Footprint] = []

    def settled() -> bool:
        assert caller.execute("echo", "1").output_json == "1"
        seen.append(footprint(server, caller))
        return seen[-1].processes == RESTING and seen[-3:-1] == seen[-2:]

    eventually(settled, explain=lambda: seen[-1])
    return seen[-1]


@pytest.fixture(autouse=True)
def nothing_is_left_behind(server: LiveServer, caller: Caller, at_rest: Footprint) -> Iterator[None]:
    """After each test: the next call works, and processes, descriptors, files and places are as before."""
    yield
    left = None

    def restored() -> bool:
        nonlocal left
        assert caller.execute("echo", "1").output_json == "1"
        left = footprint(server, caller)
        return left == at_rest

    try:
        eventually(restored)
    except AssertionError:
        assert left == at_rest
    assert "Traceback" not in server.log.read_text()
