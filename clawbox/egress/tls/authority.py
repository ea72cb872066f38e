"""Each sandbox's own certificate authority, and the certificates its sidecar shows (docs/security.md, 73).

The key comes from the keeper's identity key and the sandbox's id (RFC 5869), and everything else in the
certificate is fixed or comes from the same, the signature too (RFC 6979): the trust anchor in a container is
the same, byte for byte, after every restart. No other container trusts it.
"""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from clawbox.egress.refusal import Denial, RefusedError
from clawbox.egress.tls.session import HTTP_1_1, ServerSession

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CURVE: Final = ec.SECP256R1()
_ORDER: Final = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
_KEY_BYTES = 32
# 128 bits more than the order has, so that the remainder is as good as uniform (FIPS 186-5, A.2.1).
_SCALAR_BYTES = 48
_SERIAL_BYTES = 16
_DOMAIN = b"clawbox sandbox authority 1\0"
_MAX_COMMON_NAME = 64
"""RFC 5280, ub-common-name."""

_CA_FROM: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_CA_UNTIL: Final = dt.datetime(2049, 12, 31, tzinfo=dt.UTC)
LEAF_BACKDATED: Final = dt.timedelta(days=1)
"""A sandbox's clock may be behind by as much."""
LEAF_LIFETIME: Final = dt.timedelta(days=14)
"""From now until a leaf expires."""
_LEAF_RENEWED: Final = LEAF_LIFETIME / 2
MAX_LEAVES: Final = 512

_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secret, authenticated; the leaves' key is ECDSA."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    certificate: x509.Certificate
    renew: float
    """Unix time from which a new one is minted."""


class Authority:
    """A sandbox's CA with its key, and the leaves that it has signed.

    One key serves all leaves of a process: it never leaves the sidecar, whoever could read it there could
    read every other key and the CA's own, and sessions do not depend on it (all key exchanges are
    ephemeral).
    """

    __slots__ = ("_clock", "_issuer", "_key", "_leaf_key", "_leaves", "ca_pem", "certificate")

    certificate: x509.Certificate
    ca_pem: str
    """The certificate alone: what a container trusts."""

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` gives Unix time in seconds. Raises ValueError where key and certificate are no pair."""
        if key.public_key() != certificate.public_key():
            raise ValueError("the key is not the certificate's")
        self._key = key
        self._clock = clock
        self._leaf_key = ec.generate_private_key(_CURVE)
        self._leaves: OrderedDict[str, _Leaf] = OrderedDict()
        self._issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        self.certificate = certificate
        self.ca_pem = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def session(self, host: str) -> ServerSession:
        """The server's side of a new connection, as ``host`` (canonical: a name or an IP address).

        It speaks TLS 1.2 and later and HTTP/1.1 alone, and resumes nothing (property 72). Raises RefusedError
        where no certificate can be made for the host.
        """
        connection = SSL.Connection(_context(), None)
        connection.use_certificate(self.leaf(host))
        connection.use_privatekey(self._leaf_key)
        connection.set_accept_state()
        return ServerSession(connection)

    def leaf(self, host: str) -> x509.Certificate:
        """The certificate for ``host``, minted where there is none or it is half way to its end."""
        now = self._clock()
        leaf = self._leaves.get(host)
        # A clock that was set back leaves certificates behind that are not valid yet.
        if leaf is None or not leaf.renew - _LEAF_RENEWED.total_seconds() <= now < leaf.renew:
            leaf = _Leaf(self._mint(host, now), now + _LEAF_RENEWED.total_seconds())
            self._leaves[host] = leaf
            if len(self._leaves) > MAX_LEAVES:
                self._leaves.popitem(last=False)
        self._leaves.move_to_end(host)
        return leaf.certificate

    def _mint(self, host: str, now: float) -> x509.Certificate:
        time_now = dt.datetime.fromtimestamp(int(now), dt.UTC)
        public = self._leaf_key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(_common_name(host if len(host) <= _MAX_COMMON_NAME else "clawbox"))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(time_now - LEAF_BACKDATED)
            .not_valid_after(time_now + LEAF_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def to_bytes(self) -> bytes:
        """Key and certificate, for the keeper to hand to the sidecar; as secret as the key."""
        scalar = self._key.private_numbers().private_value.to_bytes(_KEY_BYTES, "big")
        return scalar + self.certificate.public_bytes(serialization.Encoding.DER)

    @classmethod
    def from_bytes(cls, data: bytes) -> Authority:
        """What :meth:`to_bytes` gave. Raises ValueError."""
        scalar = int.from_bytes(data[:_KEY_BYTES], "big")
        return cls(ec.derive_private_key(scalar, _CURVE), x509.load_der_x509_certificate(data[_KEY_BYTES:]))

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()!r})"


def derive_authority(seed: bytes, sandbox: str) -> Authority:
    """The authority of the sandbox with this id; ``seed`` is the identity key's secret, 32 bytes or more.

    The same arguments give the same key and the same certificate, byte for byte.
    """
    if len(seed) < _KEY_BYTES:
        raise ValueError("the seed is too short")
    length = _SCALAR_BYTES + _SERIAL_BYTES
    derivation = HKDF(hashes.SHA256(), length, salt=None, info=_DOMAIN + sandbox.encode("utf-8"))
    material = derivation.derive(seed)
    scalar = int.from_bytes(material[:_SCALAR_BYTES], "big") % (_ORDER - 1) + 1
    key = ec.derive_private_key(scalar, _CURVE)
    name = _common_name(f"clawbox sandbox {sandbox}"[:_MAX_COMMON_NAME])
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(int.from_bytes(material[_SCALAR_BYTES:], "big") >> 1 | 1)
        .not_valid_before(_CA_FROM)
        .not_valid_after(_CA_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return Authority(key, certificate)


@functools.cache
def _context() -> SSL.Context:
    """What every server session of a process shares: how TLS is spoken, and no key.

    One for all, and made before confinement: its callback needs executable memory (libffi). Nothing is
    resumed, because the ticket key of a context made in the forkserver would be every sidecar's.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_alpn_select_callback(_choose_protocol)
    return context


def _choose_protocol(_connection: SSL.Connection, offered: Sequence[bytes]) -> bytes:
    # What is raised here ends the handshake with the alert no_application_protocol (RFC 7301 section 3.2).
    choice = HTTP_1_1.encode("ascii")
    if choice not in offered:
        raise RefusedError(Denial.HTTP2_ONLY)
    return choice


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise RefusedError(Denial.BAD_HOST, "no certificate can name it") from None


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
