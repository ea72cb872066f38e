"""``clawbox egress serve`` as people run it: a process, curl through it, an upstream with TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clawbox.audit import verify
from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.vault import MasterKey, Vault
from tests.egress_world import TestCa, Upstream, answers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "cd" * 32
SECRET = "sk-live-0123456789abcdef0123"


@dataclass
class Served:
    """One running command."""

    process: asyncio.subprocess.Process
    home: Path
    said: dict[str, object]
    """The line on stdout."""

    @property
    def proxy(self) -> str:
        addresses = self.said["addresses"]
        assert isinstance(addresses, list)
        return f"http://x:{self.said['token']}@{addresses[0]}"

    async def stop(self, which: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Exit code and what was on stderr."""
        self.process.send_signal(which)
        _, err = await asyncio.wait_for(self.process.communicate(), 30)
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()


@dataclass
class World:
    home: Path
    ca: TestCa
    upstream: Upstream

    @property
    def url(self) -> str:
        return f"https://localhost:{self.upstream.port}"

    @contextlib.asynccontextmanager
    async def serve(self, *args: str) -> AsyncIterator[Served]:
        process = await self.spawn("egress", "serve", "--grant", "grant.toml", "--json", *args)
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 60)
            if not line:
                _, err = await process.communicate()
                raise AssertionError(err.decode())
            yield Served(process, self.home, json.loads(line))
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def spawn(self, *args: str, stdin: bytes = b"") -> asyncio.subprocess.Process:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CLAWBOX_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "clawbox", *args),
            cwd=self.home,
            env={
                **environ,
                "HOME": str(self.home),
                "CLAWBOX_MASTER_KEY": KEY,
                "https_proxy": "http://nowhere",
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Shells start what runs in the background, these tests for one, with SIGINT ignored.
            preexec_fn=_heed_interrupts,
        )
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        return process


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A home with a grant for an upstream, and a credential for it."""
    home, ca = tmp_path / "home", TestCa()
    (home / ".clawbox").mkdir(parents=True, mode=0o700)
    async with Upstream({"/echo": answers.echo}, tls=ca.server_context("localhost")) as upstream:
        (home / "upstream.pem").write_text(ca.pem)
        (home / "grant.toml").write_text(
            f"""
            [grant]
            network = [{{ host = "localhost", ports = [{upstream.port}], path_prefixes = ["/echo"] }}]
            credentials = ["local"]
            trusted_networks = ["127.0.0.0/8", "::1/128"]
            upstream_ca = ["upstream.pem"]
            """
        )
        Vault(home / ".clawbox/credentials.enc", MasterKey(KEY)).put(
            Credential("local", Secret(SECRET), ("localhost",), ports=(upstream.port,))
        )
        yield World(home, ca, upstream)


async def curl(*args: str) -> tuple[int, str]:
    """Exit code and what came back, head included."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--include", "--max-time", "30", *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"]},
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_curl_through_it_with_a_credential_that_it_cannot_see(world):
    async with world.serve("--listen", "127.0.0.1:0", "--ca-out", "ca.pem", "--audit-dir", "audit") as served:
        trust = ("--proxy", served.proxy, "--cacert", str(world.home / "ca.pem"))
        assert served.said["ca"] == str(world.home / "ca.pem")

        code, reply = await curl(*trust, f"{world.url}/echo?q=1")
        assert code == 0
        assert "HTTP/1.1 200" in reply
        [seen] = world.upstream.seen
        assert seen.header("authorization") == f"Bearer {SECRET}"
        assert seen.header("proxy-authorization") is None
        assert SECRET not in reply  # the upstream said it, and it was taken out

        code, reply = await curl(*trust, f"{world.url}/other")
        assert (code, "HTTP/1.1 403" in reply) == (0, True)
        assert "X-Clawbox-Error: path_not_allowed" in reply
        code, reply = await curl(*trust, "https://evil.example.com/")
        assert code != 0
        assert "403" in reply
        code, reply = await curl("--proxy", served.proxy.replace("x:", "x:not"), f"{world.url}/echo")
        assert "407" in reply
        assert len(world.upstream.seen) == 1

        environ = Path(f"/proc/{served.process.pid}/environ").read_bytes()  # noqa: ASYNC240
        assert KEY.encode() not in environ

        code, err = await served.stop()
    assert code == 0
    assert "Traceback" not in err
    assert SECRET not in err
    assert f"token      {served.said['token']}" in err
    assert err.endswith("clawbox: stopped.\n")
    assert " egress allowed operator " in err
    assert "reason=path_not_allowed" in err
    assert "reason=host_not_allowed" in err
    verdict = verify(world.home / "audit")
    assert verdict.ok
    rows = [json.loads(line) for line in (world.home / "audit/audit.jsonl").read_text().splitlines()]
    egress = [(row["decision"], row["fields"].get("host")) for row in rows if row["kind"] == "egress"]
    assert ("allowed", "localhost") in egress
    assert ("denied", "evil.example.com") in egress


async def test_a_unix_socket_is_this_users_and_goes_with_the_command(world):
    path = world.home / "proxy.sock"
    (world.home / "token").write_text("a-token-of-enough-characters\n")
    async with world.serve("--socket", "proxy.sock", "--token-file", "token") as served:
        assert served.said == {
            "addresses": [],
            "sockets": [str(path)],
            "ca": served.said["ca"],
            "token": None,
        }
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        header = "Proxy-Authorization: Bearer a-token-of-enough-characters"
        code, reply = await curl(
            *("--unix-socket", str(path), "-H", header, f"http://localhost/{world.url}/echo")
        )
        assert (code, "HTTP/1.1 200" in reply) == (0, True), reply
        assert world.upstream.seen[0].header("authorization") == f"Bearer {SECRET}"
        code, err = await served.stop(signal.SIGTERM)
    assert code == 0
    assert "a-token-of-enough-characters" not in err
    assert not path.exists()
    assert not Path(str(served.said["ca"])).exists()  # noqa: ASYNC240


async def test_the_ca_is_the_same_the_next_time(world):
    made = []
    for name in ("one.pem", "two.pem"):
        async with world.serve("--listen", "[::1]:0", "--ca-out", name) as served:
            await served.stop()
        made.append((world.home / name).read_text())
    assert made[0] == made[1]
    assert "PRIVATE" not in made[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "nowhere to listen"),
        (("--listen", "0.0.0.0:0"), "the network would see the token"),
        (("--listen", "nonsense"), "not ADDR:PORT"),
        (("--listen", "127.0.0.1:70000"), "not ADDR:PORT"),
        (("--listen", "127.0.0.1:0", "--token-file", "none"), "none: No such file"),
        (("--listen", "127.0.0.1:0", "--token-file", "grant.toml"), "a token is 16 or more"),
        (("--socket", "grant.toml"), "there is something else"),
        (("--listen", "127.0.0.1:{taken}"), "Address already in use"),
    ],
)
async def test_what_cannot_be_served_is_one_line(world, args, said):
    args = [arg.format(taken=world.upstream.port) for arg in args]
    process = await world.spawn("egress", "serve", "--grant", "grant.toml", *args)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert out == b""
    assert said in err.decode()
    assert err.count(b"\n") == 1


async def test_a_credential_that_is_replaced_is_used_from_then_on(world):
    rotated = "sk-live-fedcba9876543210fedc"
    async with world.serve("--listen", "127.0.0.1:0", "--ca-out", "ca.pem") as served:
        trust = ("--proxy", served.proxy, "--cacert", str(world.home / "ca.pem"))
        await curl(*trust, f"{world.url}/echo")
        process = await world.spawn(
            *("creds", "add", "--name", "local", "--domain", "localhost"),
            *("--port", str(world.upstream.port)),
            stdin=rotated.encode(),
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err
        assert b"replaced" in out
        async with asyncio.timeout(30):
            while True:  # the file is watched, and the first request after may be one too early
                _, reply = await curl(*trust, f"{world.url}/echo")
                if world.upstream.seen[-1].header("authorization") == f"Bearer {rotated}":
                    break
        assert rotated not in reply
        # What it was before is a secret still.
        code, reply = await curl(*trust, f"{world.url}/echo?q={SECRET}")
        assert (code, "X-Clawbox-Error: leak_detected" in reply) == (0, True)
        await served.stop()
    values = [seen.header("authorization") for seen in world.upstream.seen]
    assert values == sorted(
        values, key=lambda value: value != f"Bearer {SECRET}"
    )  # never back, never without


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
async def test_it_stops_before_it_serves_when_it_is_asked_to(world, asked):
    process = await world.spawn("egress", "serve", "--grant", "grant.toml", "--socket", "proxy.sock")
    path = world.home / "proxy.sock"
    try:
        async with asyncio.timeout(60):
            while not path.exists():  # noqa: ASYNC110 - it listens long before it serves
                await asyncio.sleep(0.01)
            process.send_signal(asked)
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err.decode()
    assert not path.exists()


async def test_what_programs_trust_is_in_files_of_this_user_whoever_was_there_before(world):
    """Another user of a shared folder could have put links or files of his own there."""
    victim = world.home / "victim"
    victim.write_text("precious")
    (world.home / "env").mkdir(mode=0o777)
    for planted in ("ca.pem", "env/ca.pem", "env/env.sh"):
        (world.home / planted).symlink_to(victim)
    serve = ("--listen", "127.0.0.1:0", "--ca-out", "ca.pem", "--env-dir")
    async with world.serve(*serve, "env") as served:
        assert victim.read_text() == "precious"
        assert (world.home / "env").stat().st_mode & 0o777 == 0o700
        for written in ("ca.pem", "env/ca.pem", "env/env.sh"):
            assert stat.S_ISREG((world.home / written).lstat().st_mode)
        assert str(served.said["token"]) in (world.home / "env/env.sh").read_text()
        await served.stop()
    (world.home / "elsewhere").symlink_to(world.home / "env")
    process = await world.spawn("egress", "serve", "--grant", "grant.toml", *serve, "elsewhere")
    _, err = await process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in err.decode()
