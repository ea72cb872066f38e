"""A Docker engine of the tests' own: everything it has is in one folder, and all of it goes.

It needs no network of its own (no bridge, no firewall rules), so that it starts beside any other engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.engine.api import EngineApi, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_SECONDS = 60.0
STOP_SECONDS = 60.0
_CONTAINERD_PID = "exec/containerd/containerd.pid"
_CGROUPS = Path("/sys/fs/cgroup")


class EngineMissingError(Exception):
    """There is no engine here, and none can be started: says why."""


class PrivateEngine:
    """``with PrivateEngine(config) as engine``: started, and at the end gone with all that it ran.

    ``config`` is what its configuration file says, such as ``{"runtimes": …}``. In between it may be stopped
    or killed and started again: it comes back with the same folder, socket, images and containers.
    Its calls block: whoever has an event loop makes them in a thread.
    """

    def __init__(self, config: Mapping[str, object] | None = None) -> None:
        self._config = dict(config or {})
        self._process: subprocess.Popen[bytes] | None = None
        # Short: the path of a socket has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="clawbox-engine-"))
        self.url = f"unix://{self.folder}/docker.sock"
        self.api = EngineApi(self.url)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> str:
        """The last that it said."""
        try:
            return (self.folder / "log").read_text(errors="replace")[-4000:]
        except FileNotFoundError:
            return ""

    @property
    def pid(self) -> int:
        """Of the daemon that runs."""
        assert self._process is not None, "it is not started"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers. Raises EngineMissingError when it cannot."""
        assert self._process is None, "it is started already"
        program = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            raise EngineMissingError("dockerd is not installed (on Debian and Ubuntu: apt install docker.io)")
        if os.geteuid() != 0:
            raise EngineMissingError("dockerd starts as root alone")
        config = self.folder / "daemon.json"
        config.write_text(json.dumps(self._config))
        # What was killed leaves these; a daemon would wait for the containerd of that id, be it a zombie.
        for left in ("pid", "docker.sock", _CONTAINERD_PID):
            (self.folder / left).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            # In our process group: whoever ends the tests as a whole, by signal, ends this too.
            self._process = subprocess.Popen(
                [
                    program,
                    *("--config-file", config, "--host", self.url, "--pidfile", self.folder / "pid"),
                    *("--data-root", self.folder / "data", "--exec-root", self.folder / "exec"),
                    *(
                        "--exec-opt",
                        "native.cgroupdriver=cgroupfs",
                        "--cgroup-parent",
                        f"/{self.folder.name}",
                    ),
                    *("--iptables=false", "--bridge=none"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.api.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log
                self.kill()
                raise EngineMissingError(f"dockerd does not start:\n{said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Have it end as an operator would, its containers first; nothing when it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the daemon and its containerd: its containers live on until it is started again."""
        self._end(signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int((self.folder / _CONTAINERD_PID).read_text()), signal.SIGKILL)

    def close(self) -> None:
        """End it and all that it ran, and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            # At once: asked to stop, they would have ten seconds each.
            with contextlib.suppress(OSError, EngineError):
                for container in self.api.container_ids():
                    self.api.remove_container(container)
        self.stop()
        self._kill_what_is_left()
        self._unmount()
        self._remove_cgroups()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, sig: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sig)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def leftovers(self) -> list[str]:
        """Processes, mounts, control groups and files of this engine that are there, in words."""
        return [
            *(f"process {pid}" for pid in self._processes()),
            *(f"mount {mount}" for mount in self._mounts()),
            *(f"control group {group}" for group in self._cgroups()),
            *([f"folder {self.folder}"] if self.folder.exists() else []),
        ]

    def _kill_what_is_left(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while (left := self._processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _processes(self) -> list[int]:
        """What names its folder as an argument (daemons, shims), and what is in its control groups."""
        found = set[int]()
        ours = os.fsencode(self.folder) + b"/"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if ours in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                        found.add(int(entry.name))
        for group in self._cgroups():
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
        return sorted(found)

    def _cgroups(self) -> list[Path]:
        """The deepest first."""
        roots = [_CGROUPS / self.folder.name, *_CGROUPS.glob(f"*/{self.folder.name}")]
        return [
            Path(at)
            for root in roots
            if root.is_dir() and not root.parent.is_symlink()
            for at, _, _ in os.walk(root, topdown=False)
        ]

    def _remove_cgroups(self) -> None:
        for group in self._cgroups():
            with contextlib.suppress(OSError):
                group.rmdir()

    def _mounts(self) -> list[str]:
        """The last mounted first."""
        return [path for path in _mount_points() if Path(path).is_relative_to(self.folder)][::-1]

    def _unmount(self) -> None:
        for path in self._mounts():
            subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)


def _mount_points() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield line.split()[4].encode().decode("unicode_escape")
