"""What this machine and user can give to children, for System.GetStatus: nothing is dropped silently."""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox.children import linux, seccomp

if TYPE_CHECKING:
    from clawbox.children.kind import ForkServerStatus


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
    """The measures that confine children, given what a running forkserver found (None: there is none yet)."""
    no_filter = seccomp_problem()
    own_uids = can_have_own_uids()
    starting = "the forkserver has not started"
    network = status.network_namespace if status is not None else starting
    ipc = status.ipc_namespace if status is not None else starting
    root = status.empty_root if status is not None else starting
    no_socket = "the system call filter alone keeps workers from the network"
    return (
        Enforcement(
            "worker_seccomp",
            not no_filter,
            no_filter or "no call opens a path, makes a socket, starts a program or names a process",
        ),
        Enforcement(
            "worker_own_uid",
            own_uids,
            "each worker has a uid of its own"
            if own_uids
            else "workers share the server's uid, not dumpable and without a call that names another one; "
            "run the server as root to give each its own",
        ),
        Enforcement(
            "worker_network_namespace",
            not network,
            f"{network}: {no_socket}" if network else "an empty network namespace, without even loopback",
        ),
        Enforcement(
            "worker_ipc_namespace", not ipc, ipc and f"{ipc}: the system call filter stands in for it"
        ),
        Enforcement(
            "worker_empty_root",
            not root,
            f"{root}: the system call filter stands in for it" if root else "an empty, deleted directory",
        ),
        Enforcement(
            "worker_no_privileges",
            in_force=True,
            detail="no capability, no_new_privs, not dumpable, no core dumps",
        ),
        Enforcement("worker_memory_limit", in_force=True, detail="RLIMIT_DATA, set for each call"),
    )
