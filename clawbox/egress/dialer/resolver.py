"""Names to addresses by the machine's own resolver, so that what it is configured to do is what happens.

getaddrinfo(3) blocks and cannot be stopped, so each sandbox has threads of its own for it: a name server that
is slow for one keeps nobody else waiting (docs/security.md, 17). Nothing is cached: each answer is used for
one connection (14).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from clawbox.egress.addresses import Address, parse_answer
from clawbox.egress.refusal import Denial, RefusedError

LOOKUPS_AT_ONCE = 8
"""Of one sandbox."""
MAX_ANSWERS = 256
"""A host with more addresses is refused, since each of them has to be checked."""

Lookup: TypeAlias = Callable[[str], tuple[Address, ...]]
"""The addresses of a name, in the order in which they are to be tried; blocks. Raises OSError."""


def look_up(name: str) -> tuple[Address, ...]:
    """Every address of a name, IPv4 and IPv6, whichever of them this machine could reach.

    nsswitch.conf(5), hosts(5), resolv.conf(5) and gai.conf(5) hold. Raises OSError.
    """
    # As bytes: Python would else apply IDNA, of 2003, to what is ASCII already.
    found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return tuple(dict.fromkeys(_address(family, sockaddr) for family, _, _, _, sockaddr in found))


def _address(family: socket.AddressFamily, sockaddr: tuple[object, ...]) -> Address:
    text, _, zone = str(sockaddr[0]).partition("%")
    address = parse_answer(socket.inet_pton(family, text))
    scope = zone or (sockaddr[3] if family == socket.AF_INET6 else 0)
    return ipaddress.IPv6Address(f"{address}%{scope}") if scope else address


class Resolver:
    """The look-ups of one sandbox; made by :class:`Resolvers`."""

    def __init__(self, lookup: Lookup, released: Callable[[], None]) -> None:
        self._lookup = lookup
        self._released = released
        self._room = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._threads = ThreadPoolExecutor(LOOKUPS_AT_ONCE, "look-up")
        self._under_way = 0

    @property
    def idle(self) -> bool:
        """Whether no thread is looking up, not even for somebody who waits no longer."""
        return not self._under_way

    async def resolve(self, host: str, deadline: float) -> tuple[Address, ...]:
        """The addresses of a canonical host; a literal is its own answer, and never looked up.

        ``deadline`` is in the loop's time. Raises RefusedError.
        """
        with contextlib.suppress(ValueError):
            return (ipaddress.ip_address(host),)
        try:
            async with asyncio.timeout_at(deadline):
                await self._room.acquire()
                answers = await asyncio.wrap_future(self._begin(host))
        except TimeoutError:
            raise RefusedError(Denial.DNS_TIMEOUT) from None
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NODATA:
                return ()
            raise RefusedError(Denial.DNS_FAILED, error.strerror or "") from None
        if len(answers) > MAX_ANSWERS:
            raise RefusedError(Denial.ADDRESS_REFUSED, f"it has more than {MAX_ANSWERS} addresses")
        return answers

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False)

    def _begin(self, host: str) -> Future[tuple[Address, ...]]:
        """Take a thread. Its place is free again when the thread is, not when nobody waits any more."""
        loop = asyncio.get_running_loop()

        def ended(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._end)

        self._under_way += 1
        try:
            looking = self._threads.submit(self._lookup, host)
        except RuntimeError as error:
            self._end()
            raise OSError(errno.EAGAIN, "no thread is left") from error
        looking.add_done_callback(ended)
        return looking

    def _end(self) -> None:
        self._under_way -= 1
        self._room.release()
        self._released()


class Resolvers:
    """Every sandbox's resolver, kept while a peer uses it or a thread of it is busy.

    So a sandbox whose sidecar comes and goes has no more threads than another.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._kept: dict[str, Resolver] = {}
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, sandbox: str) -> Resolver:
        """The resolver of a sandbox; :meth:`give_back` must follow."""
        self._users[sandbox] += 1
        if sandbox not in self._kept:
            self._kept[sandbox] = Resolver(self._lookup, lambda: self._forget_unused(sandbox))
        return self._kept[sandbox]

    def give_back(self, sandbox: str) -> None:
        """One user less."""
        self._users[sandbox] -= 1
        self._forget_unused(sandbox)

    def _forget_unused(self, sandbox: str) -> None:
        resolver = self._kept.get(sandbox)
        if resolver is not None and resolver.idle and not self._users[sandbox]:
            resolver.close()
            del self._kept[sandbox], self._users[sandbox]
