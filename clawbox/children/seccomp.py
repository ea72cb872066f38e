"""A seccomp filter that allows a short list of system calls and refuses the rest (seccomp(2), BPF).

The filter is written here rather than by libseccomp so that nothing has to be installed. A call that is not
on the list fails with EPERM; a call by another architecture's numbering (32-bit, x32) kills the process,
because its numbers mean other calls (docs/security.md, 80).
"""

from __future__ import annotations

import ctypes
import enum
import errno
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

# Call: (number on x86_64, number on aarch64). Only what some kind of child may use is here.
_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "pread64": (17, 67),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "timerfd_settime": (286, 86),
    "timerfd_create": (283, 85),
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
    "fcntl": (72, 25),
}

COMPILING: Final = ("mprotect", "membarrier")
"""Calls that a compiler needs beyond those of :func:`compute_only`, or without its conditions."""


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
    """A call that is allowed where every condition holds, and answered with ``otherwise`` elsewhere."""

    call: str
    conditions: tuple[Condition, ...] = ()
    otherwise: int = errno.EPERM
    never: bool = False
    """Always answered with ``otherwise``."""


_PROT_EXEC: Final = 4
# Shared memory and memory that grows downwards are not counted against RLIMIT_DATA.
_MAP_SHARED: Final = 0x001
_MAP_GROWSDOWN: Final = 0x100
_THREAD_FLAGS: Final = (0x003D_0F00, 0x007D_0F00)  # what pthread_create of glibc and musl passes to clone
_MADV_DONTNEED: Final = 4
_MREMAP_MAYMOVE: Final = 1
_DESCRIPTOR_COMMANDS: Final = (1, 2, 3, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC


def compute_only(pid: int) -> tuple[Rule, ...]:
    """The rules of a child that computes and speaks over descriptors it already has, and nothing else.

    No call that creates a socket, opens a path, starts a process or a program, or names another process is
    among them; memory can be mapped, but neither shared nor ever made executable; threads can be started
    (WASI's timers need one). ``pid`` is the child's own: a signal that ``abort`` sends to itself is the only
    one allowed.
    """
    conditional = {
        "mmap": (
            Condition(2, Test.NO_BIT, (_PROT_EXEC,)),
            Condition(3, Test.NO_BIT, (_MAP_SHARED | _MAP_GROWSDOWN,)),
        ),
        "mprotect": (Condition(2, Test.NO_BIT, (_PROT_EXEC,)),),
        "mremap": (Condition(3, Test.ONE_OF, (_MREMAP_MAYMOVE,)),),
        "madvise": (Condition(2, Test.ONE_OF, (_MADV_DONTNEED,)),),
        "clone": (Condition(0, Test.ONE_OF, _THREAD_FLAGS),),
        "prctl": (Condition(0, Test.ONE_OF, (linux.PR_SET_NAME,)),),
        "prlimit64": (Condition(0, Test.ONE_OF, (0,)),),
        "tgkill": (Condition(0, Test.ONE_OF, (pid,)),),
        "fcntl": (Condition(1, Test.ONE_OF, _DESCRIPTOR_COMMANDS),),
    }
    # The C library tries clone3, whose flags a filter cannot see, and falls back to clone on ENOSYS alone.
    no_clone3 = Rule("clone3", otherwise=errno.ENOSYS, never=True)
    unconditional = _NUMBERS.keys() - {"clone3", *conditional, *COMPILING}
    return (
        no_clone3,
        *(Rule(call) for call in _NUMBERS if call in unconditional),
        *(Rule(call, conditions) for call, conditions in conditional.items()),
    )


def compiling(pid: int) -> tuple[Rule, ...]:
    """The rules of a child that compiles: what was compiled is made executable before it is serialized."""
    rules = (rule for rule in compute_only(pid) if rule.call not in COMPILING)
    return (*rules, *map(Rule, COMPILING))


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _condition(condition: Condition, refuse: bytes) -> bytes:
    """Falls through where the condition holds, else returns ``refuse``."""
    load = _instruction(_LOAD_WORD, _ARGUMENTS_OFFSET + 8 * condition.argument)
    if condition.test is Test.NO_BIT:
        return load + _instruction(_JUMP_ANY_BIT, condition.values[0], 0, 1) + refuse
    last = len(condition.values) - 1
    tests = (_instruction(_JUMP_EQUAL, value, last - i + 1) for i, value in enumerate(condition.values))
    return load + b"".join(tests) + refuse


def build(architecture: Architecture, rules: Iterable[Rule]) -> bytes:
    """The program that allows ``rules`` and refuses everything else, in the kernel's format."""
    kill = _instruction(_RETURN, _KILL_PROCESS)
    allow = _instruction(_RETURN, _ALLOW)
    program = _instruction(_LOAD_WORD, _ARCHITECTURE_OFFSET)
    program += _instruction(_JUMP_EQUAL, architecture.audit, 1, 0) + kill
    program += _instruction(_LOAD_WORD, _NUMBER_OFFSET)
    if architecture.has_x32:
        program += _instruction(_JUMP_AT_LEAST, _X32_BIT, 0, 1) + kill
    for rule in rules:
        number = _NUMBERS[rule.call][architecture.column]
        if number is None:
            continue
        refuse = _instruction(_RETURN, _ERRNO | rule.otherwise)
        body = b"".join(_condition(condition, refuse) for condition in rule.conditions) + allow
        if rule.never:
            body = refuse
        program += _instruction(_JUMP_EQUAL, number, 0, len(body) // 8) + body
    return program + _instruction(_RETURN, _ERRNO | errno.EPERM)


def install(program: bytes) -> None:
    """Put the calling process, which has one thread and no_new_privs set, under ``program`` for ever."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count, padding, a pointer.
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    linux.prctl(linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, ctypes.addressof(header))
