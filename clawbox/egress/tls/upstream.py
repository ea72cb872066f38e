"""TLS to the hosts that a sandbox may reach: always verified, HTTP/1.1 alone (properties 35, 37 and 72).

What is trusted: the system's store and the operator's private authorities. The store is where OpenSSL looks
for it, or where distributions have it; it is read before confinement. (The server's own ``SSL_CERT_FILE``
reaches no child: the environment does not.)
"""

from __future__ import annotations

import codecs
import functools
import re
import ssl
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from clawbox.egress.tls.session import HTTP_1_1, ClientSession

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SESSIONS: Final = 128
"""Hosts and ports whose last session is kept to be resumed."""
# What OpenSSL looks for in a folder of certificates (openssl-rehash(1)).
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.[0-9]+")

# Where distributions have every authority in one file, for an OpenSSL that was built to look elsewhere.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)

_prepared: list[ssl.SSLContext] = []


def preload() -> None:
    """Read the system's store, and prepare the context that the first UpstreamTls of each child takes."""
    codecs.lookup("idna")  # by which Python encodes each host, and which it imports when it first does
    _prepared[:] = [_context(b"".join(system_authorities()))]


class UpstreamTls:
    """The client's side of one sandbox's connections: what it trusts, and which sessions can be resumed."""

    def __init__(self, extra_ca: Iterable[str] = (), *, system: bool = True) -> None:
        """``extra_ca`` are PEM texts, each with one certificate or more; ``system``: trust its store, too.

        Raises ValueError for a text that is not PEM.
        """
        extra = b"".join(private_authorities(extra_ca))
        if not system:
            self._context = _context(b"")
        else:
            # Reading 150 certificates takes 30 ms. Nobody else has a context that was popped.
            self._context = _prepared.pop() if _prepared else _context(b"".join(system_authorities()))
        if extra:
            self._context.load_verify_locations(cadata=extra)
        self._sessions: OrderedDict[tuple[str, int], ssl.SSLSession] = OrderedDict()

    def session(self, host: str, port: int) -> ClientSession:
        """The client's side of a new connection; its first flight is pending at once.

        The certificate must be for ``host``, a name or an IP address in canonical form. A session is resumed
        that was verified for the same host and port by this very object.
        """
        place = host, port
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = self._context.wrap_bio(
            incoming, outgoing, server_hostname=host, session=self._sessions.get(place)
        )
        return ClientSession(connection, incoming, outgoing, functools.partial(self._remember, place))

    def _remember(self, place: tuple[str, int], session: ssl.SSLSession) -> None:
        self._sessions[place] = session
        self._sessions.move_to_end(place)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)


def private_authorities(texts: Iterable[str]) -> tuple[bytes, ...]:
    """The certificates in PEM texts, DER each. Raises ValueError for a text that is not PEM."""
    return tuple(
        certificate.public_bytes(Encoding.DER)
        for text in texts
        for certificate in x509.load_pem_x509_certificates(text.encode())
    )


def _context(trusted: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    # What the operator lists is trusted, whether or not it is a root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # As a server OpenSSL refuses that by itself; as a client it would let the upstream begin anew at will.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([HTTP_1_1])
    if trusted:
        context.load_verify_locations(cadata=trusted)
    return context


@functools.cache
def system_authorities() -> tuple[bytes, ...]:
    """Every authority of the system's store, DER each; empty where there is none: nothing verifies."""
    paths = ssl.get_default_verify_paths()
    files = [Path(paths.cafile)] if paths.cafile else []
    if paths.capath:
        folder = Path(paths.capath)
        files += sorted(path for path in folder.iterdir() if _HASHED_NAME.fullmatch(path.name))
    return _read(files) or next(filter(None, (_read([Path(bundle)]) for bundle in _BUNDLES)), ())


def _read(files: Iterable[Path]) -> tuple[bytes, ...]:
    """The authorities in these PEM files, DER each."""
    store = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for path in files:
        try:
            store.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError):
            continue  # OpenSSL passes over what it cannot read, too; there is less to trust then
    return tuple(store.get_ca_certs(binary_form=True))
