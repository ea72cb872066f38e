"""Listeners: TCP, Unix socket, TLS, mutual TLS, and what gRPC core enforces for us."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from clawbox_client.v1 import containers_pb2, system_pb2, system_pb2_grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from clawbox.rpc.listeners import ListenError
from tests.integration.rpc.conftest import HANGS_SECONDS, details, failure, metadata, serving
from tests.live import free_ports

if TYPE_CHECKING:
    from pathlib import Path

STATUS = system_pb2.GetStatusRequest()


# TCP


async def test_a_second_server_on_the_port_fails_and_says_why() -> None:
    async with serving() as first:
        with pytest.raises(ListenError, match=f"127.0.0.1:{first.server.port}: Address already in use"):
            async with serving(port=first.server.port):
                pass


async def test_a_host_that_is_not_ours_fails_and_says_why() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0: Cannot assign requested address"):
        async with serving(host="192.0.2.1", insecure=True):
            pass


async def test_ipv6_loopback() -> None:
    async with serving(host="::1") as running:
        stub = system_pb2_grpc.SystemStub(await running.channel(address=f"[::1]:{running.server.port}"))
        assert (await stub.GetStatus(STATUS, metadata=metadata())).status == "ok"


async def test_a_start_that_fails_half_way_frees_the_port(tmp_path: Path) -> None:
    port, _ = free_ports()
    with pytest.raises(ListenError):
        async with serving(port=port, unix_socket=tmp_path / "missing" / "x.sock"):
            pass
    async with serving(port=port) as running:
        assert running.server.port == port


async def test_nothing_listens_after_the_server_left() -> None:
    port, _ = free_ports()
    async with serving(port=port) as running:
        assert running.server.port == port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


# Unix socket


async def test_the_unix_socket_is_private_asks_for_the_token_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "clawbox.sock"
    async with serving(unix_socket=path) as running:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        stub = system_pb2_grpc.SystemStub(await running.channel(address=f"unix:{path}"))
        assert (await stub.GetStatus(STATUS, metadata=metadata())).status == "ok"
        assert details(await failure(stub.GetStatus(STATUS))).reason == "TOKEN_MISSING"
    assert not path.exists()


async def test_the_unix_socket_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a b%41?#.sock"
    async with serving(unix_socket=path):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert not path.exists()


async def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "clawbox.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    async with serving(unix_socket=path) as running:
        stub = system_pb2_grpc.SystemStub(await running.channel(address=f"unix:{path}"))
        assert (await stub.GetStatus(STATUS, metadata=metadata())).status == "ok"


async def test_the_socket_of_a_live_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "clawbox.sock"
    async with serving(unix_socket=path) as first:
        with pytest.raises(ListenError, match="another server listens"):
            async with serving(unix_socket=path):
                pass
        stub = system_pb2_grpc.SystemStub(await first.channel(address=f"unix:{path}"))
        assert (await stub.GetStatus(STATUS, metadata=metadata())).status == "ok"


async def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "clawbox.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        async with serving(unix_socket=path):
            pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "why"), [("missing/clawbox.sock", "is not a folder"), ("x" * 120, "107 bytes")]
)
async def test_a_unix_socket_that_cannot_be_made_says_why(tmp_path: Path, name, why) -> None:
    with pytest.raises(ListenError, match=why):
        async with serving(unix_socket=tmp_path / name):
            pass


# TLS


@dataclass
class Authority:
    folder: Path
    name: str

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self.key, self.name, authority=True)
        self.file = self.folder / f"{self.name}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, key, subject: str, *, authority: bool = False):
        now = dt.datetime.now(dt.UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, subject: str, password: bytes | None = None) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate_file, key_file = self.folder / f"{subject}.crt", self.folder / f"{subject}.key"
        certificate_file.write_bytes(self._sign(key, subject).public_bytes(serialization.Encoding.PEM))
        encryption = (
            serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        )
        key_file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return certificate_file, key_file


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


async def _status(running, credentials: grpc.ChannelCredentials, sent=metadata()):  # noqa: B008
    async with grpc.aio.secure_channel(running.address, credentials) as channel:
        return await system_pb2_grpc.SystemStub(channel).GetStatus(
            STATUS, metadata=sent, timeout=HANGS_SECONDS
        )


async def test_tls(authority: Authority) -> None:
    certificate, key = authority.issue("server")
    async with serving(tls_cert=certificate, tls_key=key) as running:
        trusting = grpc.ssl_channel_credentials(authority.file.read_bytes())
        assert (await _status(running, trusting)).status == "ok"
        assert details(await failure(_status(running, trusting, ()))).reason == "TOKEN_MISSING"
        plain = system_pb2_grpc.SystemStub(await running.channel())
        error = await failure(plain.GetStatus(STATUS, metadata=metadata(), timeout=HANGS_SECONDS))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_asks_for_a_certificate_and_the_token(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("server")
    (tmp_path / "others").mkdir()
    stranger = Authority(tmp_path / "others", "stranger")
    root = authority.file.read_bytes()

    def client(issuer: Authority) -> grpc.ChannelCredentials:
        chain, private = issuer.issue("client")
        return grpc.ssl_channel_credentials(root, private.read_bytes(), chain.read_bytes())

    async with serving(tls_cert=certificate, tls_key=key, tls_client_ca=authority.file) as running:
        assert (await _status(running, client(authority))).status == "ok"
        refused = await failure(_status(running, client(authority), ()))
        assert details(refused).reason == "TOKEN_MISSING"
        for credentials in (client(stranger), grpc.ssl_channel_credentials(root)):
            error = await failure(_status(running, credentials))
            assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_certificates_that_do_not_work_stop_the_start(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("server")
    other_certificate, _ = authority.issue("other")
    locked_certificate, locked_key = authority.issue("locked", b"swordfish")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not PEM")
    for settings, why in (
        ({"tls_cert": tmp_path / "none", "tls_key": key}, "tls_cert: cannot read .*No such file"),
        ({"tls_cert": tmp_path, "tls_key": key}, "tls_cert: cannot read .*Is a directory"),
        ({"tls_cert": garbage, "tls_key": key}, "not a PEM certificate chain"),
        ({"tls_cert": other_certificate, "tls_key": key}, "not a PEM certificate chain.*mismatch"),
        ({"tls_cert": locked_certificate, "tls_key": locked_key}, "unencrypted key"),
        ({"tls_cert": certificate, "tls_key": key, "tls_client_ca": garbage}, "tls_client_ca"),
    ):
        with pytest.raises(ListenError, match=why):
            async with serving(**settings):
                pass


# What gRPC core enforces


async def test_an_old_connection_is_replaced_and_its_streams_live_on() -> None:
    async with serving(max_connection_age_ms=100) as running:
        channel = await running.channel()
        stub = system_pb2_grpc.SystemStub(channel)
        call = (await running.containers_stub()).Exec(metadata=metadata())
        await call.write(containers_pb2.ExecRequest())
        assert await call.read() is not grpc.aio.EOF
        await stub.GetStatus(
            STATUS, metadata=metadata()
        )  # now it is connected, and for how long is looked at
        async with asyncio.timeout(HANGS_SECONDS):
            # The server asks the idle connection to go.
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        await stub.GetStatus(STATUS, metadata=metadata())
        await call.write(containers_pb2.ExecRequest())
        assert await call.read() is not grpc.aio.EOF
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
