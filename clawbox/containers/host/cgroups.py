"""The cgroups of containers, and those inside them that hold one exec each (docs/security.md, 86).

Whatever a process does (fork twice, setsid, execve with an empty environment), what it starts is in its
cgroup, and is killed with it. Both versions, and the names that both drivers give (``…/ID`` and
``…/docker-ID.scope``).

On version 1 the hierarchy of the freezer is used, and has to be mounted: without freezing, a program that
forks faster than it is killed would never end. Limits are the container's: an exec's cgroup has none of its
own, in no hierarchy, and on version 2 no controllers, so that it may be below one that has processes.

Paths are the host's: of ``/proc/PID/cgroup``, below where this server sees the hierarchy mounted. The methods
that are not coroutines block, :meth:`ChildCgroup.add` for some milliseconds.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clawbox.containers.host.processes import PROC, ProcessGoneError, check_same, open_process, send_signal
from clawbox.containers.mounts import is_within

_PREFIX: Final = "clawbox-"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_ENGINE_ID: Final = re.compile(r"[0-9a-f]{64}")
_DEADLINE: Final = 10.0
_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.05


class CgroupError(Exception):
    """A container's cgroup is not where it must be, or does not do what it must."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where one of the machine's hierarchies of cgroups is."""

    version: int
    """1: the freezer's, 2: the unified one."""
    mount: Path
    root: str = "/"
    """Of the hierarchy, what is seen at :attr:`mount`."""

    def folder(self, path: str) -> Path:
        """A path of ``/proc/PID/cgroup`` as a folder. Raises :class:`CgroupError` for one not seen here."""
        if ".." in path.split("/") or not is_within(path, self.root):
            raise CgroupError(f"the cgroup {path!r} is not visible to this server")
        return self.mount / path.removeprefix(self.root).lstrip("/")

    def path_of(self, pid: int) -> str:
        """Where a process is. Raises :class:`ProcessGoneError`, and :class:`CgroupError` for nowhere."""
        try:
            lines = (PROC / f"{pid}/cgroup").read_text("utf-8", errors="surrogateescape").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessGoneError(pid) from None
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if self.version == 1 and "freezer" in controllers.split(","):
                return path
            if self.version == 2 and not controllers:
                return path
        raise CgroupError(f"process {pid} is in no cgroup of version {self.version}")


class Cgroup:
    """One container's."""

    def __init__(self, hierarchy: Hierarchy, path: str) -> None:
        self.hierarchy = hierarchy
        self.path = path
        """As ``/proc/PID/cgroup`` has it."""
        self.folder = hierarchy.folder(path)

    @classmethod
    def of(cls, pid: int, engine_id: str) -> Cgroup:
        """The cgroup of the container ``engine_id`` (64 hex digits), in which its process ``pid`` is.

        Raises :class:`CgroupError` when the process's does not name that container or cannot be seen, and
        :class:`~clawbox.containers.host.processes.ProcessGoneError`.
        """
        if _ENGINE_ID.fullmatch(engine_id) is None:
            raise CgroupError(f"{engine_id!r} is not the id of a container")
        hierarchy = find_hierarchy()
        path = hierarchy.path_of(pid)
        names = re.compile(rf"(?:[a-z]+-)?{engine_id}(?:\.scope)?")
        parts = path.split("/")
        at = [number for number, part in enumerate(parts) if names.fullmatch(part)]
        if len(at) != 1:
            raise CgroupError(f"process {pid} is in {path!r}, which is not the container's cgroup")
        found = cls(hierarchy, "/".join(parts[: at[0] + 1]))
        if not found.folder.is_dir():
            raise CgroupError(f"the cgroup {path!r} is not visible to this server")
        return found

    def holds(self, pid: int) -> bool:
        """Whether a process is in the container; False for one that is gone."""
        try:
            return is_within(self.hierarchy.path_of(pid), self.path)
        except (ProcessGoneError, CgroupError):
            return False

    def pids(self) -> list[int]:
        """Every process in it, those in the cgroups of execs too."""
        return sorted(pid for folder, _, _ in os.walk(self.folder) for pid in _read_pids(Path(folder)))

    def child(self, name: str) -> ChildCgroup:
        """The cgroup of an exec, made by :meth:`ChildCgroup.make`. Raises ValueError for another name."""
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} cannot name a cgroup")
        return ChildCgroup(self, name)

    def children(self) -> list[ChildCgroup]:
        """Those of execs that are there, such as an earlier server left."""
        try:
            names = [entry.name for entry in self.folder.iterdir() if entry.name.startswith(_PREFIX)]
        except FileNotFoundError:
            return []
        return [ChildCgroup(self, name.removeprefix(_PREFIX)) for name in sorted(names)]


class ChildCgroup:
    """One exec's: inside its container's."""

    def __init__(self, parent: Cgroup, name: str) -> None:
        self.parent = parent
        self.name = name
        self.folder = parent.folder / f"{_PREFIX}{name}"
        self._path = f"{parent.path}/{_PREFIX}{name}"

    def make(self) -> None:
        """Make it; nothing happens when it is there. Raises :class:`CgroupError`."""
        try:
            self.folder.mkdir(0o755, exist_ok=True)
        except OSError as error:
            raise CgroupError(f"no cgroup for an exec: {error.strerror}") from error

    def add(self, pid: int) -> None:
        """Make it where it is not there, and move a process into it that is in the container.

        Threads and all; what it starts from then on is in it, too. Raises :class:`CgroupError` for a process
        that is not the container's, and :class:`~clawbox.containers.host.processes.ProcessGoneError`.
        """
        pidfd = open_process(pid)
        try:
            self._add(pid, pidfd)
        finally:
            os.close(pidfd)

    def _add(self, pid: int, pidfd: int) -> None:
        inside = self.parent.holds(pid)
        check_same(pid, pidfd)
        if not inside:
            raise CgroupError(f"process {pid} is not in the container")
        self.make()
        try:
            (self.folder / "cgroup.procs").write_text(f"{pid}\n", "ascii")
        except ProcessLookupError:
            raise ProcessGoneError(pid) from None
        except OSError as error:
            raise CgroupError(f"process {pid} cannot be moved: {error.strerror}") from error
        check_same(pid, pidfd)
        if not self.holds(pid):
            raise CgroupError(f"process {pid} was not moved")

    def holds(self, pid: int) -> bool:
        """Whether a process is in it; False for one that is gone."""
        try:
            return is_within(self.parent.hierarchy.path_of(pid), self._path)
        except (ProcessGoneError, CgroupError):
            return False

    def pids(self) -> list[int]:
        """Every process in it."""
        return _read_pids(self.folder)

    def signal(self, number: int) -> None:
        """Send every process in it a signal; one that is started meanwhile may get none."""
        for pid in self.pids():
            with suppress(ProcessGoneError):
                pidfd = open_process(pid)
                try:
                    # Looked at after it is held: a number that became another process's is not sent to.
                    if self.holds(pid):
                        check_same(pid, pidfd)
                        send_signal(pidfd, number)
                finally:
                    os.close(pidfd)

    async def kill(self, timeout: float = _DEADLINE) -> None:  # noqa: ASYNC109 - raises an error of its own
        """Kill everything in it, however it forks and whatever it ignores, and wait until all of it is dead.

        Nothing happens when it is not there. Nothing dies in a container that the engine has paused, on
        version 1; raises :class:`CgroupError` when that, or anything else, takes longer than ``timeout``
        seconds: it is to be called again then.
        """
        until = time.monotonic() + timeout
        pause = _PAUSE
        try:
            while self.folder.exists():
                await asyncio.to_thread(self._kill_once)
                if not self.pids():
                    return
                if time.monotonic() >= until:
                    raise CgroupError(f"{len(self.pids())} processes of an exec outlive their signal to die")
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            # Whatever happened, and when this is cancelled, too: never left frozen.
            self._thaw()

    def remove(self) -> None:
        """Remove it; nothing happens when it is not there. Raises CgroupError while it has processes."""
        try:
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise CgroupError(f"the cgroup of an exec cannot be removed: {error.strerror}") from error

    def _kill_once(self) -> None:
        if self.parent.hierarchy.version == 2:
            if _write(self.folder / "cgroup.kill", "1"):
                return
            # Before Linux 5.14. A frozen process dies of SIGKILL here.
            _write(self.folder / "cgroup.freeze", "1")
            self.signal(signal.SIGKILL)
            return
        # Frozen, nothing is forked; and what was forked until then is killed before anything goes on.
        _write(self.folder / "freezer.state", "FROZEN")
        until = time.monotonic() + _PAUSE
        while _read(self.folder / "freezer.state") == "FREEZING" and time.monotonic() < until:
            time.sleep(_PAUSE / 10)
        self.signal(signal.SIGKILL)
        self._thaw()

    def _thaw(self) -> None:
        if self.parent.hierarchy.version == 2:
            _write(self.folder / "cgroup.freeze", "0")
        else:
            _write(self.folder / "freezer.state", "THAWED")


def find_hierarchy() -> Hierarchy:
    """The hierarchy in which containers' processes are found: version 1's freezer, else version 2.

    Raises :class:`CgroupError` when this server sees neither.
    """
    unified: Hierarchy | None = None
    for line in (PROC / "self/mountinfo").read_text("utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        _, _, _, root, mount, *_ = left.split()
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup" and "freezer" in options.split(","):
            return Hierarchy(1, Path(mount), root)
        if kind == "cgroup2" and unified is None:
            unified = Hierarchy(2, Path(mount), root)
    if unified is None:
        raise CgroupError("no hierarchy of cgroups is mounted here, or of version 1 none with the freezer")
    controllers = (unified.mount / "cgroup.controllers").read_text("ascii").split()
    if "pids" not in controllers:
        raise CgroupError("cgroups of version 1 are in use, and their freezer is not mounted")
    return unified


def _read_pids(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text("ascii").splitlines()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError as error:
        if error.errno in {errno.ENODEV, errno.EOPNOTSUPP}:  # removed meanwhile; threaded
            return []
        raise


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text("ascii").strip()
    return ""


def _write(path: Path, text: str) -> bool:
    """Whether there was such a file, and it took the text."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, text.encode("ascii"))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
