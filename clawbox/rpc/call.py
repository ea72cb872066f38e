"""The call that is being served: what its handler may want to know about it.

``current()`` gives it to handlers, because gRPC hands them only the message and its own context.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

from clawbox import telemetry
from clawbox.errors import invalid_field

if TYPE_CHECKING:
    import grpc.aio

    from clawbox.auth import Principal
    from clawbox.rpc.methods import Method

    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    """What gRPC gives every handler."""

REQUEST_ID_KEY = "x-request-id"
"""Metadata key of the request id, in requests and in trailing metadata of replies."""

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)

_current: ContextVar[Call] = ContextVar("clawbox_call")


class Call:
    """One RPC from its arrival to its end."""

    __slots__ = (
        "_principal",
        "code",
        "method",
        "name",
        "peer",
        "queued_us",
        "request_id",
        "severed",
        "started",
        "stopping",
        "task",
    )

    def __init__(self, name: str, method: Method, peer: str, request_id: str) -> None:
        self.name = name
        """Full name of the method: ``/clawbox.v1.Sandbox/Execute``."""
        self.method = method
        self.peer = peer
        """The caller's address as gRPC says it: ``ipv4:127.0.0.1:5000``, ``unix:``."""
        self.request_id = request_id
        self.queued_us = 0
        """How long it waited for a place among the executions, in microseconds."""
        self.started = time.perf_counter()
        self.code = "OK"
        """Name of the status code it ended with."""
        self.stopping = False
        """Whether the server, not the caller, ends it."""
        self.severed = False
        """Whether gRPC has ended it, so that nothing can be sent any more."""
        self.task = asyncio.current_task()
        self._principal: Principal | None = None

    @property
    def principal(self) -> Principal:
        """Who calls. Raises :class:`LookupError` in a public method, where nobody is known."""
        if self._principal is None:
            raise LookupError(f"{self.name} is public: its caller is not known")
        return self._principal

    @principal.setter
    def principal(self, principal: Principal) -> None:
        self._principal = principal

    @property
    def known_principal(self) -> Principal | None:
        """Who calls, or None when nobody is known (yet)."""
        return self._principal

    def adopt_request_id(self, request_id: str) -> str:
        """Take the id that the request's own field names; the empty one keeps what there is.

        Returns the id in force. Raises INVALID_FIELD when it is not 1 to 128 printable ASCII characters.
        """
        if request_id:
            if not is_request_id(request_id):
                raise invalid_field(
                    "request_id", "must be at most 128 printable ASCII characters without spaces", "pattern"
                )
            self.request_id = request_id
            telemetry.request_id.set(request_id)
        return self.request_id

    def enter(self) -> None:
        """Make this the call of the current task and of what it starts."""
        _current.set(self)
        telemetry.request_id.set(self.request_id)


def current() -> Call:
    """The call that the current task serves. Raises :class:`LookupError` outside of calls."""
    return _current.get()


def is_request_id(text: str) -> bool:
    """Whether ``text`` can be a request id: 1 to 128 printable ASCII characters, no spaces."""
    return _REQUEST_ID.fullmatch(text) is not None


def new_request_id() -> str:
    """A request id: 32 hexadecimal digits that sort by time, as a UUID version 7 does (RFC 9562, 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10))
    value = (milliseconds & (1 << 48) - 1) << 80 | noise
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return f"{value:032x}"


def peer_address(peer: str) -> str:
    """Whom the bounds for one address are for: without the port; an IPv6 address as its /64 network.

    Everyone on a Unix socket is ``unix``. (Who owns a /64 would have 2**64 addresses to be refused at.)
    """
    scheme, _, rest = peer.partition(":")
    if scheme == "ipv4":
        return rest.rpartition(":")[0] or rest
    if scheme == "ipv6":
        host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
        return _network_64(host)
    return scheme


def _network_64(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
