"""What a live server holds: processes, descriptors, files, places. For tests that nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.caller import Caller
    from tests.live import LiveServer


@dataclass(frozen=True)
class Footprint:
    """What is there at one moment."""

    processes: tuple[tuple[str, int], ...]
    """Name and number of the server's descendants, however deep."""
    descriptors: tuple[tuple[str, int], ...]
    """Kind (or path) and number of what the server has open."""
    files: tuple[str, ...]
    """Everything in the tool folder, staging area included, and the names that the record of owners has."""
    running: int
    queued: int


def footprint(server: LiveServer, caller: Caller) -> Footprint:
    """What the server holds now. ``caller`` needs the scope ``system:read``."""
    status = caller.status()
    return Footprint(
        processes=_counted(name_of(pid) for pid in server.descendants()),
        descriptors=_counted(_descriptors(server.process.pid)),
        files=_files(server.home / "tools"),
        running=status.running_executions,
        queued=status.queued_executions,
    )


def forkserver(server: LiveServer) -> int | None:
    """The process that forks the workers; None while there is none that is ready."""
    found = (pid for pid in children(server.process.pid) if name_of(pid).startswith("clawbox-worker"))
    return next((pid for pid in found if is_alive(pid)), None)


def workers(server: LiveServer) -> list[int]:
    """The processes that run tools, or are ready to."""
    parent = forkserver(server)
    return [] if parent is None else [pid for pid in children(parent) if is_alive(pid)]


class BusyWorkers:
    """Tells which workers run endless loops, of runs that begin after this was made."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        # A worker that stays has used the processor for earlier runs, too.
        self._before = {pid: _seconds_used(pid) for pid in workers(server)}

    def __call__(self) -> list[int]:
        """Those that have used the processor since then for longer than a worker needs to start."""
        return [pid for pid in workers(self._server) if _seconds_used(pid) - self._before.get(pid, 0.0) > 0.3]


@contextlib.contextmanager
def held(server: LiveServer) -> Iterator[None]:
    """No run gets on meanwhile: neither to its end, nor does one begin."""
    eventually(lambda: forkserver(server) is not None)
    parent = forkserver(server)
    assert parent is not None
    stopped = [parent]
    try:
        os.kill(parent, signal.SIGSTOP)
        eventually(lambda: _state_of(parent) == "T")  # from here on there is no other worker
        for pid in workers(server):
            stopped.append(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _seconds_used(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Process ids of a process's own children; none once it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
                found += map(int, (task / "children").read_text().split())
    return found


def name_of(pid: int) -> str:
    """A process's name; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return _state_of(pid) not in {"", "Z", "X"}


def _state_of(pid: int) -> str:
    """What the kernel says that a process does (proc(5)); empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def eventually(
    condition: Callable[[], object], seconds: float = 30, explain: Callable[[], object] = lambda: ""
) -> None:
    """Wait until ``condition`` is true; ``explain`` tells what was found when it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not become true within {seconds} s: {explain()}")
        time.sleep(0.01)


def _files(folder: Path) -> tuple[str, ...]:
    owners = folder / ".clawbox" / "owners.json"
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path != owners]
    if owners.exists():
        found += [f"owner of {name}" for name in json.loads(owners.read_text())["tools"]]
    return tuple(sorted(found))


def _counted(names: object) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(names).items()))  # type: ignore[call-overload]


def _descriptors(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            kind, _, rest = target.partition(":")
            found.append(kind if rest.startswith("[") and kind != "anon_inode" else target)
    return found
