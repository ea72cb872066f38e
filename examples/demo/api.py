"""An API on this machine for the demo: HTTPS, with an authority of its own, and a key that it asks for."""

from __future__ import annotations

import contextlib
import datetime as dt
import hmac
import ipaddress
import json
import secrets
import ssl
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.2"
"""Of this machine, like 127.0.0.1; but programs ask that one past the proxy, as what is their own."""


@dataclass
class Api:
    """A server that answers at ``url``."""

    port: int
    ca_pem: str
    """The authority that its certificate is from."""
    key: str
    """What it wants to see as a Bearer token."""
    bodies: list[bytes] = field(default_factory=list)
    """What arrived of each request's body."""

    host: str = HOST
    """Its address."""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://{self.host}:{self.port}"


@contextlib.contextmanager
def serving() -> Iterator[Api]:
    """The API in threads of this process."""
    ca_pem, identity = _certificates()
    with ThreadingHTTPServer((HOST, 0), BaseHTTPRequestHandler) as server:
        api = Api(server.server_port, ca_pem, secrets.token_urlsafe(24))
        server.RequestHandlerClass = _handler(api)
        server.socket = _context(identity).wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization", "")
            knows = hmac.compare_digest(given, f"Bearer {api.key}")
            # As careless APIs do, it repeats what it was sent.
            self._answer(200 if knows else 401, {"key_is_right": knows, "you_sent": given})

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            api.bodies.append(body)
            if len(body) == length:
                self._answer(201, {"stored": True})

        def _answer(self, status: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    return Handler


def _context(identity: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(identity)
        context.load_cert_chain(file.name)
    return context


def _certificates() -> tuple[str, bytes]:
    """PEM of an authority, and of a key with a certificate from it."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clawbox demo CA")])
    now = dt.datetime.now(dt.UTC)

    def builder(name: x509.Name, owner: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(owner.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )

    root = (
        builder(root_name, root_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    leaf = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clawbox demo API")]), key)
        .add_extension(address, critical=False)
        .add_extension(issuer, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return root.public_bytes(pem).decode(), private + leaf.public_bytes(pem)
