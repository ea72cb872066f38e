"""Where the server listens: a TCP port, with TLS if configured, and a Unix socket.

What is wrong is found before the first connection is taken, and said in one :class:`ListenError`.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc
import grpc.aio

if TYPE_CHECKING:
    from pathlib import Path

    from clawbox.config import ServerSettings


class ListenError(Exception):
    """The server cannot listen as configured; the text says which setting and why."""


def listen_tcp(server: grpc.aio.Server, settings: ServerSettings) -> int:
    """Bind the TCP port; returns the one in use, which for port 0 the kernel chose. Raises ListenError."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.port}"
    credentials = tls_credentials(settings)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ListenError(
            f"server.host, server.port: cannot listen on {address}: {_why(settings)}"
        ) from error


def tls_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """The credentials that the settings name, or None without TLS.

    Everything is read and checked here, because gRPC would start with a broken certificate and refuse every
    connection. With ``tls_client_ca`` a client must present a certificate of it, besides the token.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    chain = _read(settings.tls_cert, "tls_cert")
    key = _read(settings.tls_key, "tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The password callback keeps OpenSSL from asking at the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ListenError(
            f"server.tls_cert {settings.tls_cert}, server.tls_key {settings.tls_key}: "
            f"not a PEM certificate chain and its unencrypted key: {error}"
        ) from error
    authorities = None
    if settings.tls_client_ca is not None:
        authorities = _read(settings.tls_client_ca, "tls_client_ca")
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ListenError(
                f"server.tls_client_ca {settings.tls_client_ca}: not PEM certificates: {error}"
            ) from error
    return grpc.ssl_server_credentials(
        [(key, chain)], root_certificates=authorities, require_client_auth=authorities is not None
    )


class UnixListener:
    """A Unix socket of mode 0600 at ``path``; :meth:`remove` takes it away when the server has stopped."""

    def __init__(self, server: grpc.aio.Server, path: Path) -> None:
        """Bind. The socket of a dead server is replaced, that of a live one and any other file are not.

        Raises ListenError.
        """
        self._path = path
        _remove_stale(path)
        # The mask makes the socket private from its first moment. gRPC binds before it returns.
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{quote(str(path))}")  # gRPC takes it as a URI
            self._identity = _identity(path)
        except (RuntimeError, OSError) as error:
            raise ListenError(f"server.unix_socket: cannot listen on {path}: {_why_not_at(path)}") from error
        finally:
            os.umask(mask)

    def remove(self) -> None:
        """Unlink the socket, unless gRPC did or another server put its own there."""
        try:
            if _identity(self._path) == self._identity:
                self._path.unlink()
        except FileNotFoundError:
            pass


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that is gone. gRPC would remove a live one's, too, so look first."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"server.unix_socket: cannot look at {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"server.unix_socket: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        result = probe.connect_ex(str(path))
    if result == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif result == errno.ENOENT:
        return
    else:  # connected, or its queue is full, or it is somebody else's
        raise ListenError(f"server.unix_socket: another server listens on {path}")


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ListenError(f"server.{key}: cannot read {path}: {error.strerror}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _why(settings: ServerSettings) -> str:
    """What the kernel says to the address that gRPC could not have; gRPC's own text hides it."""
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        return f"the host has no address: {error.strerror}"
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen()
            except OSError as error:
                return error.strerror or str(error)
    return "gRPC refused it"


def _why_not_at(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} is not writable"
    if len(os.fsencode(path)) > 107:
        return "the path is longer than the 107 bytes that a Unix socket's may have"
    return "gRPC refused it"
