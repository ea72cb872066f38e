"""First flights of TLS clients: real ones, and ones written by hand."""

from __future__ import annotations

import ssl


def record(payload: bytes, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    """One TLS record."""
    return bytes([kind]) + version + len(payload).to_bytes(2, "big") + payload


def vector(data: bytes, length: int) -> bytes:
    """``data`` after its length in ``length`` bytes."""
    return len(data).to_bytes(length, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    """One extension of a ClientHello."""
    return kind.to_bytes(2, "big") + vector(data, 2)


def server_name(name: bytes, kind: int = 0) -> bytes:
    """The server_name extension with one name."""
    return extension(0, vector(bytes([kind]) + vector(name, 2), 2))


def alpn(*protocols: bytes) -> bytes:
    """The application_layer_protocol_negotiation extension."""
    return extension(16, vector(b"".join(vector(protocol, 1) for protocol in protocols), 2))


def message(extensions: bytes | None, kind: int = 1, after: bytes = b"") -> bytes:
    """A handshake message that is a ClientHello unless ``kind`` says otherwise."""
    body = b"\x03\x03" + bytes(32) + vector(b"s" * 32, 1) + vector(b"\x13\x01\x13\x02", 2) + vector(b"\0", 1)
    if extensions is not None:
        body += vector(extensions, 2)
    return bytes([kind]) + vector(body + after, 3)


def hello(*extensions: bytes) -> bytes:
    """One record with a ClientHello."""
    return record(message(b"".join(extensions)))


def real_hello(name: str | None, protocols: list[str]) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("nobody answered")
