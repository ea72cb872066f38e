"""An authority for tests, whose certificates may be wrong in each way that a client must notice."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = dt.timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


class TestCa:
    """A root with a P-256 key, or an intermediate of ``issuer``, which leaves then bring along.

    Two roots do not know each other: the way to an unknown issuer.
    """

    __test__ = False  # not a test case

    def __init__(self, name: str = "clawbox test CA", issuer: TestCa | None = None) -> None:
        self.name = _name(name)
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name((issuer or self).name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 400 * DAY)
            .not_valid_after(now + 400 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign((issuer or self).key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
        self.chain: str = "" if issuer is None else self.pem + issuer.chain
        """What a server sends after its own certificate."""

    def issue(
        self,
        *names: str,
        not_before: dt.timedelta = -DAY,
        not_after: dt.timedelta = 30 * DAY,
        self_signed: bool = False,
        for_servers: bool = True,
        subject: str | None = None,
    ) -> bytes:
        """PEM of key and certificate for DNS names or IP addresses; times are relative to now.

        The subject is the first name unless ``subject`` says otherwise.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        signer = key if self_signed else self.key
        own_name = _name(subject or names[0])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if for_servers else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            x509.CertificateBuilder()
            .subject_name(own_name)
            .issuer_name(own_name if self_signed else self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + not_before)
            .not_valid_after(now + not_after)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = "" if self_signed else self.chain
        return private + certificate.public_bytes(serialization.Encoding.PEM) + chain.encode("ascii")

    def server_context(self, *names: str, alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
        """What a good server for these names listens with."""
        return server_context(self.issue(*names), alpn=alpn)

    def expired_context(self, *names: str) -> ssl.SSLContext:
        """A certificate that was good until yesterday."""
        return server_context(self.issue(*names, not_before=-30 * DAY, not_after=-DAY))

    def not_yet_valid_context(self, *names: str) -> ssl.SSLContext:
        """A certificate that is good from tomorrow on."""
        return server_context(self.issue(*names, not_before=DAY))

    def self_signed_context(self, *names: str) -> ssl.SSLContext:
        """A certificate that nobody else signed."""
        return server_context(self.issue(*names, self_signed=True))


def server_context(identity: bytes, *, alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
    """A context with this key and certificate; it resumes sessions, as servers do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "identity.pem")
        path.write_bytes(identity)
        context.load_cert_chain(path)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def client_context(*pems: str, alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
    """What a program with these authorities alone connects with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for pem in pems:
        context.load_verify_locations(cadata=pem)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
