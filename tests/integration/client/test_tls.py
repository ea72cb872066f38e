from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

import clawbox_client as cb
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.integration.client.conftest import Caller
from tests.integration.client.fakes import TOKEN, serving

if TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """A certificate authority for one test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key, x509.BasicConstraints(ca=True, path_length=None))
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *names: x509.GeneralName) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        extensions = [x509.SubjectAlternativeName(names)] if names else []
        certificate = self._sign(subject, key, *extensions)
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _sign(self, subject, key, *extensions) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


def server_credentials(authority, *names, client_ca=None):
    crt, key = authority.issue("server", *names)
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), crt.read_bytes())],
        root_certificates=None if client_ca is None else client_ca.file.read_bytes(),
        require_client_auth=client_ca is not None,
    )


async def test_tls_with_an_authority_of_ones_own(kind, authority):
    credentials = server_credentials(authority, x509.IPAddress(ip_address("127.0.0.1")))
    async with serving(credentials) as server:
        caller = Caller(kind, server.address, token=TOKEN, tls=cb.Tls(ca=authority.file))
        assert (await caller.call("status")).status == "ok"
        await caller.close()


async def test_a_server_of_another_authority_is_not_trusted_with_the_token(kind, authority, tmp_path):
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "authority")
    credentials = server_credentials(authority, x509.IPAddress(ip_address("127.0.0.1")))
    async with serving(credentials) as server:
        caller = Caller(kind, server.address, token=TOKEN, tls=cb.Tls(ca=other.file))
        with pytest.raises(cb.Unavailable):
            await caller.call("execute", "t")
        assert server.seen == []
        await caller.close()


async def test_the_name_in_the_certificate_can_be_given(kind, authority):
    credentials = server_credentials(authority, x509.DNSName("box.example"))
    async with serving(credentials) as server:
        wrong = Caller(kind, server.address, token=TOKEN, tls=cb.Tls(ca=authority.file))
        with pytest.raises(cb.Unavailable):
            await wrong.call("execute", "t")
        await wrong.close()
        right = Caller(
            kind, server.address, token=TOKEN, tls=cb.Tls(ca=authority.file, server_name="box.example")
        )
        assert (await right.call("status")).status == "ok"
        await right.close()


async def test_a_client_certificate(kind, authority):
    credentials = server_credentials(authority, x509.IPAddress(ip_address("127.0.0.1")), client_ca=authority)
    crt, key = authority.issue("client")
    async with serving(credentials) as server:
        without = Caller(kind, server.address, token=TOKEN, tls=cb.Tls(ca=authority.file))
        with pytest.raises(cb.Unavailable):
            await without.call("execute", "t")
        await without.close()
        with_one = Caller(kind, server.address, token=TOKEN, tls=cb.Tls(ca=authority.file, cert=crt, key=key))
        assert (await with_one.call("status")).status == "ok"
        await with_one.close()


async def test_plaintext_to_a_server_with_tls_fails_and_shows_nothing(kind, authority):
    credentials = server_credentials(authority, x509.IPAddress(ip_address("127.0.0.1")))
    async with serving(credentials) as server:
        caller = Caller(kind, server.address, token=TOKEN)
        with pytest.raises(cb.Unavailable):
            await caller.call("execute", "t")
        await caller.close()


async def test_a_unix_socket(kind, tmp_path):
    async with serving(address=f"unix:{tmp_path}/s.sock") as server:
        caller = Caller(kind, server.address, token=TOKEN)
        assert (await caller.call("status")).status == "ok"
        await caller.close()


async def test_a_proxy_of_the_environment_is_not_asked(kind, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    async with serving() as server:
        caller = Caller(kind, server.address, token=TOKEN)
        assert (await caller.call("status")).status == "ok"
        await caller.close()
