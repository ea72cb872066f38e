"""One TLS connection as a machine: ciphertext in, plaintext out, and the other way round.

Whoever owns the socket moves the bytes: what came from it goes to :meth:`TlsSession.receive`, and whatever
:meth:`TlsSession.pending`, :meth:`~TlsSession.send` and :meth:`~TlsSession.close` give goes to it, also after
an error, because the last of it is the alert that tells the other side. The server side is pyOpenSSL's, which
takes keys from memory; the client side is the standard library's, which compares host names
(docs/decisions/016-tls-libraries.md).
"""

from __future__ import annotations

import abc
import contextlib
import ssl
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from clawbox.egress.refusal import Denial, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

HTTP_1_1: Final = "http/1.1"
"""The one protocol that ALPN gets here (RFC 7301, property 37)."""
_RECORD = 16 << 10
"""Plaintext of one record; both libraries read one at a time (RFC 8446 section 5.1)."""
_PIECE = 64 << 10
"""Ciphertext that is taken from pyOpenSSL at a time."""

# X509_V_ERR_… of OpenSSL's x509_vfy.h; texts of our own, since the certificate's would be the upstream's.
_UNTRUSTED = "its certificate is from an authority that is not trusted here"
_CERTIFICATE_PROBLEMS: Final = {
    2: _UNTRUSTED,
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself",
    19: _UNTRUSTED,
    20: _UNTRUSTED,
    21: _UNTRUSTED,
    23: "its certificate was revoked",
    26: "its certificate is not for servers",
    62: "its certificate is for other names",
    64: "its certificate is for other addresses",
    66: "its certificate's key is too weak",
    68: "its certificate's signature is too weak",
}
# Words of OpenSSL's own, which differ a little between versions; Python does not know every reason's name.
_HANDSHAKE_PROBLEMS: Final = (
    ("wrong version number", "it does not speak TLS there"),
    ("http request", "it does not speak TLS there"),
    ("unsupported protocol", "it speaks no TLS of version 1.2 or later"),
    ("alert protocol version", "it speaks no TLS of version 1.2 or later"),
    ("no application protocol", "it does not speak HTTP/1.1"),
    ("certificate required", "it asks for a certificate of the client"),
    ("handshake failure", "it refused the handshake"),
    ("unrecognized name", "it does not know the host's name"),
    ("key too small", "its key exchange is too weak"),
)


class TlsError(RefusedError):
    """The session failed and is of no more use; its ``detail`` never holds the other side's text."""


class TlsSession(abc.ABC):
    """One side of one connection. Once it raised TlsError, only :meth:`pending` may be called."""

    handshake_done: bool = False
    clean_close: bool = False
    """The other side said that nothing follows (close_notify). A connection that ends without was cut off."""

    @property
    @abc.abstractmethod
    def alpn(self) -> str | None:
        """``http/1.1``, or None where the other side does not negotiate; known after the handshake."""

    @property
    @abc.abstractmethod
    def server_name(self) -> str | None:
        """The name that the client asked for (SNI)."""

    @abc.abstractmethod
    def receive(self, data: bytes | bytearray | memoryview) -> bytes:
        """The plaintext in ``data``, empty while the handshake lasts; then write what is pending.

        Raises TlsError.
        """

    @abc.abstractmethod
    def send(self, plaintext: bytes | bytearray | memoryview) -> bytes:
        """The ciphertext to write, with whatever was pending before it. Only after the handshake.

        Raises TlsError.
        """

    @abc.abstractmethod
    def pending(self) -> bytes:
        """What is to be written: handshake messages, key updates, alerts. Each byte is given once."""

    @abc.abstractmethod
    def close(self) -> bytes:
        """The last bytes to write: close_notify after a handshake, and what is pending. Never raises."""


class ServerSession(TlsSession):
    """The side that the sandbox's program talks to."""

    def __init__(self, connection: SSL.Connection) -> None:
        """``connection`` is without a socket, in the accept state, and has its certificate and key."""
        self._connection = connection

    @property
    def alpn(self) -> str | None:  # noqa: D102
        return self._connection.get_alpn_proto_negotiated().decode("ascii") or None

    @property
    def server_name(self) -> str | None:  # noqa: D102
        name = self._connection.get_servername()
        return None if name is None else name.decode("ascii", "replace")

    def receive(self, data: bytes | bytearray | memoryview) -> bytes:  # noqa: D102
        if data:
            self._connection.bio_write(data)
        try:
            if not self.handshake_done:
                self._connection.do_handshake()
                self.handshake_done = True
            return self._read()
        except SSL.WantReadError:
            return b""
        except SSL.Error as error:
            raise _client_problem(error, handshake_done=self.handshake_done) from None
        except RefusedError as error:  # of the callback that chooses the protocol
            raise TlsError(error.refusal.denial, error.refusal.detail) from None

    def _read(self) -> bytes:
        pieces: list[bytes] = []
        try:
            while True:
                pieces.append(self._connection.recv(_RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.clean_close = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, plaintext: bytes | bytearray | memoryview) -> bytes:  # noqa: D102
        if plaintext:
            try:
                self._connection.sendall(plaintext)
            except SSL.Error:
                raise TlsError(Denial.CLIENT_TLS_FAILED, "nothing can be sent") from None
        return self.pending()

    def pending(self) -> bytes:  # noqa: D102
        pieces: list[bytes] = []
        with contextlib.suppress(SSL.WantReadError):  # nothing is left
            while not pieces or len(pieces[-1]) == _PIECE:
                pieces.append(self._connection.bio_read(_PIECE))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> bytes:  # noqa: D102
        if self.handshake_done:
            with contextlib.suppress(SSL.Error):
                self._connection.shutdown()
        return self.pending()


class ClientSession(TlsSession):
    """The side that talks to the upstream."""

    def __init__(
        self,
        connection: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        remember: Callable[[ssl.SSLSession], None],
    ) -> None:
        """``connection`` has the two buffers; ``remember`` gets what a later handshake can resume."""
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self._remember: Callable[[ssl.SSLSession], None] | None = remember
        self.receive(b"")

    @property
    def alpn(self) -> str | None:  # noqa: D102
        return self._connection.selected_alpn_protocol()

    @property
    def server_name(self) -> str | None:  # noqa: D102
        return self._connection.server_hostname

    @property
    def resumed(self) -> bool:
        """Whether the handshake resumed a session, and so proved nothing anew."""
        return bool(self._connection.session_reused)

    def receive(self, data: bytes | bytearray | memoryview) -> bytes:  # noqa: D102
        if data:
            self._incoming.write(data)
        try:
            if not self.handshake_done:
                self._connection.do_handshake()
                if self.alpn not in (None, HTTP_1_1):
                    raise TlsError(Denial.TLS_FAILED, "it does not speak HTTP/1.1")
                self.handshake_done = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            raise _upstream_problem(error) from None

    def _read(self) -> bytes:
        pieces: list[bytes] = []
        try:
            while piece := self._connection.read(_RECORD):
                pieces.append(piece)
            self.clean_close = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.clean_close = True
        if pieces and self._remember is not None:
            # TLS 1.3 sends tickets after the handshake, and so before the first answer's bytes.
            if self._connection.session is not None:
                self._remember(self._connection.session)
            self._remember = None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, plaintext: bytes | bytearray | memoryview) -> bytes:  # noqa: D102
        rest = memoryview(plaintext)
        try:
            while rest:
                rest = rest[self._connection.write(rest) :]
        except ssl.SSLError:
            raise TlsError(Denial.TLS_FAILED, "nothing can be sent") from None
        return self._outgoing.read()

    def pending(self) -> bytes:  # noqa: D102
        return self._outgoing.read()

    def close(self) -> bytes:  # noqa: D102
        if self.handshake_done:
            with contextlib.suppress(ssl.SSLError):  # it waits for the other side's, which nobody else does
                self._connection.unwrap()
        return self._outgoing.read()


def _client_problem(error: SSL.Error, *, handshake_done: bool) -> TlsError:
    """A program that does not trust the sandbox's CA says so by an alert; anything else is not told apart."""
    reasons = (
        {entry[-1] for entry in error.args[0]} if error.args and isinstance(error.args[0], list) else set()
    )
    if handshake_done:
        detail = "a record is not good"
    elif any("unknown ca" in reason or "bad certificate" in reason for reason in reasons):
        detail = "it does not trust the sandbox's CA"
    elif any("protocol" in reason or "version" in reason for reason in reasons):
        detail = "it speaks no TLS of version 1.2 or later"
    else:
        detail = "the handshake failed"
    return TlsError(Denial.CLIENT_TLS_FAILED, detail)


def _upstream_problem(error: ssl.SSLError) -> TlsError:
    if isinstance(error, ssl.SSLCertVerificationError):
        code = int(error.verify_code)
        return TlsError(
            Denial.TLS_FAILED,
            _CERTIFICATE_PROBLEMS.get(code, f"its certificate is not good: OpenSSL's {code}"),
        )
    words = str(error).lower()
    detail = next(
        (detail for phrase, detail in _HANDSHAKE_PROBLEMS if phrase in words), "the handshake failed"
    )
    return TlsError(Denial.TLS_FAILED, detail)
