"""What this machine and user can give to children, for System.GetStatus: nothing is dropped silently."""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.children import linux, seccomp

if TYPE_CHECKING:
    from clawbox.children.kind import ForkServerStatus


_STARTING: Final = "the forkserver has not started"


@dataclass(frozen=True, slots=True)
class Enforcement:
    """One measure: whether it is in force, and what stands in for it, or what the operator can do."""

    name: str
    in_force: bool
    detail: str


def can_have_own_uids() -> bool:
    """Whether this process may give its children uids of their own."""
    return os.geteuid() == 0 and all(map(linux.has_capability, (linux.CAP_SETUID, linux.CAP_SETGID)))


def seccomp_problem() -> str:
    """Why system call filters do not work here; empty where they do. Without them no child runs at all."""
    if platform.machine() not in seccomp.ARCHITECTURES:
        return f"no filter is known for {platform.machine()}"
    try:
        linux.prctl(linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, 0)
    except OSError as error:
        # A kernel that knows filters complains of the missing program, not of the mode.
        return "" if error.errno == errno.EFAULT else "the kernel has no system call filters"
    return "the kernel took a filter that is none"


def probe(status: ForkServerStatus | None) -> tuple[Enforcement, ...]:
    """What confines workers, given what a running forkserver found (None: there is none yet)."""
    return (
        *_confinement("worker", "workers", status),
        Enforcement("worker_memory_limit", in_force=True, detail="RLIMIT_DATA, set for each call"),
    )


def probe_egress(status: ForkServerStatus | None) -> tuple[Enforcement, ...]:
    """What confines sidecars, dialer and keeper, given what a running forkserver found."""
    not_locked = status.memory_lock if status is not None else _STARTING
    return (
        *_confinement("egress", "sidecars and keeper", status),
        Enforcement(
            "keeper_memory_lock",
            not not_locked,
            f"{not_locked}: its secrets may be written to swap; systemd gives it by LimitMEMLOCK=infinity"
            if not_locked
            else "the keeper's memory is never written to swap",
        ),
    )


def _confinement(prefix: str, who: str, status: ForkServerStatus | None) -> tuple[Enforcement, ...]:
    no_filter = seccomp_problem()
    own_uids = can_have_own_uids()
    network = status.network_namespace if status is not None else _STARTING
    ipc = status.ipc_namespace if status is not None else _STARTING
    root = status.empty_root if status is not None else _STARTING
    stands_in = "the system call filter stands in for it"
    return (
        Enforcement(
            f"{prefix}_seccomp",
            not no_filter,
            no_filter
            or f"no call of {who} opens a path, makes a socket, starts a program or names a process",
        ),
        Enforcement(
            f"{prefix}_own_uid",
            own_uids,
            "each has a uid of its own"
            if own_uids
            else f"{who} share the server's uid, not dumpable and without a call that names another one; "
            "run the server as root to give each its own",
        ),
        Enforcement(
            f"{prefix}_network_namespace",
            not network,
            f"{network}: the system call filter alone keeps {who} from the network"
            if network
            else "an empty network namespace, without even loopback",
        ),
        Enforcement(f"{prefix}_ipc_namespace", not ipc, ipc and f"{ipc}: {stands_in}"),
        Enforcement(
            f"{prefix}_empty_root",
            not root,
            f"{root}: {stands_in}" if root else "an empty, deleted directory",
        ),
        Enforcement(
            f"{prefix}_no_privileges",
            in_force=True,
            detail="no capability, no_new_privs, not dumpable, no core dumps",
        ),
    )
