"""A real ``clawbox serve`` in a process of its own, as a user would start it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox_client import SyncClient, Tls

from tests.footprint import children

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLAWBOX = Path(sys.executable).with_name("clawbox")


@dataclass
class LiveServer:
    """A server that answers at ``address``."""

    home: Path
    """The folder that ``clawbox init`` made: config.toml, token, tools, audit."""
    port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """For ``grpc.insecure_channel``."""
        return f"127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        """The administrator's token."""
        return (self.home / "token").read_text().strip()

    def descendants(self) -> list[int]:
        """Process ids of everything that the server started and that lives, at any depth."""
        return _descendants(self.process.pid)

    def stop(self, sig: signal.Signals = signal.SIGTERM, timeout: float = 40) -> int:
        """Send a signal and wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in children(pid):
        found += [child, *_descendants(child)]
    return found


def free_ports() -> tuple[int, int]:
    """Two TCP ports of the loopback interface that nobody listens on now.

    None of those that the kernel gives whoever asks for any (ip(7), ip_local_port_range): between here and
    the server's start somebody may.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    choice = range(first // 2, first) if first > 16_384 else (0,)
    with contextlib.ExitStack() as held:
        found: list[int] = []
        while len(found) < 2:
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", random.choice(choice)))
                found.append(probe.getsockname()[1])
        return found[0], found[1]


def init(home: Path, settings: str = "") -> Path:
    """``clawbox init`` in ``home``, plus ``settings`` (TOML) at the end; returns the settings file."""
    if not (home / "config.toml").exists():
        subprocess.run([CLAWBOX, "init", "--dir", home], check=True, stdout=subprocess.DEVNULL)
    config = home / "config.toml"
    if settings:
        config.write_text(config.read_text() + "\n" + settings)
    return config


@contextlib.contextmanager
def running(
    home: Path,
    settings: str = "",
    *,
    wrapper: Sequence[str] = (),
    tls: Tls | None = None,
    **environment: str,
) -> Iterator[LiveServer]:
    """A server that says SERVING; stopped at the end, by SIGKILL when it will not stop otherwise.

    ``wrapper`` is a command that ends by executing its arguments, in the same process. ``tls`` is how to
    ask a server with TLS whether it serves.
    """
    config = init(home, settings)
    port, metrics_port = free_ports()
    env = {
        **os.environ,
        "CLAWBOX_PORT": str(port),
        "CLAWBOX_METRICS__PORT": str(metrics_port),
        # Each has its own: of two with one folder, the second would serve no containers.
        "CLAWBOX_CONTAINERS__WORKSPACE_ROOT": str(home / "workspaces"),
        **environment,
    }
    log = home / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*wrapper, CLAWBOX, "serve", "--config", config], env=env, stdout=output, stderr=output
        )
    server = LiveServer(home, port, metrics_port, process, log)
    try:
        wait_until_serving(server, tls=tls)
        yield server
    finally:
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def wait_until_serving(server: LiveServer, seconds: float = 60, tls: Tls | None = None) -> None:
    """Wait until Sandbox says SERVING; raises RuntimeError with the server's log when it does not."""
    deadline = time.monotonic() + seconds
    # Asked before there is anybody to answer, gRPC would wait a second before it asks again.
    while server.process.poll() is None and time.monotonic() < deadline and not _listens(server.port):
        time.sleep(0.01)
    with SyncClient(server.address, tls=tls) as client:
        while server.process.poll() is None and time.monotonic() < deadline:
            if client.is_serving("clawbox.v1.Sandbox"):
                return
            time.sleep(0.01)
    raise RuntimeError(f"the server did not come up:\n{server.log.read_text()}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
