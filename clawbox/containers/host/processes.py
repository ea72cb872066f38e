"""Processes as the kernel knows them: held by pidfds, described by proc(5).

A pid alone is never acted on: it is another process's as soon as the first has ended.
"""

from __future__ import annotations

import os
import re
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PROC: Final = Path("/proc")
NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
"""Those that a container has of its own."""
_PID: Final = re.compile(r"^Pid:\t(-?[0-9]+)$", re.MULTILINE)
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


class ProcessGoneError(Exception):
    """The process has ended, or another one has its number now."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} is gone")
        self.pid = pid


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What ``/proc/PID/status`` says of a process."""

    parent: int
    uids: tuple[int, ...]
    """Real, effective, saved and file system's."""
    gids: tuple[int, ...]
    groups: frozenset[int]
    capabilities: Mapping[str, int]
    """``CapInh``, ``CapPrm``, ``CapEff``, ``CapBnd`` and ``CapAmb``, as bit masks."""
    no_new_privileges: bool
    seccomp: int
    """0: none, 1: strict, 2: by a filter."""


def open_process(pid: int) -> int:
    """A pidfd (pidfd_open(2)), the caller's to close. Raises :class:`ProcessGoneError`."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise ProcessGoneError(pid) from None


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def check_same(pid: int, pidfd: int) -> None:
    """Check that ``pid`` is the number of the process that ``pidfd`` holds, and that it still runs.

    What was read in ``/proc/PID`` before this returns was therefore its own. Raises
    :class:`ProcessGoneError`.
    """
    found = _PID.search((PROC / f"self/fdinfo/{pidfd}").read_text("ascii"))
    if found is None or int(found[1]) != pid or has_ended(pidfd):
        raise ProcessGoneError(pid)


def send_signal(pidfd: int, number: int) -> None:
    """Send a signal; nothing happens when the process has ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def status(pid: int) -> ProcessStatus:
    """How a process is. Raises :class:`ProcessGoneError`."""
    try:
        lines = (PROC / f"{pid}/status").read_text("utf-8", errors="replace").split("\n")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGoneError(pid) from None
    # A process chooses its name; the kernel escapes line feeds in it (proc(5)).
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return ProcessStatus(
        parent=int(fields["PPid"][0]),
        uids=tuple(int(number) for number in fields["Uid"]),
        gids=tuple(int(number) for number in fields["Gid"]),
        groups=frozenset(int(number) for number in fields["Groups"]),
        capabilities={name: int(fields[name][0], 16) for name in _CAPABILITIES},
        no_new_privileges=fields["NoNewPrivs"] == ["1"],
        seccomp=int(fields["Seccomp"][0]),
    )


def executable(pid: int) -> tuple[int, int] | None:
    """Device and inode of what a process executes; None: it has ended."""
    try:
        found = (PROC / f"{pid}/exe").stat()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return found.st_dev, found.st_ino


def namespaces(pid: int | str) -> dict[str, tuple[int, int]]:
    """A process's namespaces by name, those of :data:`NAMESPACES` that this kernel has.

    Raises :class:`ProcessGoneError`.
    """
    found = {}
    for name in NAMESPACES:
        try:
            facts = (PROC / f"{pid}/ns/{name}").stat()
        except FileNotFoundError:
            if not (PROC / f"{pid}/ns/net").exists():
                raise ProcessGoneError(int(pid)) from None
            continue
        except ProcessLookupError:
            raise ProcessGoneError(int(pid)) from None
        found[name] = (facts.st_dev, facts.st_ino)
    return found
