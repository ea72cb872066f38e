"""Real sidecars, a real keeper and a real dialer, with an upstream on loopback: nothing stands in."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clawbox.audit import AuditLog
from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.uids import UidRange
from clawbox.egress.credentials import Budget, Credential, Secret
from clawbox.egress.dialer.messages import AddressPolicySpec
from clawbox.egress.keeper.bootstrap import open_keys
from clawbox.egress.messages import Grant, Limits
from clawbox.egress.supervisor import EgressSetup, EgressSupervisor
from clawbox.egress.vault import MasterKey, Vault
from clawbox.network_rules import NetworkRule
from clawbox.telemetry import Metrics
from tests.egress_world import answers
from tests.egress_world.ca import TestCa
from tests.egress_world.upstream import Upstream
from tests.footprint import children, is_alive, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from clawbox.egress.sandbox_door import SandboxDoor

KEY = "ab" * 32
TOKEN = "the-token-of-the-sandbox"
SECRET = "sk-test-0123456789abcdef0123"
_FORKSERVER = "clawbox-fork"


def digest(token: str = TOKEN) -> bytes:
    """As control tells a sidecar of a token."""
    return hashlib.sha256(token.encode()).digest()


def is_self(pid: int) -> bool:
    """Who a sandbox's processes are, in tests that connect by themselves."""
    return pid == os.getpid()


@dataclass
class World:
    """Everything around sandboxes, and an upstream that they may reach."""

    home: Path
    audit: AuditLog
    metrics: Metrics
    supervisor: EgressSupervisor
    upstream: Upstream
    vault: Vault
    uids: UidRange | None
    secure: Upstream
    """The same with TLS, and a certificate that sidecars trust."""

    @property
    def url(self) -> str:
        """Of the upstream."""
        return f"http://127.0.0.1:{self.upstream.port}"

    def grant(self, sandbox: str = "sandbox-1", *, limits: Limits | None = None, **fields: Any) -> Grant:
        """One that allows both upstreams."""
        ports = [self.upstream.port, self.secure.port]
        rule = NetworkRule.parse({"host": "127.0.0.1", "ports": ports})
        return Grant(sandbox, "ann", (rule,), limits=limits or Limits(), **fields)

    def keep(self, name: str, value: str = SECRET, budget: Budget | None = None) -> None:
        """Put a credential for the upstream into the file."""
        self.vault.put(
            Credential(
                name,
                Secret(value),
                ("127.0.0.1",),
                ports=(self.upstream.port, self.secure.port),
                plain_http=True,
                budget=budget,
            )
        )

    def rows(self, kind: str = "egress") -> list[dict[str, Any]]:
        """Rows of the audit log, their fields flattened."""
        lines = (self.home / "audit" / "audit.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [row | row["fields"] for row in rows if row["kind"] == kind]

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event here
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(home: Path, *, on_error: str = "refuse") -> AsyncIterator[World]:
    """A world in an empty folder."""
    home.mkdir(mode=0o700, exist_ok=True)  # noqa: ASYNC240
    metrics, ca = Metrics(), TestCa()
    uids = UidRange(910_000, 64) if can_have_own_uids() else None
    store = home / "credentials.enc"
    async with (
        AuditLog(home / "audit", on_error=on_error) as audit,  # type: ignore[arg-type]
        Upstream(default=answers.body(b"hello")) as upstream,
        Upstream(default=answers.body(b"hello"), tls=ca.server_context("127.0.0.1")) as secure,
    ):
        with open_keys(home, None, {"CLAWBOX_MASTER_KEY": KEY}) as keys:
            setup = EgressSetup(store, AddressPolicySpec(trusted=("127.0.0.0/8",)), (ca.pem,))
            async with EgressSupervisor(setup, keys, audit=audit, metrics=metrics, uids=uids) as supervisor:
                vault = Vault(store, MasterKey(KEY))
                yield World(home, audit, metrics, supervisor, upstream, vault, uids, secure)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path / "home") as world:
        yield world


@dataclass
class Reply:
    """What came back, whole."""

    status: int
    head: str
    body: bytes

    @property
    def reason(self) -> str:
        """The sidecar's own reason."""
        return str(json.loads(self.body)["reason"])


def request(url: str, token: str | None = TOKEN, *lines: str) -> bytes:
    """An absolute-form GET that ends its connection."""
    authority = url.split("/")[2]
    credentials = [f"Proxy-Authorization: Bearer {token}"] if token is not None else []
    head = [f"GET {url} HTTP/1.1", f"Host: {authority}", *credentials, *lines, "Connection: close", "", ""]
    return "\r\n".join(head).encode()


async def reply(reader: asyncio.StreamReader) -> Reply:
    """The whole answer on a connection that ends with it. Raises ConnectionError when there is none."""
    data = await reader.read()
    if not data:
        raise ConnectionResetError("no answer")
    head, _, body = data.partition(b"\r\n\r\n")
    return Reply(int(head.split()[1]), head.decode("latin-1"), body)


async def get(door: SandboxDoor, url: str, *, token: str = TOKEN, call: str = "") -> Reply:
    """GET over a connection of its own to the sidecar."""
    reader, writer = await asyncio.open_unix_connection(sock=door.connect(digest(token), call))
    try:
        writer.write(request(url, token))
        return await reply(reader)
    finally:
        writer.close()


async def get_at(path: Path, url: str, token: str | None = TOKEN) -> Reply:
    """GET through a Unix socket, as a program in a sandbox does."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(request(url, token))
        return await reply(reader)
    finally:
        writer.close()


async def suspend(pid: int) -> None:
    """Have a process do nothing more; returns once each of its threads stands still, which takes a moment."""
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(20):
        while not all(map(_stands_still, Path(f"/proc/{pid}/task").iterdir())):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.001)


def _stands_still(thread: Path) -> bool:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def processes(name: str) -> list[int]:
    """This process's own forkservers, or what they forked, of that name; not those of servers beside it."""
    forkservers = [pid for pid in children(os.getpid()) if name_of(pid) == _FORKSERVER]
    candidates = forkservers if name == _FORKSERVER else [pid for one in forkservers for pid in children(one)]
    return [pid for pid in candidates if name_of(pid) == name and is_alive(pid)]
