"""A real server in a process of its own, and the arithmetic of the measurements."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox_client import SyncClient

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Server:
    """A server that answers at ``address`` to ``token``."""

    address: str
    token: str
    pid: int
    start_seconds: float
    """From starting the process until the health service says SERVING."""


@dataclass(frozen=True)
class Spread:
    """Samples in milliseconds, summed up."""

    p50: float
    p95: float
    low: float
    count: int

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        ordered = sorted(1000 * value for value in seconds)
        return cls(
            p50=statistics.median(ordered),
            p95=ordered[int(0.95 * (len(ordered) - 1))],
            low=ordered[0],
            count=len(ordered),
        )

    def __str__(self) -> str:
        return f"p50 {self.p50:.2f} ms, p95 {self.p95:.2f}, best {self.low:.2f} ({self.count} calls)"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None
    """None where there is no target."""


def spread_of(rates: list[float], unit: str) -> str:
    """Rates summed up, the best and the worst among them."""
    return f"{statistics.median(rates):.0f}{unit} ({min(rates):.0f} to {max(rates):.0f})"


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def server(folder: Path, settings: str = "") -> Iterator[Server]:
    """Starts ``clawbox serve`` with a configuration of its own, and stops it at the end.

    A folder that was used before goes on with the configuration, and all else, that it has; ``settings`` are
    TOML, added to a new one. Raises RuntimeError, with what the server wrote, when it does not come up within
    a minute.
    """
    home = folder / "clawbox"
    if not home.exists():
        subprocess.run([BIN / "clawbox", "init", "--dir", home], check=True, stdout=subprocess.DEVNULL)
        with (home / "config.toml").open("a") as config:
            config.write(settings)
    port = free_port()
    log_path = folder / "server.log"
    env = {
        **os.environ,
        "CLAWBOX_PORT": str(port),
        "CLAWBOX_METRICS__PORT": str(free_port()),
        "CLAWBOX_LOG_LEVEL": "warning",
    }
    with log_path.open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [BIN / "clawbox", "serve", "--config", home / "config.toml"], env=env, stderr=log, stdout=log
        )
        try:
            _wait_until_serving(process, f"127.0.0.1:{port}", log_path)
            token = (home / "token").read_text().strip()
            yield Server(f"127.0.0.1:{port}", token, process.pid, time.perf_counter() - began)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait_until_serving(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + 60

    def pause() -> None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not come up:\n{log.read_text()}")
        time.sleep(0.01)

    # A gRPC client that is refused tries again a second later, then 1.6: no measure of when a server is up.
    while not _listens(address):
        pause()
    with SyncClient(address) as client:
        while not client.is_serving("clawbox.v1.Sandbox"):
            pause()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def family(pid: int) -> list[int]:
    """The process and everything below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        children = (task / "children").read_text().split()
        for child in children:
            found += family(int(child))
    return found


def name_of(pid: int) -> str:
    """A process's name, as ``ps`` shows it."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def pss_mb(pid: int) -> float:
    """Proportional set size of one process in MB: shared pages are divided among their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("no Pss in smaps_rollup")


def cpu_seconds(pid: int) -> float:
    """Processor's time of one process so far, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_memory(pid: int) -> list[float]:
    """Proportional set size in MB of a server and each of its children, a second after it came up.

    By then the workers that started before the tools were loaded have been replaced.
    """
    time.sleep(1)
    return [pss_mb(process) for process in family(pid)]


def machine() -> str:
    """One line about the machine."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}"


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="clawbox-bench-") as name:
        yield Path(name)
