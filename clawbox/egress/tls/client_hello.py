"""The first flight of a TLS client: whom it asks for and what it would speak, before anything is answered.

RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3, RFC 7301. Records may be cut anywhere, and so may what
was received. Extensions that are not known, reserved values (GREASE, RFC 8701) and an encrypted inner hello
(ECH) are passed over: the name outside counts. A second ClientHello after HelloRetryRequest is not
looked at; the server that answers compares it with the first (RFC 8446 section 4.1.2).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from clawbox.egress.refusal import Denial, RefusedError, shown
from clawbox.egress.tls.session import HTTP_1_1
from clawbox.network_rules import RuleError, canonical_host

MAX_CLIENT_HELLO: Final = 16 << 10
"""Bytes of the message; with post-quantum keys and tickets real ones have 2 KiB."""
_MAX_RECORDS = 64
"""Programs that hide the name from middle boxes cut it into a few; more would only cost time."""
MAX_FLIGHT: Final = MAX_CLIENT_HELLO + 5 * _MAX_RECORDS
"""Bytes after which :func:`read_client_hello` asks for no more."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16
_MAX_RECORD = 16 << 10

# AlertDescription (RFC 8446 section 6) for what a client can be told in its own protocol.
_ALERTS: Final = {
    Denial.SNI_MISSING: 109,  # missing_extension
    Denial.SNI_DIFFERS: 112,  # unrecognized_name
    Denial.HTTP2_ONLY: 120,  # no_application_protocol
}


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client asked for."""

    server_name: str | None
    """As it came, ASCII; None where no name is sent."""
    alpn: tuple[bytes, ...]
    """In the client's order; empty where it negotiates nothing."""


class _Reader:
    """Bytes from the front; what is missing is malformed, since the whole message is there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, length: int) -> bytes:
        piece = self._data[self._at : self._at + length]
        if len(piece) < length:
            raise RefusedError(Denial.NOT_TLS, "the ClientHello is malformed")
        self._at += length
        return piece

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def vector(self, length: int) -> bytes:
        """What is preceded by its own length, a number of ``length`` bytes."""
        return self.take(self.number(length))


def begins_tls(data: bytes | bytearray) -> bool:
    """Whether the first byte (there is one) is that of a handshake record; no HTTP request begins so."""
    return data[0] == _HANDSHAKE


def read_client_hello(data: bytes | bytearray) -> ClientHello | None:
    """The ClientHello at the start of ``data``, or None while more bytes are needed, at most MAX_FLIGHT.

    What follows the message is not looked at. Raises RefusedError (NOT_TLS) as soon as no ClientHello can
    come of it.
    """
    message = bytearray()
    at = 0
    needed = 4
    for _ in range(_MAX_RECORDS):
        header = data[at : at + 5]
        # 3.x in every version from SSL 3 on; SSL 2 had another format, which nothing here speaks.
        if not b"\x16\x03".startswith(header[:2]):
            raise RefusedError(Denial.NOT_TLS)
        if len(header) < 5:
            return None
        length = int.from_bytes(header[3:5], "big")
        if not 0 < length <= _MAX_RECORD:
            raise RefusedError(Denial.NOT_TLS, "a record has no length that is allowed")
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if message and message[0] != _CLIENT_HELLO:
            raise RefusedError(Denial.NOT_TLS, "the first message is not a ClientHello")
        if len(message) >= 4:
            needed = 4 + int.from_bytes(message[1:4], "big")
            if needed > MAX_CLIENT_HELLO:
                raise RefusedError(Denial.NOT_TLS, "the ClientHello is too long")
            if len(message) >= needed:
                return _parse(bytes(message[4:needed]))
        if at > len(data):
            return None
    raise RefusedError(Denial.NOT_TLS, "the ClientHello is in too many records")


def _parse(body: bytes) -> ClientHello:
    hello = _Reader(body)
    hello.take(2 + 32)  # version and random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    extensions = _Reader(hello.vector(2) if hello else b"")
    if hello:
        raise RefusedError(Denial.NOT_TLS, "the ClientHello is malformed")
    found: dict[int, bytes] = {}
    while extensions:
        kind = extensions.number(2)
        if kind in found:
            raise RefusedError(Denial.NOT_TLS, "the ClientHello has an extension twice")
        found[kind] = extensions.vector(2)
    return ClientHello(
        server_name=_server_name(found[_SERVER_NAME]) if _SERVER_NAME in found else None,
        alpn=_protocols(found[_ALPN]) if _ALPN in found else (),
    )


def _server_name(extension: bytes) -> str:
    """One host name: RFC 6066 allows no second, and no other kind of name was ever defined."""
    whole = _Reader(extension)
    names = _Reader(whole.vector(2))
    kind = names.number(1)
    name = names.vector(2)
    if whole or names or kind or not name or not name.isascii():
        raise RefusedError(Denial.NOT_TLS, "the ClientHello's server name is malformed")
    return name.decode("ascii")


def _protocols(extension: bytes) -> tuple[bytes, ...]:
    whole = _Reader(extension)
    names = _Reader(whole.vector(2))
    protocols = []
    while names:
        protocols.append(names.vector(1))
    if whole or not protocols or not all(protocols):
        raise RefusedError(Denial.NOT_TLS, "the ClientHello's protocols are malformed")
    return tuple(protocols)


def check_tunnel(hello: ClientHello, host: str) -> None:
    """Whether bytes may pass unread to ``host``, canonical, that CONNECT named (property 33).

    A name must be asked for, and be that one: a server of many names would take the request to another.
    Clients send no name for an IP address (RFC 6066 section 3), so there none need be; a server can then go
    by the address alone, which is what the rule names. Raises RefusedError.
    """
    if hello.server_name is None and not _is_address(host):
        raise RefusedError(Denial.SNI_MISSING)
    _check_name(hello, host)


def check_intercept(hello: ClientHello, host: str) -> None:
    """Whether TLS for ``host`` is ended here (properties 34 and 37).

    No name need be asked for: certificate and upstream are CONNECT's host in any case. Raises RefusedError.
    """
    _check_name(hello, host)
    check_alpn(hello)


def check_alpn(hello: ClientHello) -> None:
    """Whether the client would speak HTTP/1.1: it says so, or negotiates nothing. Raises RefusedError."""
    if hello.alpn and HTTP_1_1.encode("ascii") not in hello.alpn:
        detail = "" if b"h2" in hello.alpn else "what it offers is neither HTTP/1.1 nor HTTP/2"
        raise RefusedError(Denial.HTTP2_ONLY, detail)


def alert(denial: Denial) -> bytes:
    """A record that tells a client in TLS why it is refused, where TLS has a word for that; else empty."""
    description = _ALERTS.get(denial)
    return b"" if description is None else bytes((21, 3, 3, 0, 2, 2, description))


def _check_name(hello: ClientHello, host: str) -> None:
    if hello.server_name is None:
        return
    try:
        name = canonical_host(hello.server_name)
    except RuleError:
        name = None
    if name != host:
        raise RefusedError(Denial.SNI_DIFFERS, shown(hello.server_name))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
