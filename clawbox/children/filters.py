"""What each sort of child may ask of the kernel (docs/security.md, 61, 64, 80): rules for its seccomp filter.

Found by watching what each really calls (strace), and nothing more is let through. Every set is a list of
what is allowed; no set lets a child start a program or a process, or name another process.
"""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING, Final

from clawbox.children import linux
from clawbox.children.seccomp import Condition, Rule, Test

if TYPE_CHECKING:
    from collections.abc import Iterable

_PROT_EXEC: Final = 4
# Shared memory and memory that grows downwards are not counted against RLIMIT_DATA.
_MAP_SHARED: Final = 0x001
_MAP_GROWSDOWN: Final = 0x100
_THREAD_FLAGS: Final = (0x003D_0F00, 0x007D_0F00)  # what pthread_create of glibc and musl passes to clone
_MADV_DONTNEED: Final = 4
_MREMAP_MAYMOVE: Final = 1
_DESCRIPTOR_COMMANDS: Final = (1, 2, 3, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
_F_SETFL: Final = 4
_FIONBIO: Final = 0x5421
_FIONREAD: Final = 0x541B

_SOL_SOCKET: Final = 1
_IPPROTO_TCP: Final = 6
_IPPROTO_UDP: Final = 17
# SO_TYPE, SO_ERROR, SO_SNDBUF, SO_RCVBUF, SO_PEERCRED, SO_PROTOCOL, SO_DOMAIN
_READ_SOCKET_OPTIONS: Final = (3, 4, 7, 8, 17, 38, 39)
# SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE, SO_LINGER
_SET_SOCKET_OPTIONS: Final = (7, 8, 9, 13)
# TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT
_SET_TCP_OPTIONS: Final = (1, 4, 5, 6, 18)

_AF_INET: Final = 2
_AF_INET6: Final = 10
_AF_NETLINK: Final = 16
_SOCKADDR_NL_BYTES: Final = 12
"""Shorter than what the kernel takes for an address of the internet."""
_SOCK_STREAM: Final = 1
_SOCK_DGRAM: Final = 2
_SOCK_RAW: Final = 3
_SOCK_FLAGS: Final = (0, 0o4000, 0o2000000, 0o2004000)  # SOCK_NONBLOCK, SOCK_CLOEXEC
_IPPROTO_IP: Final = 0
_SOL_IPV6: Final = 41
# IP_RECVERR, IPV6_RECVERR: the C library's resolver hears of a refused query at once.
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25

# O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND, and the bit of O_TMPFILE that is no other flag.
_WRITING: Final = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000

_ABOVE_PERMISSIONS: Final = 0xFFFF_FE00
_ONLY_FOR_LOOPS_AND_THREADS: Final = frozenset(
    (
        *("clone", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2"),
        *("timerfd_settime", "timerfd_create"),
    )
)

_COMPUTING: Final = (
    *("read", "write", "close", "pread64"),
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2"),
    *("timerfd_settime", "timerfd_create"),
    *("munmap", "brk", "futex", "sched_yield", "clock_gettime", "getrandom", "getpid", "gettid"),
    *("rt_sigprocmask", "rt_sigreturn", "sigaltstack", "set_robust_list", "rseq"),
    *("exit", "exit_group", "restart_syscall"),
)

_MAKING_EXECUTABLE: Final = ("mprotect", "membarrier")
"""Calls that a compiler needs beyond those of a child that computes, or without its conditions."""

_USING_SOCKETS: Final = (*("writev", "recvfrom", "recvmsg", "shutdown", "getsockname", "getpeername"),)


def compute_only(pid: int) -> tuple[Rule, ...]:
    """The rules of a child that computes and speaks over descriptors it has or is handed, and nothing else.

    No call that creates a socket, opens a path, starts a process or a program, or names another process is
    among them; memory can be mapped, but neither shared nor ever made executable; threads can be started
    (WASI's timers need one). ``pid`` is the child's own: a signal that ``abort`` sends to itself is the only
    one allowed.
    """
    return (*_computing(pid), Rule("recvmsg"))


def compiling(pid: int) -> tuple[Rule, ...]:
    """The rules of a child that compiles: what was compiled is made executable before it is serialized."""
    return _with(_computing(pid), map(Rule, _MAKING_EXECUTABLE))


def keeping(pid: int) -> tuple[Rule, ...]:
    """The rules of a child that keeps secrets: it reads and writes sockets that it is handed."""
    return (*compute_only(pid), Rule("recvfrom"), Rule("sendto", _NO_ADDRESS))


def serving(pid: int) -> tuple[Rule, ...]:
    """The rules of a child that serves sockets it was handed.

    Its event loop is made before (:mod:`clawbox.children.event_loop`). It accepts, reads and writes; it
    creates no socket and names no address, nor can it hand anyone a descriptor (sendmsg).
    """
    return _with(
        _computing(pid),
        (
            *map(Rule, (*_USING_SOCKETS, "accept4")),
            Rule("sendto", _NO_ADDRESS),
            # asyncio has each listener listen, which those that are handed do already.
            Rule("listen", otherwise=0, never=True),
            *_NON_BLOCKING,
            *_SOCKET_OPTIONS,
        ),
    )


def dialing(pid: int) -> tuple[Rule, ...]:
    """The rules of a child that resolves names and connects, and hands the sockets on.

    Sockets are of the internet, for TCP and UDP, or of rtnetlink, which the C library asks for this
    machine's addresses. None listens, and Unix sockets, over which services of this machine could be spoken
    to, it cannot make. Files can be read: what the C library's resolver is configured by may change.
    """
    inet = Condition(0, Test.ONE_OF, (_AF_INET, _AF_INET6))
    kinds = tuple(kind | flags for kind in (_SOCK_STREAM, _SOCK_DGRAM) for flags in _SOCK_FLAGS)
    raw = tuple(_SOCK_RAW | flags for flags in _SOCK_FLAGS)
    protocols = (_IPPROTO_IP, _IPPROTO_TCP, _IPPROTO_UDP)
    return _with(
        _computing(pid),
        (
            Rule(
                "socket",
                (inet, Condition(1, Test.ONE_OF, kinds), Condition(2, Test.ONE_OF, protocols)),
                otherwise=errno.EAFNOSUPPORT,
            ),
            Rule(
                "socket",
                (
                    Condition(0, Test.ONE_OF, (_AF_NETLINK,)),
                    Condition(1, Test.ONE_OF, raw),
                    Condition(2, Test.ONE_OF, (0,)),
                ),
                otherwise=errno.EAFNOSUPPORT,
            ),
            *map(Rule, (*_USING_SOCKETS, "connect", "sendto", "sendmsg", "sendmmsg")),
            Rule("bind", (Condition(2, Test.ONE_OF, (_SOCKADDR_NL_BYTES,)),)),
            *map(Rule, ("poll", "ppoll", "fstat", "newfstatat", "lseek", "uname")),
            Rule("openat", (Condition(2, Test.NO_BIT, (_WRITING,)),), otherwise=errno.EACCES),
            *_NON_BLOCKING,
            Rule("ioctl", (Condition(1, Test.ONE_OF, (_FIONREAD,)),)),
            *_SOCKET_OPTIONS,
            _option("setsockopt", _IPPROTO_IP, _IP_RECVERR),
            _option("setsockopt", _SOL_IPV6, _IPV6_RECVERR),
        ),
    )


def working_on_files(pid: int) -> tuple[Rule, ...]:
    """The rules of a child that works inside the folder which is its root (docs/security.md, 81).

    It opens with openat2 alone, whose flags no filter sees: what it could open is bounded by its root and by
    its uid. Permissions that it sets have no bit above 0777. It has one thread, and no socket call at all.
    """
    plain = (Condition(1, Test.NO_BIT, (_ABOVE_PERMISSIONS,)),)
    return _with(
        (rule for rule in _computing(pid) if rule.call not in _ONLY_FOR_LOOPS_AND_THREADS),
        (
            *map(Rule, ("openat2", "fstat", "newfstatat", "lseek", "getdents64", "readlinkat", "umask")),
            *map(Rule, ("unlinkat", "renameat", "linkat")),
            Rule("mkdirat", (Condition(2, Test.NO_BIT, (_ABOVE_PERMISSIONS,)),)),
            Rule("fchmod", plain),
        ),
    )


def _computing(pid: int) -> tuple[Rule, ...]:
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
    return (
        # The C library tries clone3, whose flags a filter cannot see, and goes back to clone on ENOSYS alone.
        Rule("clone3", otherwise=errno.ENOSYS, never=True),
        *map(Rule, _COMPUTING),
        *(Rule(call, conditions) for call, conditions in conditional.items()),
    )


def _option(call: str, level: int, *options: int) -> Rule:
    return Rule(call, (Condition(1, Test.ONE_OF, (level,)), Condition(2, Test.ONE_OF, options)))


_NO_ADDRESS: Final = (Condition(5, Test.ONE_OF, (0,)),)  # the length of the address
_NON_BLOCKING: Final = (
    Rule("ioctl", (Condition(1, Test.ONE_OF, (_FIONBIO,)),)),
    Rule("fcntl", (Condition(1, Test.ONE_OF, (*_DESCRIPTOR_COMMANDS, _F_SETFL)),)),
)
_SOCKET_OPTIONS: Final = (
    _option("getsockopt", _SOL_SOCKET, *_READ_SOCKET_OPTIONS),
    _option("setsockopt", _SOL_SOCKET, *_SET_SOCKET_OPTIONS),
    _option("setsockopt", _IPPROTO_TCP, *_SET_TCP_OPTIONS),
)


def _with(rules: Iterable[Rule], more: Iterable[Rule]) -> tuple[Rule, ...]:
    """``rules`` where ``more`` says nothing of a call, and ``more``, with the rules of each call in a row."""
    more = tuple(more)
    named = {rule.call for rule in more}
    kept = (rule for rule in rules if rule.call not in named)
    return tuple(sorted(itertools.chain(kept, more), key=lambda rule: rule.call))
