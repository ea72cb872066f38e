"""One live server with containers for all tests here, who may call it, and what its containers may reach."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from clawbox_client import ClawboxError, LogChunk, SyncClient
from clawbox_client.v1 import containers_pb2_grpc

from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.vault import MasterKey, Vault
from tests.containers_world import containers_server, settings
from tests.egress_world import TestCa, Upstream, answers
from tests.live import init
from tests.programs.world import Loop, with_hosts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime, timedelta

    from clawbox_client import Container

    from tests.live import LiveServer

KEY = "c1" * 32
SECRET = "the-quick-brown-key-8341-of-a-test"
"""Of the credential ``api``. It looks like no credential: only who knows it can find it."""
NAMES = ("example.test", "api.example.test", "refused.example.test")
ALLOWED = NAMES[:2]
_PEOPLE = ("ann", "bob")
_TEMPLATES = """
[images.templates.everything]
image = "{image}"
description = "with everything that a template can say"
command = ["sh", "-c", "id -u; id -g; echo $0; sleep 1000", "of-the-template"]
network_allowlist = ["api.example.test"]
credentials = ["api"]
user = "4321:4322"
working_dir = "/srv/app"
home = "/workspace/home"
max_lifetime_ms = 900000

[images.templates.everything.resources]
timeout_ms = 600000
memory_mb = 64
cpu_shares = 512
cpu_millis = 1500
pids = 40
max_output_bytes = 4096

[images.templates.bare]
image = "{image}"

[container_policy]
network_allowlist = [{allowed}]
allowed_credentials = ["api"]
{policy}

[egress]
trusted_networks = ["127.0.0.0/8"]
upstream_ca = ["{home}/upstream.pem"]
{more}
"""


@dataclass(frozen=True)
class Outside:
    """What names lead to: one address of the loopback interface, with 443 and 80."""

    address: str
    ca: TestCa
    https: Upstream
    http: Upstream

    def prepare(self, folder: Path) -> list[str]:
        """Puts into a server's folder what it needs to get there; returns the wrapper to begin it with."""
        (folder / "upstream.pem").write_text(self.ca.pem)
        Vault(folder / "credentials.enc", MasterKey(KEY)).put(
            Credential("api", Secret(SECRET), ("api.example.test",), ports=(443, 80), plain_http=True)
        )
        return with_hosts(folder, NAMES, self.address)


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """The servers that the names of :data:`NAMES` lead to, until the end."""
    # Of its own, because the ports cannot be: another run may be on this machine.
    address = f"127.{random.randrange(16, 250)}.{random.randrange(256)}.{random.randrange(1, 250)}"
    loop, ca = Loop(), TestCa()
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        hello = answers.body(b"hello from example.test\n")
        routes = {"/": hello, "/reflect": answers.reflects("Authorization")}
        tls = ca.server_context(*NAMES)
        made = [Upstream(routes, tls=tls, host=address, port=443), Upstream(routes, host=address, port=80)]
        for upstream in made:
            loop.run(upstream.__aenter__())
            stack.callback(_close, loop, upstream)
        yield Outside(address, ca, *made)


def _close(loop: Loop, upstream: Upstream) -> None:
    loop.run(upstream.__aexit__(None, None, None))


@dataclass(frozen=True)
class World:
    """A server, and who calls it."""

    server: LiveServer
    outside: Outside
    image: str
    stub: containers_pb2_grpc.ContainersStub
    clients: dict[str, SyncClient]

    @property
    def ann(self) -> SyncClient:
        """A caller who may use containers and is no administrator."""
        return self.clients["ann"]

    @property
    def bob(self) -> SyncClient:
        """Another."""
        return self.clients["bob"]

    @property
    def admin(self) -> SyncClient:
        """The administrator."""
        return self.clients["admin"]

    def audit(self, kind: str) -> list[dict[str, Any]]:
        """Rows of the audit log."""
        lines = (self.server.home / "audit" / "audit.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    def as_(self, name: str) -> dict[str, Any]:
        """For calls of :attr:`stub`: somebody's token, and a deadline."""
        return {"metadata": (("authorization", f"Bearer {token(name)}"),), "timeout": 60}

    def clawbox(self, *args: str, data: bytes = b"", name: str = "ann") -> subprocess.CompletedProcess[str]:
        """The command line, as somebody."""
        return clawbox(self.server, *args, data=data, token=token(name))


def clawbox(
    server: LiveServer, *args: str, data: bytes = b"", token: str
) -> subprocess.CompletedProcess[str]:
    """The command line against a server."""
    done = subprocess.run(
        [sys.executable, "-m", "clawbox", *args],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("CLAWBOX_")},
            "CLAWBOX_TOKEN": token,
            "CLAWBOX_PORT": str(server.port),
        },
        input=data,
        capture_output=True,
        timeout=100,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def token(name: str) -> str:
    """The token of ``ann`` or ``bob``."""
    return f"{name}-token-0123456789abcdef"


def people(names: Sequence[str] = _PEOPLE) -> str:
    """TOML: tokens for containers alone."""
    return "\n".join(
        f'[[auth.tokens]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token(name).encode()).hexdigest()}"\n'
        'scopes = ["containers:read", "containers:write", "system:read"]\n'
        for name in names
    )


@contextlib.contextmanager
def running(
    home: Path,
    engine_url: str,
    image: str,
    reachable: Outside,
    *,
    containers: str = "max_containers = 40\nworkspace_max_bytes = 4_294_967_296",
    allowed: Sequence[str] = ALLOWED,
    pull_policy: str = "never",
    registry: str = "",
    policy: str = "",
) -> Iterator[World]:
    """A server on an engine, with ``image`` as its default and that of its templates.

    ``allowed`` is the operator's network_allowlist, ``policy`` what else is said in that section, and
    ``registry`` one whose images are allowed, too.
    """
    templates = _TEMPLATES.format(
        image=image,
        allowed=", ".join(f'"{host}"' for host in allowed),
        home=home,
        policy=policy,
        more=people(),
    )
    text = settings(home, engine_url, containers, f'default = "{image}"\n{templates}')
    text = text.replace('pull_policy = "never"', f'pull_policy = "{pull_policy}"')
    if registry:
        text = text.replace('allowed = ["', f'allowed = ["{registry}/", "', 1)
    init(home, text)
    wrapper = reachable.prepare(home)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            containers_server(
                home,
                engine_url,
                wrapper=wrapper,
                CLAWBOX_MASTER_KEY=KEY,
                CLAWBOX_SANDBOX__BUILTIN_TOOLS="false",
            )
        )
        channel = stack.enter_context(
            grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", 64 << 20)])
        )
        clients = {
            name: stack.enter_context(SyncClient(server.address, token=token(name))) for name in _PEOPLE
        }
        clients["admin"] = stack.enter_context(SyncClient(server.address, token=server.token))
        yield World(server, reachable, image, containers_pb2_grpc.ContainersStub(channel), clients)


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What the condition says once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
    return found


def refused(act: Callable[..., object], *args: Any, **options: Any) -> ClawboxError:
    """What a call is refused with."""
    with pytest.raises(ClawboxError) as caught:
        act(*args, **options)
    assert caught.value.reason, caught.value
    return caught.value


@contextlib.contextmanager
def container(client: SyncClient, **options: Any) -> Iterator[Container]:
    """A container for one test; without a command it holds."""
    if not options.get("command") and not options.get("template"):
        options["hold"] = options.get("hold", True)
    made = client.spawn(options.pop("task", "a test"), **options)
    try:
        yield made
    finally:
        with contextlib.suppress(ClawboxError):
            client.remove_container(made.container_id, force=True)


def between(earlier: datetime | None, later: datetime | None) -> timedelta:
    """How long it was."""
    assert earlier is not None
    assert later is not None
    return later - earlier


def logged(client: SyncClient, made: Container, **options: Any) -> bytes:
    """Everything that a container's program wrote so far."""
    with client.logs(made.container_id, deadline=30, **options) as pieces:
        return b"".join(piece.data for piece in pieces if isinstance(piece, LogChunk))


def mark() -> str:
    """A number of seconds to sleep that nobody else sleeps."""
    return str(secrets.randbelow(10**8) + 10**6)


def processes(word: str) -> list[str]:
    """Ids of processes of this machine, containers' included, with a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found
