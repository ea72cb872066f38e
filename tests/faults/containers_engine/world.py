"""What these tests share: servers to be killed, an upstream that containers may reach, and ways to look."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clawbox_client import SyncClient
from clawbox_client.containers import Gap, LogChunk

from tests.containers_world import Leftovers
from tests.containers_world.server import settings, wait_for_containers
from tests.egress_world import answers
from tests.egress_world.upstream import Upstream
from tests.footprint import eventually, is_alive, name_of
from tests.live import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from clawbox_client.containers import Container

    from tests.engine import EngineApi
    from tests.live import LiveServer

FAST = {"CLAWBOX_SANDBOX__BUILTIN_TOOLS": "false", "CLAWBOX_SANDBOX__WORKERS": "1"}
LEAVE = {"CLAWBOX_SERVER__ON_SHUTDOWN": "leave"}
STEP_SECONDS = 60.0
"""How long any one thing that a test waits for may take."""


@dataclass(frozen=True)
class World:
    """One installation: the folder that ``clawbox init`` made, and the engine that it uses."""

    home: Path
    engine: EngineApi
    left: Leftovers

    @classmethod
    def at(cls, home: Path, engine: EngineApi) -> World:
        """In that folder, which need not be there."""
        return cls(home, engine, Leftovers(home, engine))

    @contextlib.contextmanager
    def server(
        self,
        containers: str = "max_containers = 60",
        more: str = "",
        *,
        serving: bool = True,
        wrapper: Sequence[str] = (),
        **environment: str,
    ) -> Iterator[LiveServer]:
        """A server; ``serving`` False: do not wait until it serves containers."""
        text = ""
        if not (self.home / "config.toml").exists():
            text = settings(self.home, self.engine.url, containers, more)
        variables: dict[str, Any] = {**FAST, **environment}
        with running(self.home, text, wrapper=wrapper, **variables) as server:
            if serving:
                wait_for_containers(server)
            yield server

    def nothing_left(self, *, output: Sequence[str] = ()) -> None:
        """Assert that no container, folder or mount is there; ``output``: ids whose output may be kept."""
        assert self.left.containers() == set()
        eventually(lambda: self.left.mounts() == [], STEP_SECONDS)
        assert self.left.folders() == sorted(f"output/{container_id}" for container_id in output)

    def run_folder(self, container_id: str) -> Path:
        """What the container sees at /run/clawbox."""
        return self.home / "containers" / container_id / "run"

    def facts(self, container: Container) -> dict[str, object]:
        """What the engine says of one."""
        found = self.engine.container(container.name)
        assert isinstance(found, dict)
        return found

    def pid(self, container: Container) -> int:
        """Of its first process."""
        state = self.facts(container)["State"]
        assert isinstance(state, dict)
        return int(state["Pid"])


def client_of(server: LiveServer) -> SyncClient:
    """The administrator of a server."""
    return SyncClient(server.address, token=server.token)


def kill(server: LiveServer) -> None:
    """SIGKILL; returns once everything that it had started is dead, too."""
    started = server.descendants()
    server.stop(signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, started)), STEP_SECONDS)


def state_of(client: SyncClient, container_id: str) -> str:
    """Its name, in lower case."""
    return client.get_container(container_id).state.name.lower()


def until_state(client: SyncClient, container_id: str, state: str) -> Container:
    """The container once it is in that state."""
    eventually(lambda: state_of(client, container_id) == state, STEP_SECONDS)
    return client.get_container(container_id)


def output(client: SyncClient, container_id: str, *, whole: bool = True) -> str:
    """What it wrote to stdout, as far as that is known; fails where a part is missing or comes twice.

    ``whole`` False: something may be missing at its end.
    """
    said = b""
    with client.logs(container_id, streams=["stdout"]) as events:
        for event in events:
            if not whole and isinstance(event, Gap):
                continue
            assert isinstance(event, LogChunk), event
            assert event.offset == len(said)
            said += event.data
    return said.decode()


def until_said(client: SyncClient, container_id: str, text: str) -> str:
    """Its output once that is in it."""
    eventually(lambda: text in output(client, container_id), STEP_SECONDS)
    return output(client, container_id)


def status_of(client: SyncClient, component: str) -> tuple[str, str]:
    """State and detail of a part of the server."""
    (found,) = [part for part in client.status().components if part.name == component]
    return found.state, found.detail


def processes_of(pid: int) -> set[int]:
    """All in the pid namespace of a process."""
    wanted = Path(f"/proc/{pid}/ns/pid").stat().st_ino
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "ns/pid").stat().st_ino == wanted:
                    found.add(int(entry.name))
    return found


def command_lines(pid: int) -> list[str]:
    """Of everything in the pid namespace of a process."""
    found = []
    for each in processes_of(pid):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{each}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
    return found


_THROUGH_SOCKET = """
import contextlib, ctypes, os, pathlib, socket, sys
pid, uid, url, token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
from base64 import b64encode
for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
    _, names, path = line.split(":", 2)
    with contextlib.suppress(OSError):
        group = pathlib.Path("/sys/fs/cgroup", names.removeprefix("name="), path.strip("/"))
        (group / "cgroup.procs").write_text("0")
libc = ctypes.CDLL(None, use_errno=True)
if libc.setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0):
    raise OSError(ctypes.get_errno(), "setns")
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
sock = socket.socket(socket.AF_UNIX)
sock.connect("/run/clawbox/proxy.sock")
login = b64encode(f"x:{token}".encode()).decode()
host = url.split("/")[2]
sock.sendall(f"GET {url} HTTP/1.1\\r\\nHost: {host}\\r\\nProxy-Authorization: Basic {login}\\r\\n"
             "Connection: close\\r\\n\\r\\n".encode())
answer = b""
while data := sock.recv(65536):
    answer += data
print(answer.decode(errors="replace"))
"""


def through_socket(pid: int, uid: int, url: str, token: str) -> str:
    """The answer to a request through the Unix socket where a container finds it, made as its user.

    Whoever asks is in its mount namespace and cgroups, so that no program for it has to be in the image.
    """
    command = [sys.executable, "-c", _THROUGH_SOCKET, str(pid), str(uid), url, token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_SECONDS, check=False)
    return done.stdout or done.stderr


class Host:
    """An upstream in a thread of its own, which answers everything with its path."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.upstream = Upstream(default=answers.body(b"from outside"))

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


def reaching(upstream: Upstream) -> str:
    """Settings (TOML) with which containers may reach an upstream on loopback."""
    return f"""
[container_policy]
network_allowlist = [{{ host = "127.0.0.1", ports = [{upstream.port}] }}]
[egress]
trusted_networks = ["127.0.0.0/8"]
"""


def sidecars(server: LiveServer) -> list[int]:
    """Pids of a server's sidecars that live."""
    return [pid for pid in server.descendants() if name_of(pid) == "clawbox-egress" and is_alive(pid)]


def lose_state(world: World) -> None:
    """Have nothing of what its server kept of containers."""
    for file in world.home.glob("state.db*"):
        file.unlink()
