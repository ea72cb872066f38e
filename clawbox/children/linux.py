"""The few Linux calls that Python's standard library does not wrap. Each raises :class:`OSError`."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
SECCOMP_MODE_FILTER: Final = 2

_MCL_CURRENT_FUTURE_ONFAULT: Final = 7

CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWNET: Final = 0x4000_0000

CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_SYS_CHROOT: Final = 18
CAP_SYS_ADMIN: Final = 21

_OPENAT2: Final = 437  # on every architecture
_AT_EMPTY_PATH: Final = 0x1000

_FALLOC_FL_KEEP_SIZE: Final = 1

_M_MMAP_THRESHOLD: Final = -3

_CAPABILITY_VERSION_3: Final = 0x2008_0522

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Change something about this process, as prctl says."""
    arguments = (ctypes.c_ulong(value) for value in (arg2, arg3, arg4, arg5))
    return _check(_libc.prctl(ctypes.c_int(option), *arguments), f"prctl({option})")


def openat2(folder: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """Open a path below ``folder``, resolved as ``resolve`` says (openat2(2), Linux 5.6): a descriptor."""
    how = ctypes.create_string_buffer(struct.pack("=QQQ", flags, mode, resolve), 24)
    return _check(
        _libc.syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_long(folder), ctypes.c_char_p(path), how, ctypes.c_long(24)
        ),
        "openat2",
    )


def link_open_file(descriptor: int, folder: int, name: bytes) -> None:
    """Give an open file that has no name one (linkat(2) with AT_EMPTY_PATH).

    Before Linux 6.10, ENOENT for whoever lacks CAP_DAC_READ_SEARCH.
    """
    _check(
        _libc.linkat(
            ctypes.c_int(descriptor),
            ctypes.c_char_p(b""),
            ctypes.c_int(folder),
            ctypes.c_char_p(name),
            ctypes.c_int(_AT_EMPTY_PATH),
        ),
        "linkat",
    )


def allocate_behind(descriptor: int, offset: int, size: int) -> None:
    """Have the disk keep blocks for a file behind its end, which stays where it is (fallocate(2))."""
    _check(
        _libc.fallocate64(
            ctypes.c_int(descriptor),
            ctypes.c_int(_FALLOC_FL_KEEP_SIZE),
            ctypes.c_int64(offset),
            ctypes.c_int64(size),
        ),
        "fallocate",
    )


def set_process_name(name: str) -> None:
    """The name that ``ps`` shows, at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def unshare(flags: int) -> None:
    """Leave namespaces for new, empty ones."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter_network_namespace(descriptor: int) -> None:
    """Be in the network namespace that ``descriptor`` is (setns(2))."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(CLONE_NEWNET)), "setns")


def lock_memory() -> None:
    """Keep every page that this process has, or will have, from being written to swap (mlockall(2)).

    No page is read in for it. Forked processes do not inherit it.
    """
    _check(_libc.mlockall(ctypes.c_int(_MCL_CURRENT_FUTURE_ONFAULT)), "mlockall")


def capabilities() -> tuple[int, int, int]:
    """This process's effective, permitted and inheritable capabilities, as bit masks (capget(2))."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    low = struct.unpack_from("=3I", data.raw, 0)
    high = struct.unpack_from("=3I", data.raw, 12)
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def drop_capabilities() -> None:
    """Give up every effective, permitted and inheritable capability (capset(2))."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    _check(_libc.capset(header, ctypes.create_string_buffer(24)), "capset")


def has_capability(number: int) -> bool:
    """Whether this process may use the capability now."""
    return bool(capabilities()[0] >> number & 1)


def bounding_set() -> list[int]:
    """The capabilities in this process's bounding set."""
    found = []
    for number in range(64):
        try:
            if prctl(PR_CAPBSET_READ, number):
                found.append(number)
        except OSError:
            break  # EINVAL: past the last one that this kernel knows
    return found


def read_statm(statm: int) -> tuple[int, int]:
    """Bytes that this process maps, and those of them that RLIMIT_DATA counts (and stacks).

    ``statm`` is an open ``/proc/self/statm`` (proc(5)).
    """
    fields = os.pread(statm, 128, 0).split()
    return int(fields[0]) * _PAGE, int(fields[5]) * _PAGE


class Timer:
    """A timerfd(2) on the monotonic clock: a thread that waits for it wakes only when it fires."""

    def __init__(self) -> None:
        self.descriptor = _check(
            _libc.timerfd_create(ctypes.c_int(1), ctypes.c_int(0o2000000)), "timerfd_create"
        )
        self._disarmed = ctypes.create_string_buffer(32)

    def arm(self, seconds: float) -> None:
        """Fire once, after ``seconds``; replaces what was set before."""
        whole = int(seconds)
        nanoseconds = max(int((seconds - whole) * 1e9), 1)
        self._set(ctypes.create_string_buffer(struct.pack("=qqqq", 0, 0, whole, nanoseconds), 32))

    def disarm(self) -> None:
        """Do not fire."""
        self._set(self._disarmed)

    def wait(self) -> None:
        """Block until it fires."""
        os.read(self.descriptor, 8)

    def _set(self, value: ctypes.Array[ctypes.c_char]) -> None:
        _check(_libc.timerfd_settime(self.descriptor, 0, value, None), "timerfd_settime")


def give_back_large_blocks(threshold: int = 1 << 20) -> None:
    """Have allocations of at least ``threshold`` bytes returned to the kernel when freed (mallopt(3)).

    glibc raises its threshold to the largest block that was freed, up to 32 MiB, and then keeps such blocks
    in its arenas. A C library without mallopt is left as it is.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(threshold))
