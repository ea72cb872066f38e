"""What a freshly forked child gives up before it reads the first message (docs/security.md, 61 and 64).

The order matters: what needs a capability comes before capabilities go, the parent-death signal after the
uid changes (the kernel clears it then), and the seccomp filter last, because it refuses the rest.
"""

from __future__ import annotations

import os
import platform
import resource
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox.children import linux, seccomp
from clawbox.children.kind import MAX_DESCRIPTORS, MAX_THREADS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clawbox.children.kind import Profile

STACK_BYTES = 8 << 20
ADDRESS_SPACE_BYTES = 32 << 30
"""What may be mapped: a guest's memory reserves 4 GiB, and page tables of mere mappings cost memory too."""


class ConfinementError(Exception):
    """A step that this machine should be able to give did not take; the child must not go on."""


class OrphanedError(Exception):
    """The forkserver is gone, and so is whoever wanted the child."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What one child gets. ``None`` where this machine or user cannot give it; GetStatus says so."""

    uid: int | None
    """Own uid, and gid where ``gid`` is None; None keeps the server's."""
    empty_root: int | None
    """Descriptor of an empty directory to become the root of a kind that asks for one."""
    network: int | None
    """Descriptor of the server's network namespace, where this process is in another, for kinds that ask."""
    lock_memory: bool
    """Whether the memory of a kind that asks for it can be locked."""
    forkserver: int
    """Process id of the forkserver: when it is gone, so is the child."""
    profile: Profile
    """What its kind asks for."""
    gid: int | None = None
    """Own gid where it is another number than ``uid``."""
    root: int | None = None
    """Descriptor of the folder that becomes its root, in place of an empty one."""


def confine(confinement: Confinement, *, keep: Iterable[int], name: str) -> None:
    """Confine the calling process, which has one thread; ``keep`` are the descriptors that stay open.

    The standard descriptors become /dev/null; stderr last, so that what fails before is seen.

    Raises :class:`ConfinementError`, :class:`OrphanedError` or :class:`OSError`; the caller then ends the
    process at once.
    """
    profile = confinement.profile
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        # A child ends by its channel or by SIGKILL. Writing to a closed channel is an error it handles.
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    linux.set_process_name(name)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    lock = profile.memory_locked and confinement.lock_memory
    limit_resources(
        own_uid=confinement.uid is not None,
        descriptors=profile.descriptors,
        threads=profile.threads,
        locked_memory=resource.RLIM_INFINITY if lock else 0,
        file_bytes=profile.file_bytes,
    )
    _limit_memory(profile.data_bytes)
    if profile.network and confinement.network is not None:
        linux.enter_network_namespace(confinement.network)
    root = confinement.root
    if root is None and profile.empty_root:
        root = confinement.empty_root
    if root is not None:
        os.fchdir(root)
        os.chroot(".")
    os.chdir("/")
    close_descriptors({*keep, null})
    drop_privileges(confinement.uid, confinement.gid)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != confinement.forkserver:
        raise OrphanedError
    # After the uid changed, which sets it back to what fs.suid_dumpable says.
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    check_privileges(confinement.uid, confinement.gid)
    if lock:
        linux.lock_memory()
    architecture = seccomp.ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise ConfinementError(f"no system call filter is known for {platform.machine()}")
    program = seccomp.build(architecture, profile.filter(os.getpid()))
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)
    seccomp.install(program)


def open_descriptors() -> set[int]:
    """What this process has open. Not for confined processes, which cannot open /proc."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    # One of them was the listing itself.
    return {descriptor for descriptor in found if _is_open(descriptor)}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def close_descriptors(keep: Iterable[int]) -> None:
    """Close everything but ``keep`` and the three standard descriptors."""
    first = 3
    for descriptor in sorted(set(keep)):
        if descriptor >= first:
            os.closerange(first, descriptor)
            first = descriptor + 1
    os.closerange(first, (1 << 31) - 1)


def limit_resources(
    *,
    own_uid: bool,
    descriptors: int = MAX_DESCRIPTORS,
    threads: int = MAX_THREADS,
    locked_memory: int = 0,
    file_bytes: int = 0,
) -> None:
    """Bound what any child could use up or leave behind; ``own_uid``: it is not the server's.

    ``locked_memory`` and ``file_bytes``, for each file that it makes, are in bytes.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_MEMLOCK: locked_memory,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: descriptors if most == resource.RLIM_INFINITY else min(descriptors, most),
    }
    if own_uid:
        # The limit counts all processes of a uid, so it says something only about a uid of one's own.
        limits[resource.RLIMIT_NPROC] = threads
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    limits[resource.RLIMIT_STACK] = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    for which, value in limits.items():
        resource.setrlimit(which, (value, value))


def _limit_memory(data_bytes: int) -> None:
    """Both limits are hard, so that whatever takes the child over cannot raise them (docs/security.md, 92).

    The filter refuses the mappings that RLIMIT_DATA does not count.
    """
    with open("/proc/self/statm", "rb", buffering=0) as statm:  # noqa: PTH123
        mapped, data = linux.read_statm(statm.fileno())
    for which, value in (
        (resource.RLIMIT_DATA, data + data_bytes),
        (resource.RLIMIT_AS, mapped + data_bytes + ADDRESS_SPACE_BYTES),
    ):
        _, hard = resource.getrlimit(which)
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (limit, limit))


def drop_privileges(uid: int | None, gid: int | None = None) -> None:
    """Give up every capability and supplementary group, and become ``uid`` (None: keep the server's).

    ``gid`` is the same number where it is None.

    The caller then sets no_new_privs and calls :func:`check_privileges`.
    """
    if linux.has_capability(linux.CAP_SETPCAP):
        for capability in linux.bounding_set():
            linux.prctl(linux.PR_CAPBSET_DROP, capability)
    if linux.has_capability(linux.CAP_SETGID):
        os.setgroups([])
    if uid is not None:
        gid = uid if gid is None else gid
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    linux.drop_capabilities()


def check_privileges(uid: int | None, gid: int | None = None) -> None:
    """Raise :class:`ConfinementError` unless everything that :func:`drop_privileges` gives up is gone.

    Fail closed: believe what the kernel says now, not that the calls did not fail.
    """
    if any(linux.capabilities()):
        raise ConfinementError("capabilities are left")
    if uid is not None:
        gid = uid if gid is None else gid
        if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
            raise ConfinementError("the uid or gid did not change")
        if os.getgroups():
            raise ConfinementError("supplementary groups are left")
