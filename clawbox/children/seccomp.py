"""A seccomp filter that allows a short list of system calls and refuses the rest (seccomp(2), BPF).

The filter is written here rather than by libseccomp so that nothing has to be installed. A call that is not
on the list fails with EPERM; a call by another architecture's numbering (32-bit, x32) kills the process,
because its numbers mean other calls (docs/security.md, 80).
"""

from __future__ import annotations

import ctypes
import enum
import errno
import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.children import linux

if TYPE_CHECKING:
    from collections.abc import Iterable

_ALLOW: Final = 0x7FFF_0000
_KILL_PROCESS: Final = 0x8000_0000
_ERRNO: Final = 0x0005_0000
_X32_BIT: Final = 0x4000_0000

_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_NUMBER_OFFSET: Final = 0
_ARCHITECTURE_OFFSET: Final = 4
_ARGUMENTS_OFFSET: Final = 16
_INSTRUCTION_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Architecture:
    """A machine: what audit calls it, and which column of the table below is its own."""

    audit: int
    column: int
    has_x32: bool = False


ARCHITECTURES: Final = {
    "x86_64": Architecture(0xC000_003E, 0, has_x32=True),
    "aarch64": Architecture(0xC000_00B7, 1),
}
"""By the name that uname(2) gives."""

# Call: (number on x86_64, number on aarch64). Only what some kind of child may use, or is refused by name.
_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "read": (0, 63),
    "write": (1, 64),
    "writev": (20, 66),
    "close": (3, 57),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "openat": (257, 56),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "timerfd_settime": (286, 86),
    "timerfd_create": (283, 85),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
    "setsockopt": (54, 208),
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "clone": (56, 220),
    "clone3": (435, 435),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "tgkill": (234, 131),
    "restart_syscall": (219, 128),
    "membarrier": (324, 283),
    "uname": (63, 160),
    "io_uring_setup": (425, 425),
    "openat2": (437, 437),
    "getdents64": (217, 61),
    "readlinkat": (267, 78),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "linkat": (265, 37),
    "fchmod": (91, 52),
    "umask": (95, 166),
}


class Test(enum.Enum):
    """What a rule asks of the low 32 bits of an argument."""

    __test__ = False  # not a test case

    ONE_OF = "one_of"
    """Equal to one of the values."""
    NO_BIT = "no_bit"
    """None of the bits of the (only) value is set."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of one argument, counted from 0."""

    argument: int
    test: Test
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A call that is allowed where every condition holds, and answered with ``otherwise`` elsewhere.

    Where several rules in a row name one call, it is allowed where any of them does.
    """

    call: str
    conditions: tuple[Condition, ...] = ()
    otherwise: int = errno.EPERM
    """An error number; 0: the call seems to succeed, and nothing happens."""
    never: bool = False
    """Always answered with ``otherwise``."""


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _condition(condition: Condition, following: int) -> bytes:
    """Falls through where the condition holds, else goes on ``following`` instructions after this."""
    load = _instruction(_LOAD_WORD, _ARGUMENTS_OFFSET + 8 * condition.argument)
    if condition.test is Test.NO_BIT:
        return load + _instruction(_JUMP_ANY_BIT, condition.values[0], following, 0)
    last = len(condition.values) - 1
    tests = (
        _instruction(_JUMP_EQUAL, value, last - i, following if i == last else 0)
        for i, value in enumerate(condition.values)
    )
    return load + b"".join(tests)


def _allowing(conditions: Iterable[Condition]) -> bytes:
    """Returns that the call is allowed where all conditions hold, else falls through."""
    code = _instruction(_RETURN, _ALLOW)
    for condition in reversed(tuple(conditions)):
        code = _condition(condition, len(code) // _INSTRUCTION_BYTES) + code
    return code


def build(architecture: Architecture, rules: Iterable[Rule]) -> bytes:
    """The program that allows ``rules`` and refuses everything else, in the kernel's format."""
    kill = _instruction(_RETURN, _KILL_PROCESS)
    program = _instruction(_LOAD_WORD, _ARCHITECTURE_OFFSET)
    program += _instruction(_JUMP_EQUAL, architecture.audit, 1, 0) + kill
    program += _instruction(_LOAD_WORD, _NUMBER_OFFSET)
    if architecture.has_x32:
        program += _instruction(_JUMP_AT_LEAST, _X32_BIT, 0, 1) + kill
    for call, alternatives in itertools.groupby(rules, lambda rule: rule.call):
        number = _NUMBERS[call][architecture.column]
        if number is None:
            continue
        body, otherwise = b"", errno.EPERM
        for rule in alternatives:
            otherwise = rule.otherwise
            if not rule.never:
                body += _allowing(rule.conditions)
        body += _instruction(_RETURN, _ERRNO | otherwise)
        program += _instruction(_JUMP_EQUAL, number, 0, len(body) // _INSTRUCTION_BYTES) + body
    return program + _instruction(_RETURN, _ERRNO | errno.EPERM)


def refusing(architecture: Architecture, calls: Iterable[str]) -> bytes:
    """The program that has ``calls`` not exist (ENOSYS) and says nothing of others: another one follows."""
    program = _instruction(_LOAD_WORD, _NUMBER_OFFSET)
    for call in calls:
        number = _NUMBERS[call][architecture.column]
        if number is not None:
            program += _instruction(_JUMP_EQUAL, number, 0, 1) + _instruction(_RETURN, _ERRNO | errno.ENOSYS)
    return program + _instruction(_RETURN, _ALLOW)


def install(program: bytes) -> None:
    """Put the calling process, which has one thread and no_new_privs set, under ``program`` for ever."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count, padding, a pointer.
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // _INSTRUCTION_BYTES, ctypes.addressof(code))
    )
    linux.prctl(linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, ctypes.addressof(header))
