"""How a client reaches a server: address, TLS, token, and the options of the channel."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from clawbox_client.v1 import containers_pb2, sandbox_pb2, system_pb2

DEFAULT_ADDRESS = "127.0.0.1:9800"
"""Where a server listens unless it is told otherwise."""

DEFAULT_DEADLINE = 60.0
"""Seconds that a call may take unless it is told otherwise."""

DEFAULT_MAX_MESSAGE_BYTES = 16 << 20
"""The largest message that a client takes; servers send at most 10 MiB unless they are told otherwise."""

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: ``target`` is what gRPC takes, ``local`` says that no other machine is on the way."""

    text: str
    target: str
    local: bool

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads ``host:port``, ``[IPv6]:port`` or ``unix:/path``.

        Other schemes of gRPC (``dns:``, ``xds:`` …) are not accepted, so that an address never means
        more than it says.

        Raises ValueError.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            path = path.removeprefix("//") if path.startswith("///") else path
            if not path.startswith("/") or path.startswith("//") or "\0" in path:
                raise ValueError(
                    f"the socket of {text!r} must be an absolute path, as in unix:/run/clawbox.sock"
                )
            return cls(text, f"unix:{path}", local=True)
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not an address: host:port, [IPv6]:port or unix:/path")
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            ip = None
        if bracketed != (ip is not None and ip.version == 6) or (ip is None and not _HOST.fullmatch(host)):
            raise ValueError(f"{text!r} is not an address: host:port, [IPv6]:port or unix:/path")
        shown = f"[{ip}]" if bracketed else host
        # With its scheme spelt out, a host that is called like one (`unix`, `xds`) stays a host.
        return cls(
            text,
            f"dns:///{shown}:{int(port)}",
            ip.is_loopback if ip is not None else host.lower() == "localhost",
        )


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS to the server. ``Tls()`` trusts what the system trusts.

    ``ca``: PEM file with the authorities to trust instead. ``cert`` and ``key``: PEM files, both or
    neither, for a server that asks for a client certificate. ``server_name``: the name that the
    server's certificate must carry, when it is not the host of the address.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError, and ValueError when only one of ``cert`` and ``key`` is given."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and a key its certificate")
        return grpc.ssl_channel_credentials(
            root_certificates=_pem(self.ca), private_key=_pem(self.key), certificate_chain=_pem(self.cert)
        )


def _pem(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    data = Path(path).expanduser().read_bytes()
    if b"-----BEGIN " not in data:
        # grpc would accept the file, and fail every handshake without saying why.
        raise ValueError(f"{os.fspath(path)} is not a PEM file")
    return data


TokenSource = Callable[[], str]
"""Gives the token for the next call; called for every call, so it must be quick."""


def token_source(
    token: str | TokenSource | None, token_file: str | os.PathLike[str] | None
) -> TokenSource | None:
    """Where the bearer token comes from: itself, a function, or a file (read again when it changes).

    Raises ValueError when both are given or the token could not be sent, OSError for the file.
    """
    if token is not None and token_file is not None:
        raise ValueError("give a token or a token file, not both")
    if token_file is not None:
        source: TokenSource = _TokenFile(Path(token_file).expanduser())
        source()
        return source
    if isinstance(token, str):
        return _FixedToken(_checked(token, "the token"))
    return token


@dataclass(frozen=True, slots=True)
class _FixedToken:
    token: str = field(repr=False)

    def __call__(self) -> str:
        return self.token


class _TokenFile:
    """What a file holds, read again when it has changed: a rotated token needs no new client."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def __call__(self) -> str:
        stat = self._path.stat()
        now = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if now != self._seen:
            with self._path.open("rb") as file:
                text = file.read(8192).decode("ascii", "replace").strip()
            self._token = _checked(text, f"what {self._path} holds")
            self._seen = now
        return self._token


def _checked(token: str, what: str) -> str:
    if not _TOKEN.fullmatch(token):
        # Never the token itself: this text ends up on terminals and in logs.
        raise ValueError(f"{what} cannot be a token: one line of visible ASCII characters is needed")
    return token


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that a channel is made from."""

    address: Address
    token: TokenSource | None = field(repr=False)
    tls: Tls | None
    max_message_bytes: int

    @classmethod
    def make(
        cls,
        address: str,
        *,
        token: str | TokenSource | None,
        token_file: str | os.PathLike[str] | None,
        tls: Tls | None,
        insecure: bool,
        max_message_bytes: int,
    ) -> Connection:
        """Checks what the caller of a client gave.

        Raises ValueError: a malformed address or token; TLS and ``insecure`` together; or neither of the
        two for an address on another machine, because the token would cross the network in the clear.
        """
        parsed = Address.parse(address)
        if tls is not None and insecure:
            raise ValueError("TLS and insecure exclude each other")
        if tls is None and not parsed.local and not insecure:
            raise ValueError(
                f"{address} is on another machine: use TLS, or say that plaintext is meant (insecure), "
                "which shows the token to everybody on the way"
            )
        return cls(parsed, token_source(token, token_file), tls, max_message_bytes)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """The channel's arguments."""
        options: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", f"clawbox-client/{version('clawbox-client')}"),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", -1),  # the server says what is too much, with a reason
            ("grpc.service_config", SERVICE_CONFIG),
            ("grpc.service_config_disable_resolution", 1),  # not from DNS
            # A dead peer is noticed while a call waits. The server permits a ping every 10 s.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        if self.tls is None:
            # A proxy of the environment would read the token.
            options.append(("grpc.enable_http_proxy", 0))
        elif self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return tuple(options)


_SERVED = (
    sandbox_pb2.DESCRIPTOR,
    containers_pb2.DESCRIPTOR,
    system_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
)
_READING = ("Get", "List", "Check", "Stat", "Wait")


def _idempotent_methods() -> Iterable[dict[str, str]]:
    """Unary methods that only read: repeating one changes nothing."""
    for file in _SERVED:
        for service in file.services_by_name.values():
            for method in service.methods:
                if not method.server_streaming and method.name.startswith(_READING):
                    yield {"service": service.full_name, "method": method.name}


SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": list(_idempotent_methods()),
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
"""gRPC service config (grpc/service_config.proto, A6 of the gRPC proposals): what is retried, and how."""
