"""The filter's decisions, by running its instructions; test_confinement sees the kernel run them."""

import errno
import struct

import pytest

from clawbox.children.filters import compiling, compute_only, dialing, keeping, serving
from clawbox.children.seccomp import ARCHITECTURES, build, refusing

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


ALL = (compute_only, compiling, keeping, serving, dialing)
SERVING_ONLY, DIALING_ONLY = (serving,), (dialing,)
EITHER = (serving, dialing)
UNKNOWN = refused(errno.EAFNOSUPPORT)


@pytest.mark.parametrize(
    ("call", "arguments", "allowed", "else_"),
    [
        ((47, 212), (), (compute_only, keeping, serving, dialing), None),  # recvmsg
        ((46, 211), (), DIALING_ONLY, None),  # sendmsg, which hands descriptors on
        ((45, 207), (), (keeping, serving, dialing), None),  # recvfrom
        ((44, 206), (), (keeping, serving, dialing), None),  # sendto
        ((44, 206), (3, 0, 9, 0, 0x1000, 16), DIALING_ONLY, None),  # with an address
        ((288, 242), (), SERVING_ONLY, None),  # accept4
        ((43, 202), (), (), None),  # accept
        ((42, 203), (), DIALING_ONLY, None),  # connect
        ((53, 199), (1, 1, 0), (), None),  # socketpair
        ((49, 200), (3, 0, 12), DIALING_ONLY, None),  # bind, of rtnetlink
        ((49, 200), (3, 0, 16), (), None),  # to an address of IPv4
        ((49, 200), (3, 0, 28), (), None),  # and of IPv6
        ((50, 201), (3, 10), (), {serving: refused(0)}),  # listen: nothing happens
        ((41, 198), (2, 1, 6), DIALING_ONLY, None),  # socket: TCP
        ((41, 198), (10, 2 | 0o2004000, 0), DIALING_ONLY, None),  # UDP over IPv6, not blocking
        ((41, 198), (16, 3 | 0o2000000, 0), DIALING_ONLY, None),  # rtnetlink
        ((41, 198), (16, 3, 4), (), {dialing: UNKNOWN}),  # another netlink
        ((41, 198), (2, 3, 0), (), {dialing: UNKNOWN}),  # raw
        ((41, 198), (2, 1, 262), (), {dialing: UNKNOWN}),  # MPTCP
        ((41, 198), (2, 2, 1), (), {dialing: UNKNOWN}),  # ICMP
        ((41, 198), (1, 1, 0), (), {dialing: UNKNOWN}),  # Unix
        ((41, 198), (40, 1, 0), (), {dialing: UNKNOWN}),  # vsock
        ((16, 29), (3, 0x5421), EITHER, None),  # ioctl: not blocking
        ((16, 29), (3, 0x541B), DIALING_ONLY, None),  # how much is there to read
        ((16, 29), (3, 0x5411), (), None),
        ((72, 25), (3, 4, 0o4000), EITHER, None),  # fcntl: not blocking
        ((72, 25), (3, 8), (), None),
        ((54, 208), (3, 6, 1), EITHER, None),  # setsockopt: TCP_NODELAY
        ((54, 208), (3, 1, 9), EITHER, None),  # SO_KEEPALIVE
        ((54, 208), (3, 0, 11), DIALING_ONLY, None),  # IP_RECVERR
        ((54, 208), (3, 41, 11), (), None),
        ((54, 208), (3, 1, 26), (), None),  # SO_ATTACH_FILTER
        ((54, 208), (3, 6, 31), (), None),  # TCP_ULP
        ((54, 208), (3, 0, 1), (), None),
        ((55, 209), (3, 1, 17), EITHER, None),  # getsockopt: SO_PEERCRED
        ((55, 209), (3, 1, 77), (), None),  # SO_PEERPIDFD
        ((257, 56), (0, 0, 0o2000000), DIALING_ONLY, None),  # openat: to read
        ((257, 56), (0, 0, 1), (), {dialing: refused(errno.EACCES)}),  # to write
        ((257, 56), (0, 0, 0o100), (), {dialing: refused(errno.EACCES)}),  # O_CREAT
        ((257, 56), (0, 0, 0o20200000), (), {dialing: refused(errno.EACCES)}),  # O_TMPFILE
        ((262, 79), (), DIALING_ONLY, None),  # newfstatat
        ((59, 221), (), (), None),  # execve
        ((101, 117), (), (), None),  # ptrace
        ((56, 220), (17,), (), None),  # clone, as fork does
        ((56, 220), (0x3D0F00,), ALL, None),  # as a thread
        ((9, 222), (0, 4096, 7, 0x22), (), None),  # mmap: executable
        ((425, 425), (), (), None),  # io_uring_setup
        ((151, 230), (7,), (), None),  # mlockall
    ],
)
def test_each_kind_of_child_has_what_it_needs_on_both_architectures(call, arguments, allowed, else_):
    for architecture in (X86, ARM):
        found = {
            rules: decide(
                build(architecture, rules(7)), architecture.audit, call[architecture.column], *arguments
            )
            for rules in ALL
        }
        other = dict.fromkeys(ALL, refused(errno.EPERM)) | (else_ or {})
        assert found == {rules: ALLOW if rules in allowed else other[rules] for rules in ALL}


def test_what_the_forkserver_forgoes_does_not_exist_and_all_else_is_left_to_the_next_filter():
    for architecture in (X86, ARM):
        program = refusing(architecture, ["io_uring_setup"])
        assert decide(program, architecture.audit, 425) == refused(errno.ENOSYS)
        assert decide(program, architecture.audit, 1) == ALLOW
