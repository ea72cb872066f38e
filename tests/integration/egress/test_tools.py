"""Tools that reach the world: a real server with all its processes, and an upstream with TLS on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import clawbox_client as cb
import pytest
import pytest_asyncio

from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.vault import MasterKey, Vault
from clawbox.wasm.builtin import FOLDER
from tests.egress_world import TestCa, Upstream, answers
from tests.footprint import name_of
from tests.live import LiveServer, init, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "cd" * 32
SECRET = "correct-horse-battery-staple-7141"
SIDECAR = "clawbox-egress"
RESOURCES = {"default_memory_mb": 256, "default_fuel": 100_000_000_000}


@dataclass
class World:
    server: LiveServer
    upstream: Upstream
    client: cb.Client

    def url(self, path: str = "/echo") -> str:
        return f"https://localhost:{self.upstream.port}{path}"

    async def python(self, code: str, value: Any = None, **options: Any) -> Any:
        return await self.client.run_python(code, value, tool="agent", **options)

    async def rows(self, request_id: str) -> list[dict[str, Any]]:
        """What the audit log has of the requests of a call."""
        found: list[dict[str, Any]] = []
        async with self.client.watch_audit(
            after_sequence=0, kinds=["execute", "egress"], deadline=30
        ) as rows:
            async for row in rows:
                if row.request_id == request_id:
                    if row.kind == "execute":
                        return found
                    found.append({"decision": row.decision, **row.fields})
        return found


def tool(home: Any, name: str, built: str, port: int) -> None:
    shutil.copy(FOLDER / f"{built}.wasm", home / "tools" / f"{name}.wasm")
    manifest = {
        "tool": {"name": name, "description": "an interpreter with a way out"},
        "network": {"allowlist": [{"host": "localhost", "ports": [port]}]},
        "credentials": {"available": ["api"]},
        "resources": RESOURCES,
    }
    (home / "tools" / f"{name}.json").write_text(json.dumps(manifest))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    home, ca = tmp_path_factory.mktemp("tools") / "clawbox", TestCa()
    routes = {"/echo": answers.echo, "/never": answers.never, "/bytes": answers.body(bytes(range(256)))}
    async with Upstream(routes, tls=ca.server_context("localhost")) as upstream:
        init(home)
        (home / "upstream.pem").write_text(ca.pem)
        Vault(home / "credentials.enc", MasterKey(KEY)).put(
            Credential("api", Secret(SECRET), ("localhost",), ports=(upstream.port,))
        )
        for name, built in (("agent", "python"), ("script", "javascript")):
            tool(home, name, built, upstream.port)
        settings = f"""
            [tool_policy]
            network_allowlist = [{{ host = "localhost", ports = [{upstream.port}] }}]
            allowed_credentials = ["api"]
            [egress]
            trusted_networks = ["127.0.0.0/8", "::1/128"]
            upstream_ca = ["upstream.pem"]
            """
        with running(home, settings, CLAWBOX_MASTER_KEY=KEY) as server:
            async with cb.Client(server.address, token=server.token) as client:
                yield World(server, upstream, client)


FETCH = """
import clawbox
reply = clawbox.http_request("POST", input, headers={"accept": "application/json"}, body="hello")
result = reply.json()
"""


async def test_python_sends_a_request_and_the_credential_is_attached_outside(world: World) -> None:
    found = await world.python(FETCH, world.url(), credentials=["api"], request_id="with-credential")

    assert found.error is None, found.error
    assert (found.result["method"], found.result["body"]) == ("POST", "hello")
    headers = {name.lower(): value for name, value in found.result["headers"]}
    assert headers["accept"] == "application/json"
    # The upstream got the credential and said it again; the sandbox did not see it.
    assert world.upstream.seen[-1].header("Authorization") == f"Bearer {SECRET}"
    assert headers["authorization"] == "Bearer [REDACTED]"
    assert found.execution.metadata.egress_calls == 1
    [row] = await world.rows("with-credential")
    assert (row["decision"], row["host"], row["credential"]) == ("allowed", "localhost", "api")


async def test_a_credential_that_was_not_asked_for_is_not_attached(world: World) -> None:
    found = await world.python(FETCH, world.url())

    assert found.error is None, found.error
    assert world.upstream.seen[-1].header("Authorization") is None


async def test_javascript_fetches(world: World) -> None:
    code = "const reply = await fetch(input); result = [reply.status, (await reply.json()).method];"
    found = await world.client.run_javascript(code, world.url(), tool="script")

    assert (found.error, found.result) == (None, [200, "GET"])


async def test_bytes_arrive_whole(world: World) -> None:
    code = "import clawbox\nresult = list(clawbox.http_request('GET', input).body)"

    assert (await world.python(code, world.url("/bytes"))).result == list(range(256))


@pytest.mark.parametrize("options", [{"network": []}, {}])
async def test_what_was_not_granted_is_refused_with_the_text_of_an_allowlist(
    world: World, options: dict[str, Any]
) -> None:
    url = world.url() if options else "https://other.example/"
    found = await world.python(FETCH, url, request_id=f"refused-{len(options)}", **options)

    assert found.error is not None
    assert (found.error.type, found.error.message) == (
        "clawbox.HostError",
        f"URL blocked by allowlist: {url}",
    )


async def test_requests_go_on_after_one_was_refused(world: World) -> None:
    code = """
import clawbox
errors = []
for url in ("https://other.example/", "nonsense", "http://10.0.0.1/", "https://user@localhost/"):
    try:
        clawbox.http_request("GET", url)
    except clawbox.HostError as error:
        errors.append(str(error).split(":")[0])
result = [errors, clawbox.http_request("GET", input).status]
"""
    found = await world.python(code, world.url())

    assert found.error is None, found.error
    blocked, invalid = "URL blocked by allowlist", "invalid URL"
    assert found.result == [[blocked, invalid, blocked, invalid], 200]


async def test_a_known_secret_leaves_neither_by_a_request_nor_by_the_output(world: World) -> None:
    code = """
import clawbox
try:
    clawbox.http_request("GET", input["url"] + "?q=" + input["secret"])
except clawbox.HostError as error:
    print(error)
print(input["secret"][:9], input["secret"])
clawbox.log("info", input["secret"])
result = {input["secret"]: [input["secret"].encode().hex()]}
"""
    seen = len(world.upstream.seen)
    value = {"url": world.url(), "secret": SECRET}
    found = await world.python(code, value, credentials=["api"])

    assert found.stdout == "credential leak detected in outbound request\ncorrect-h [REDACTED]\n"
    assert found.result == {"[REDACTED]": ["[REDACTED]"]}
    assert [entry.message for entry in found.execution.logs] == ["[REDACTED]"]
    assert len(world.upstream.seen) == seen


async def test_a_stream_shows_no_known_secret(world: World) -> None:
    code = "import clawbox\nfor part in input: clawbox.log('info', part)"
    events = world.client.execute_stream(
        "agent", {"code": code, "input": [SECRET, "plain"]}, credentials=["api"]
    )
    logged = [event.message async for event in events if isinstance(event, cb.LogEntry)]

    assert logged == ["[REDACTED]", "plain"]


async def test_a_request_that_is_never_answered_ends_with_the_run(world: World) -> None:
    found = await world.client.execute(
        "agent",
        {"code": FETCH, "input": world.url("/never")},
        timeout_ms=1000,
        request_id="never-answered",
    )

    assert found.outcome is cb.Outcome.TIMEOUT


def _sidecars(world: World) -> set[int]:
    return {pid for pid in world.server.descendants() if name_of(pid) == SIDECAR}


async def test_a_sidecar_that_dies_fails_the_request_alone_and_is_followed_by_another(world: World) -> None:
    code = """
import clawbox
errors = []
for url in input:
    try:
        clawbox.http_request("GET", url)
    except clawbox.HostError as error:
        errors.append(str(error))
result = errors
"""
    seen = len(world.upstream.seen)
    waiting = asyncio.create_task(world.python(code, [world.url("/never"), world.url()]))
    await world.upstream.arrived(seen + 1)
    killed = _sidecars(world)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    found = await waiting

    assert found.error is None, found.error
    assert [error.split(":")[0] for error in found.result] == ["HTTP error"] * 2
    async with asyncio.timeout(60):
        # One, not as many as were killed: those that no call used for long end by themselves.
        while not _sidecars(world) - killed:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
    assert (await world.python(code, [world.url()])).result == []


async def test_output_of_a_run_is_cleaned_by_the_next_sidecar_or_not_shown(world: World) -> None:
    code = (
        "import clawbox\nprint(input[1])\ntry: clawbox.http_request('GET', input[0])\nexcept Exception: pass"
    )
    seen = len(world.upstream.seen)
    asked = world.python(code, [world.url("/never"), SECRET], credentials=["api"])
    waiting = asyncio.create_task(asked)
    await world.upstream.arrived(seen + 1)
    for pid in _sidecars(world):
        os.kill(pid, signal.SIGKILL)
    try:
        shown = repr(await waiting)
    except cb.ClawboxError as error:
        assert error.reason == "REDACTION_UNAVAILABLE"  # noqa: PT017 - either is right
        shown = str(error)

    assert SECRET not in shown
