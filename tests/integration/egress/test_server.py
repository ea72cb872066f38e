"""A tool of a real server calls a real host: with a key that it never sees, written down, or refused."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING

import pytest
import wasmtime
from clawbox_client import SyncClient

from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.vault import MasterKey, Vault
from tests.egress_world import answers
from tests.egress_world.supervised import KEY, SECRET
from tests.egress_world.upstream import Upstream
from tests.footprint import eventually
from tests.integration.tool_egress.conftest import RELAY
from tests.live import init, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.live import LiveServer


class Host:
    """An upstream in a thread of its own, for tests that block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.upstream = Upstream(default=answers.reflects("Authorization"))

    def __enter__(self) -> Upstream:
        self._thread.start()
        assert self._ready.wait(10)
        return self.upstream

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        async def serve() -> None:
            async with self.upstream:
                self._ready.set()
                await self._over.wait()

        self._loop.run_until_complete(serve())
        self._loop.close()


@pytest.fixture
def host() -> Iterator[Upstream]:
    with Host() as upstream:
        yield upstream


@pytest.fixture
def server(tmp_path: Path, host: Upstream) -> Iterator[LiveServer]:
    home = tmp_path / "clawbox"
    rule = f'{{ host = "127.0.0.1", ports = [{host.port}] }}'
    init(
        home,
        f"""
[tool_policy]
network_allowlist = [{rule}]
allowed_credentials = ["api"]
[egress]
trusted_networks = ["127.0.0.0/8"]
""",
    )
    tools = home / "tools"
    tools.mkdir(exist_ok=True)
    manifest = {
        "tool": {"name": "relay", "description": "passes host calls on"},
        "network": {"allowlist": [{"host": "127.0.0.1", "ports": [host.port]}]},
        "credentials": {"available": ["api"]},
    }
    (tools / "relay.wasm").write_bytes(bytes(wasmtime.wat2wasm(RELAY)))
    (tools / "relay.json").write_text(json.dumps(manifest))
    Vault(home / "credentials.enc", MasterKey(KEY)).put(
        Credential("api", Secret(SECRET), ("127.0.0.1",), ports=(host.port,), plain_http=True)
    )
    with running(home, CLAWBOX_MASTER_KEY=KEY, CLAWBOX_SANDBOX__BUILTIN_TOOLS="false") as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[SyncClient]:
    with SyncClient(server.address, token=server.token) as client:
        yield client


def call(url: str) -> dict[str, object]:
    return {"method": "http_request", "params": {"url": url, "method": "GET"}}


def rows(server: LiveServer, kind: str) -> list[dict[str, object]]:
    lines = (server.home / "audit" / "audit.jsonl").read_text().splitlines(keepends=True)
    whole = (json.loads(line) for line in lines if line.endswith("\n"))  # the last is being written, maybe
    return [row | row["fields"] for row in whole if row["kind"] == kind]


def test_a_tool_uses_a_credential_that_it_never_sees(server, client, host):
    answer = client.execute(
        "relay", call(f"http://127.0.0.1:{host.port}/x"), credentials=["api"], request_id="mine"
    )
    assert host.seen[-1].header("Authorization") == f"Bearer {SECRET}"
    assert SECRET not in json.dumps(answer.output)
    assert "[REDACTED]" in json.dumps(answer.output)
    (row,) = rows(server, "egress")
    assert (row["request_id"], row["principal"], row["credential"]) == ("mine", "admin", "api")
    assert SECRET not in (server.home / "audit" / "audit.jsonl").read_text()
    assert SECRET not in server.log.read_text()


def test_a_host_that_was_not_granted_is_refused_with_its_reason(server, client, host):
    answer = client.execute("relay", call("http://other.test/"))
    assert "host_not_allowed" in json.dumps(answer.output) or "other.test" in json.dumps(answer.output)
    eventually(lambda: rows(server, "egress"))
    (row,) = rows(server, "egress")
    assert (row["decision"], row["reason"], row["host"]) == ("denied", "host_not_allowed", "other.test")
    assert host.seen == []


def test_the_status_tells_of_the_way_out(client, host):
    parts = {part.name: part for part in client.status().components}
    assert parts["egress"].state == parts["credentials"].state == "ok"
    assert "first sandbox" in parts["egress"].detail
    client.execute("relay", call(f"http://127.0.0.1:{host.port}/"))
    parts = {part.name: part for part in client.status().components}
    assert parts["egress"].detail == "1 sidecars"
    assert parts["credentials"].detail == "usable"


def test_a_file_of_another_key_is_told_and_no_request_goes_without_its_credential(server, client, host):
    (server.home / "credentials.enc").unlink()
    Vault(server.home / "credentials.enc", MasterKey("cd" * 32)).put(
        Credential("api", Secret(SECRET), ("127.0.0.1",), ports=(host.port,), plain_http=True)
    )
    eventually(lambda: {part.name: part.state for part in client.status().components}["credentials"] != "ok")
    client.execute("relay", call(f"http://127.0.0.1:{host.port}/"), credentials=["api"])
    assert host.seen == []
    (row,) = rows(server, "egress")
    assert row["reason"] == "credential_unavailable"
    status = client.status()
    (part,) = (part for part in status.components if part.name == "credentials")
    assert (status.status, part.state) == ("degraded", "degraded")
    assert part.detail
