"""One dial: may the sandbox reach the host and port, where is it, is that a good address, and a connection.

Nothing that the sidecar says is believed but the name and the port: they are judged anew by the grant that
control told the dialer, before anything is resolved (docs/security.md, 16 and 61).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import itertools
import os
import socket
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from clawbox.egress.addresses import check_answers, check_peer
from clawbox.egress.refusal import Denial, RefusedError
from clawbox.egress.rules import decide
from clawbox.egress.target import Form, Target
from clawbox.network_rules import ANY_HOST, RuleError, canonical_host, host_within
from clawbox.policy import NetworkGrant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from clawbox.egress.addresses import Address, AddressPolicy
    from clawbox.egress.dialer.resolver import Resolver
    from clawbox.egress.messages import Grant
    from clawbox.network_rules import NetworkRule

STAGGER_SECONDS: Final = 0.25
"""How long one address is tried before the next is tried as well (RFC 8305 section 5)."""
MAX_TRIED: Final = 16
"""Addresses of one host that are tried."""
MAX_TOGETHER: Final = 3
"""Of which so many at once; the one tried longest is given up for a further one."""
# A peer that is gone without a word is noticed after a minute of silence and four unanswered probes.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


@dataclass(frozen=True, slots=True)
class Connector:
    """Dials by one address policy."""

    policy: AddressPolicy
    """Without ``own``, which is asked for each time."""
    own: Callable[[Iterable[Address]], frozenset[Address]]
    """Those addresses that are this machine's; raises OSError."""

    async def dial(
        self, host: str, port: int, grant: Grant, resolver: Resolver
    ) -> tuple[socket.socket, Address]:
        """A connected, non-blocking socket within the grant's connect timeout. Raises RefusedError."""
        deadline = asyncio.get_running_loop().time() + grant.limits.connect_timeout_ms / 1000
        rule = permitted(grant, host, port)
        answers = await resolver.resolve(host, deadline)
        refusal = check_answers(answers, port, rule, self._policy_for(answers))
        if refusal is not None:
            raise RefusedError.of(refusal)
        sock = await _connect_to_one(interleaved(answers), port, deadline)
        try:
            return sock, self._checked_peer(sock, port, answers, rule)
        except BaseException:
            sock.close()
            raise

    def _checked_peer(
        self, sock: socket.socket, port: int, answers: Sequence[Address], rule: NetworkRule
    ) -> Address:
        """Believe what the kernel says that it is connected to, not what it was asked for (14)."""
        try:
            name = sock.getpeername()
        except OSError as error:
            raise RefusedError(Denial.CONNECT_FAILED, os.strerror(error.errno or errno.EIO)) from None
        peer = ipaddress.ip_address(name[0])
        if name[1] != port:
            raise RefusedError(Denial.ADDRESS_REFUSED, f"{peer}: not the port that was asked for")
        refusal = check_peer(peer, port, answers, rule, self._policy_for([peer]))
        if refusal is not None:
            raise RefusedError.of(refusal)
        return peer

    def _policy_for(self, addresses: Sequence[Address]) -> AddressPolicy:
        try:
            return replace(self.policy, own=self.own(addresses))
        except OSError:
            raise RefusedError(
                Denial.CONNECT_FAILED, "this machine does not say which addresses are its own"
            ) from None


def permitted(grant: Grant, host: str, port: int) -> NetworkRule:
    """The rule that lets a sandbox connect to a host and port. Raises RefusedError.

    Of several it is one that names the host rather than a bare ``*``, which trusts no internal network (18).
    """
    try:
        canonical = canonical_host(host)
    except RuleError:
        canonical = None
    if canonical != host:
        raise RefusedError(Denial.BAD_HOST)
    decision = decide(
        NetworkGrant(grant.rules), Target("https", host, port, "", None, Form.CONNECT), "CONNECT"
    )
    if decision.refusal is not None:
        raise RefusedError.of(decision.refusal)
    assert decision.rule is not None
    naming = (
        rule
        for rule in grant.rules
        if rule.host != ANY_HOST and port in rule.ports and host_within(rule.host, host)
    )
    return next(naming, grant.rules[decision.rule])


def interleaved(answers: Sequence[Address]) -> list[Address]:
    """The addresses in the order in which they are tried: the resolver's, but families by turns.

    RFC 8305 section 4.
    """
    first = [address for address in answers if address.version == answers[0].version]
    second = [address for address in answers if address.version != answers[0].version]
    turns = itertools.chain.from_iterable(itertools.zip_longest(first, second))
    return [address for address in turns if address is not None][:MAX_TRIED]


async def _connect_to_one(addresses: Iterable[Address], port: int, deadline: float) -> socket.socket:
    """The first connection that comes about; another address is tried whenever one fails or takes long."""
    left = deque(addresses)
    attempts: dict[asyncio.Task[socket.socket], Address] = {}
    failure = ""
    try:
        async with asyncio.timeout_at(deadline):
            while left or attempts:
                if left:
                    if len(attempts) == MAX_TOGETHER:
                        oldest = next(iter(attempts))
                        del attempts[oldest]
                        _give_up(oldest)
                    address = left.popleft()
                    attempts[asyncio.create_task(_connect(address, port))] = address
                done, _ = await asyncio.wait(
                    attempts,
                    timeout=STAGGER_SECONDS if left else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for attempt in done:
                    address = attempts[attempt]
                    error = attempt.exception()
                    if error is None:
                        attempts.pop(attempt)
                        return attempt.result()
                    if not isinstance(error, OSError):
                        raise error
                    attempts.pop(attempt)
                    failure = f"{address}: {error.strerror or error}"
    except TimeoutError:
        raise RefusedError(Denial.CONNECT_TIMEOUT) from None
    finally:
        for attempt in attempts:
            _give_up(attempt)
    raise RefusedError(Denial.CONNECT_FAILED, failure)


def _give_up(attempt: asyncio.Task[socket.socket]) -> None:
    attempt.cancel()
    attempt.add_done_callback(_discard)


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _connect(address: Address, port: int) -> socket.socket:
    """A socket connected to the address. Raises OSError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)  # noqa: FBT003
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        code = sock.connect_ex((str(address), port))
        if code == errno.EINPROGRESS:
            await _writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except BaseException:
        sock.close()
        raise
    if code:
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock.fileno(), _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
