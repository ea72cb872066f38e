"""Is a container what was asked for? Looked at before its gate opens (docs/security.md, 79).

An engine, a runtime or a setting of theirs that leaves out one hardening value, or a mount that is not the
file that was meant, is found here, while nothing of the image has run: its processes are the engine's init
and our gate, which waits.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from clawbox.containers.host.processes import (
    PROC,
    ProcessGoneError,
    check_same,
    executable,
    namespaces,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from clawbox.containers.host.mounted import OpenedMounts
    from clawbox.containers.users import User

_SECCOMP_FILTER: Final = 2
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.02


class UnsafeContainerError(Exception):
    """A container is not what was asked for. What runs of it is to be killed, and its gate never let go."""

    def __init__(self, differences: Iterable[str]) -> None:
        self.differences = tuple(differences)
        """What is otherwise, each one sentence."""
        super().__init__("; ".join(self.differences))


class Members(Protocol):
    """A container's cgroup."""

    def pids(self) -> list[int]:
        """Every process in it and below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTerms:
    """What a container must be like before its gate opens."""

    pidfd: int
    """Of its first process."""
    user: User
    gate: Path
    """The gate as a file of the host's."""
    mounts: OpenedMounts
    cgroup: Members
    own_network: bool = False
    """Whether it is meant to have a network of the engine's (``container_direct``)."""
    own_kernel: bool = False
    """Whether its runtime is a kernel of its own (gVisor). Its processes and mounts are then not the host's
    to look at: only the namespaces and the network of that kernel's own process are."""


async def check_gate(pid: int, terms: GateTerms, timeout: float = 10.0) -> None:  # noqa: ASYNC109
    """Check a container whose gate waits; its first process is ``pid``, the gate itself or an init above it.

    Waits up to ``timeout`` seconds until the gate runs: an engine may say that a container has started a
    moment before. Raises :class:`UnsafeContainerError` with everything that differs, and
    :class:`~clawbox.containers.host.processes.ProcessGoneError`.
    """
    if terms.own_kernel:
        found = await asyncio.to_thread(_confinement_differences, pid, terms)
    else:
        gate = await _arrived(pid, terms, time.monotonic() + timeout)
        found = await asyncio.to_thread(_differences, pid, gate, terms)
    check_same(pid, terms.pidfd)
    if found:
        raise UnsafeContainerError(found)


def check_exec_gate(pid: int, *, pidfd: int, user: User, gate: Path, container_pid: int) -> None:
    """Check the gate of a process that is about to run inside a container that runs already.

    Only what the kernel says: the container's files may change meanwhile. Blocking. Raises as
    :func:`check_gate`; when it is not (yet) the gate, too.
    """
    found = []
    if executable(pid) != _file(gate):
        found.append("it does not execute the gate")
    found += _credential_differences(pid, user, "it")
    if namespaces(pid) != namespaces(container_pid):
        found.append("it is not in the container's namespaces")
    check_same(pid, pidfd)
    if found:
        raise UnsafeContainerError(found)


async def _arrived(pid: int, terms: GateTerms, until: float) -> int:
    """The gate's pid, once it is the only process but its init."""
    expected = await asyncio.to_thread(_file, terms.gate)
    pause = _FIRST_PAUSE
    while True:
        check_same(pid, terms.pidfd)
        inside = terms.cgroup.pids()
        gates = [one for one in inside if executable(one) == expected]
        if gates and set(inside) == {pid, *gates[:1]}:
            return gates[0]
        if time.monotonic() >= until:
            raise UnsafeContainerError(
                [f"{len(inside)} processes run in it, {len(gates)} of them gates"],
            )
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _differences(pid: int, gate: int, terms: GateTerms) -> list[str]:
    try:
        found = list(_credential_differences(gate, terms.user, "its gate"))
        if gate != pid:
            found += _credential_differences(pid, terms.user, "its init")
            if status(gate).parent != pid:
                found.append("its gate is not its init's child")
            if namespaces(gate) != namespaces(pid):
                found.append("its gate is in other namespaces than its init")
        found += _namespace_differences(pid, namespaces("self").keys())
        found += _network_differences(pid, terms)
        found += terms.mounts.differences(gate)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGoneError(pid) from None
    if set(terms.cgroup.pids()) != {pid, gate}:
        found.append("other processes run in it")
    return found


def _confinement_differences(pid: int, terms: GateTerms) -> list[str]:
    try:
        return [*_namespace_differences(pid, {"net", "pid", "mnt"}), *_network_differences(pid, terms)]
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGoneError(pid) from None


def _credential_differences(pid: int, user: User, who: str) -> Iterator[str]:
    found = status(pid)
    if set(found.uids) != {user.uid}:
        yield f"{who} runs as uid {'/'.join(map(str, found.uids))}, not {user.uid}"
    if set(found.gids) != {user.gid}:
        yield f"{who} runs as gid {'/'.join(map(str, found.gids))}, not {user.gid}"
    if not found.groups <= {user.gid}:
        yield f"{who} is in groups {', '.join(map(str, sorted(found.groups)))}"
    for name, mask in found.capabilities.items():
        if mask:
            yield f"{who} has capabilities ({name} {mask:x})"
    if not found.no_new_privileges:
        yield f"{who} may gain privileges by executing files"
    if found.seccomp != _SECCOMP_FILTER:
        yield f"{who} is under no seccomp filter"


def _namespace_differences(pid: int, names: Iterable[str]) -> Iterator[str]:
    own, its = namespaces("self"), namespaces(pid)
    for name in sorted(names):
        if name in own and its.get(name, own[name]) == own[name]:
            yield f"its {name} namespace is the host's"


def _network_differences(pid: int, terms: GateTerms) -> Iterator[str]:
    """A network that was not asked for: a route, or an address on anything but the loopback."""
    if terms.own_network:
        return
    seen = PROC / str(pid) / "net"
    if len((seen / "route").read_text("ascii").splitlines()) > 1:
        yield "it has a route to a network"
    addresses = seen / "if_inet6"  # not there on a kernel without IPv6
    if addresses.exists() and any(
        line.split()[-1] != "lo" for line in addresses.read_text("ascii").splitlines()
    ):
        yield "it has an address on a network"


def _file(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
