"""The filter's decisions, by running its instructions; test_confinement sees the kernel run them."""

import errno
import struct

import pytest

from clawbox.children.filters import compiling, compute_only
from clawbox.children.seccomp import ARCHITECTURES, build

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM = ARCHITECTURES["x86_64"], ARCHITECTURES["aarch64"]


def decide(program, audit, number, *arguments):
    data = struct.pack("=iIQ6Q", number, audit, 0, *(arguments + (0,) * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    at = word = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        match operation:
            case 0x20:
                word = struct.unpack_from("=I", data, value)[0]
            case 0x15:
                at += if_true if word == value else if_false
            case 0x35:
                at += if_true if word >= value else if_false
            case 0x45:
                at += if_true if word & value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(operation)


def refused(number):
    return 0x50000 | number


def test_x32_kills():
    assert decide(build(X86, compute_only(7)), X86.audit, 0x40000000) == KILL


@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        ((0, 63), (), ALLOW),
        ((41, 198), (), refused(errno.EPERM)),  # socket
        ((59, 221), (), refused(errno.EPERM)),  # execve
        ((257, 56), (), refused(errno.EPERM)),  # openat
        ((62, 129), (1, 9), refused(errno.EPERM)),  # kill
        ((435, 435), (), refused(errno.ENOSYS)),  # clone3
        ((9, 222), (0, 4096, 3, 0x22), ALLOW),  # mmap: private, anonymous
        ((9, 222), (0, 4096, 7, 0x22), refused(errno.EPERM)),
        ((9, 222), (0, 4096, 3, 0x21), refused(errno.EPERM)),  # shared
        ((9, 222), (0, 4096, 3, 0x23), refused(errno.EPERM)),  # shared, checked
        ((9, 222), (0, 4096, 3, 0x122), refused(errno.EPERM)),  # growing downwards
        ((10, 226), (0, 4096, 5), refused(errno.EPERM)),  # mprotect
        ((56, 220), (0x3D0F00,), ALLOW),  # clone, as a thread
        ((56, 220), (17,), refused(errno.EPERM)),  # as fork does
        ((56, 220), (0x3D0F00 | 0x10000000,), refused(errno.EPERM)),  # with a namespace
        ((25, 216), (0, 4096, 8192, 1), ALLOW),  # mremap, as realloc does
        ((25, 216), (0, 4096, 8192, 5), refused(errno.EPERM)),  # and keep the old one
        ((28, 233), (0, 4096, 4), ALLOW),  # madvise: not needed any more
        ((28, 233), (0, 4096, 12), refused(errno.EPERM)),  # merge with what is the same
        ((324, 283), (), refused(errno.EPERM)),  # membarrier
        ((234, 131), (7, 7, 6), ALLOW),  # tgkill of itself
        ((234, 131), (8, 8, 6), refused(errno.EPERM)),
        ((302, 261), (0,), ALLOW),  # prlimit64 of itself
        ((302, 261), (1,), refused(errno.EPERM)),
        ((157, 167), (15,), ALLOW),  # prctl: its name
        ((157, 167), (4, 1), refused(errno.EPERM)),  # dumpable again
        ((72, 25), (3, 1030), ALLOW),  # fcntl: duplicate
        ((72, 25), (3, 8), refused(errno.EPERM)),  # whom to signal
    ],
)
def test_each_call_is_judged_alike_on_both_architectures(call, arguments, verdict):
    for architecture in (X86, ARM):
        program = build(architecture, compute_only(7))
        assert verdict == decide(program, architecture.audit, call[architecture.column], *arguments)


def test_a_compiler_may_make_memory_executable_and_nothing_else_more():
    for architecture in (X86, ARM):
        program = build(architecture, compiling(7))
        column = architecture.column
        assert decide(program, architecture.audit, (10, 226)[column], 0, 4096, 5) == ALLOW
        assert decide(program, architecture.audit, (9, 222)[column], 0, 4096, 7, 0x22) == refused(errno.EPERM)
        assert decide(program, architecture.audit, (257, 56)[column]) == refused(errno.EPERM)
