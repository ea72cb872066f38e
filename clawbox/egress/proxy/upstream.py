"""Connections to upstreams: opened through the dialer, kept for the next request that may have them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.egress.http.reader import ResponseReader
from clawbox.egress.proxy.wire import Wire
from clawbox.egress.refusal import Denial, RefusedError, Side

if TYPE_CHECKING:
    from clawbox.egress.proxy.ports import ClientTls, Dialer

IDLE_SECONDS: Final = 15.0
"""How long a connection is kept: less than servers do, so that they seldom close one that is about to be
used."""
MAX_IDLE: Final = 64


class Key(msgspec.Struct, frozen=True):
    """Requests that may share a connection (66): same token, place and credential.

    The grant and the TLS settings are the same for all of a sidecar; the address is the connection's own.
    """

    token: bytes
    scheme: str
    host: str
    port: int
    credential: str


@dataclass(slots=True)
class Connection:
    """One connection to an upstream."""

    key: Key
    wire: Wire
    address: str
    opened: int
    """How often everything had been renewed by then."""
    reader: ResponseReader = field(default_factory=ResponseReader)
    reused: bool = False


class Upstreams:
    """Opens connections, and keeps those that nothing is wrong with (71)."""

    def __init__(self, dialer: Dialer, tls: ClientTls, connect_seconds: float) -> None:
        self._dialer = dialer
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._idle: dict[Key, list[Connection]] = {}
        self._count = 0
        self._renewed = 0

    def take(self, key: Key) -> Connection | None:
        """A connection that is kept for such requests, if there is one that is still good."""
        kept = self._idle.get(key)
        while kept:
            connection = kept.pop()
            self._count -= 1
            if not kept:
                del self._idle[key]
            # Early bytes, or an end: whatever it is, nobody asked for it.
            if connection.wire.ended or connection.wire.buffered:
                connection.wire.abort()
                continue
            connection.wire.on_end = connection.wire.on_bytes = connection.wire.deadline.on_late = None
            connection.reused = True
            return connection
        return None

    async def open(self, key: Key) -> Connection:
        """A new connection. Raises RefusedError."""
        renewed = self._renewed
        wire, address = await self.connect(key.host, key.port)
        if key.scheme == "https":
            try:
                wire.deadline.limit(self._connect_seconds, Denial.CONNECT_TIMEOUT)
                await wire.start_tls(self._tls.session(key.host, key.port), Denial.TLS_FAILED)
            except BaseException:
                wire.abort()
                raise
        return Connection(key, wire, address, renewed)

    async def connect(self, host: str, port: int) -> tuple[Wire, str]:
        """A plain connection and its address. Raises RefusedError."""
        loop = asyncio.get_running_loop()
        dialed = await self._dialer.dial(host, port)
        try:
            _, wire = await loop.connect_accepted_socket(lambda: Wire(loop), dialed.socket)
        except OSError as error:
            dialed.socket.close()
            raise RefusedError(Denial.CONNECT_FAILED, "", Side.UPSTREAM) from error
        except BaseException:
            dialed.socket.close()
            raise
        return wire, dialed.address

    def keep(self, connection: Connection) -> None:
        """Take back a connection whose last answer was read whole; the caller has sent its whole request."""
        wire = connection.wire
        good = connection.reader.reusable and not (wire.ended or wire.failed or wire.buffered)
        if not good or connection.opened < self._renewed or self._count >= MAX_IDLE:
            wire.close()
            return
        wire.on_end = None
        self._idle.setdefault(connection.key, []).append(connection)
        self._count += 1
        wire.deadline.limit(IDLE_SECONDS, Denial.IDLE_TIMEOUT)
        wire.on_end = wire.on_bytes = wire.deadline.on_late = lambda: self._discard(connection)

    def forget(self, token: bytes) -> None:
        """Close what is kept for a token that is accepted no more."""
        for key in [key for key in self._idle if key.token == token]:
            for connection in self._idle.pop(key):
                self._count -= 1
                connection.wire.close()

    def renew(self) -> None:
        """Keep none of the connections that there are: their secrets were replaced."""
        self._renewed += 1
        self.close()

    def close(self) -> None:
        """Close everything that is kept."""
        for kept in self._idle.values():
            for connection in kept:
                connection.wire.abort()
        self._idle.clear()
        self._count = 0

    def _discard(self, connection: Connection) -> None:
        kept = self._idle.get(connection.key)
        if kept is not None and connection in kept:
            kept.remove(connection)
            self._count -= 1
            if not kept:
                del self._idle[connection.key]
            connection.wire.close()
