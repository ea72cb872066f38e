"""Settings of the server itself: listeners, tokens, logs, state, children."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from clawbox.config.fields import (
    Accepts,
    Count,
    CountOrZero,
    Fault,
    FilePath,
    Flag,
    HostAddress,
    MillisecondsOrZero,
    Name,
    OptionalPath,
    OptionalSecret,
    Port,
    Rule,
    Scope,
    Settings,
    Sha256,
    Token,
    refuse,
)

ADMIN = "admin"
"""Name of the principal that holds the server's own token."""

WELL_KNOWN_TOKEN = "changeme"  # noqa: S105 - refused, not used

_UIDS = 2**31
"""Some tools keep uids in signed 32 bits."""

_LEVELS = {"trace": "debug", "warn": "warning"}
"""Names of the Rust clawbox's levels that are not ours."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on ``host``; a name other than localhost may mean any."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _text(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()


class ServerSettings(Settings):
    """Where the gRPC service listens, who may call it, and how much it takes."""

    host: HostAddress = "127.0.0.1"
    """Address of the TCP listener. Other than loopback, it needs TLS, or ``insecure = true``."""
    port: Port = 9800
    """TCP port. 0: any free port, another at each start."""
    unix_socket: OptionalPath = None
    """A second listener, a Unix socket made with mode 0600; the same tokens are asked for. Empty: none."""
    auth_token: Token = None
    """The administrator's token. Empty: read from ``auth_token_file``."""
    auth_token_file: FilePath = Path("token")
    """File with the administrator's token; readable by its owner alone, or the server does not start."""
    max_concurrent_executions: Count = 10
    """Executions that run at the same time."""
    max_queued_executions: CountOrZero = 100
    """Executions that wait for their turn; the next one is RESOURCE_EXHAUSTED. 0: none wait."""
    max_message_bytes: Annotated[
        int, Field(strict=True, ge=1024, le=2**31 - 1), Accepts("bytes, 1024 to 2147483647")
    ] = 10_485_760
    """Largest message either way, in bytes."""
    reflection: Literal["open", "token", "off"] = "open"
    """Who may use gRPC reflection: anyone, callers with a token, or nobody."""
    tls_cert: OptionalPath = None
    """PEM file with the server's certificate chain. Empty: no TLS."""
    tls_key: OptionalPath = None
    """PEM file with the key of ``tls_cert``."""
    tls_client_ca: OptionalPath = None
    """PEM file with authorities: clients need a certificate of theirs besides the token (mutual TLS)."""
    insecure: Flag = False
    """Allow a non-loopback address without TLS, and the token ``changeme``."""
    grace_ms: MillisecondsOrZero = 30_000
    """How long calls may go on after SIGTERM or SIGINT, in milliseconds."""
    on_shutdown: Literal["stop", "leave"] = "stop"
    """Containers when the server stops: they are stopped too, or left running for the next server."""
    max_connection_age_ms: MillisecondsOrZero = 0
    """Age at which a connection is asked to go away, so that load balancers rebalance. 0: never."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = []
        if (self.tls_cert is None) != (self.tls_key is None):
            missing, given = ("tls_key", "tls_cert") if self.tls_key is None else ("tls_cert", "tls_key")
            faults.append(Fault(missing, "none", f"a path, because {given} is set", ("tls_cert", "tls_key")))
        if self.tls_client_ca is not None and self.tls_cert is None:
            faults.append(
                Fault("tls_client_ca", "a path", "none without tls_cert and tls_key", ("tls_cert",))
            )
        if not self.insecure and self.tls_cert is None and not is_loopback(self.host):
            faults.append(
                Fault(
                    "host",
                    f'"{self.host}" without TLS',
                    "a loopback address; or tls_cert and tls_key; or insecure = true (tokens in clear)",
                    ("tls_cert", "insecure"),
                )
            )
        if not self.insecure and _text(self.auth_token) == WELL_KNOWN_TOKEN:
            words = "a token that nobody can guess; or insecure = true"
            faults.append(Fault("auth_token", "the token of the examples", words, ("insecure",)))
        if faults:
            raise refuse(faults)
        return self


class MetricsSettings(Settings):
    """Where Prometheus finds ``/metrics``. No token is asked for, and no secret is shown."""

    host: HostAddress = "127.0.0.1"
    """Address of the HTTP listener."""
    port: Port = 9801
    """TCP port. 0: any free port, another at each start."""


class LoggingSettings(Settings):
    """The server's log, on stderr, and where the audit log goes."""

    format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for people."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least serious entry that is written; ``trace`` and ``warn`` are accepted for debug and warning."""
    audit_dir: FilePath = Path("audit")
    """Folder of the audit log."""

    @model_validator(mode="before")
    @classmethod
    def _level(cls, values: object) -> object:
        if isinstance(values, Mapping) and isinstance(level := values.get("level"), str):
            return {**values, "level": _LEVELS.get(level.lower(), level.lower())}
        return values


class AuditSettings(Settings):
    """The append-only record of what was allowed and what was refused."""

    on_error: Literal["refuse", "continue"] = "refuse"
    """When a record cannot be written: refuse the call, or go on without a record."""
    max_file_bytes: Annotated[int, Field(strict=True, ge=4096, le=2**53), Accepts("bytes, at least 4096")] = (
        10_485_760
    )
    """Size at which a file is closed and the next begun, in bytes."""
    keep_files: Count = 100
    """Closed files that are kept."""


class StateSettings(Settings):
    """Where containers and request ids are remembered."""

    url: OptionalSecret = None
    """Database URL, never shown: ``sqlite:////PATH``, or PostgreSQL, whose driver is installed apart.

    Empty: SQLite, in ``state.db`` in the folder of the settings file.
    """


class ChildrenSettings(Settings):
    """The processes that the server starts. As root, each has a uid of its own from this range.

    Servers on one machine share the range out among them: up to eight, each with an eighth of it.
    """

    uid_first: Annotated[int, Field(strict=True, ge=1000, le=2**31 - 1), Accepts("1000 to 2147483647")] = (
        900_000
    )
    """First uid of the range; nothing else on the machine may use it."""
    uid_count: Annotated[int, Field(strict=True, ge=16, le=2**20), Accepts("16 to 1048576")] = 10_000
    """How many uids the range has."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.uid_first + self.uid_count > _UIDS:
            raise refuse(
                [
                    Fault(
                        "uid_count",
                        str(self.uid_count),
                        f"a range that ends before uid {_UIDS}",
                        ("uid_first",),
                    )
                ]
            )
        return self


class TokenSettings(Settings):
    """One named principal: ``clawbox token add`` writes these."""

    name: Name
    """Name of the principal; ``admin`` is the server token's."""
    sha256: Sha256
    """SHA-256 of the token."""
    scopes: tuple[Scope, ...] = ()
    """What it may do. Empty: nothing but health checks."""
    network_allowlist: tuple[Rule, ...] | None = None
    """Most that its sandboxes may reach. Absent: what the server allows. Empty: nothing."""
    credentials: tuple[str, ...] | None = None
    """Credentials that its sandboxes may use. Absent: what the server allows. Empty: none."""
    max_sandboxes: Count | None = None
    """Its sandboxes (runs and containers) at the same time. Absent: the server's limits."""
    max_streams: Count | None = None
    """Its open streams. Absent: the server's limits."""


class AuthSettings(Settings):
    """Who else may call, besides the administrator."""

    tokens: tuple[TokenSettings, ...] = ()
    """Named principals."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = []
        names = {ADMIN}
        digests: set[str] = set()
        for index, token in enumerate(self.tokens):
            if token.name in names:
                words = f"a name of its own, and not {ADMIN}"
                faults.append(Fault(f"tokens[{index}].name", f'"{token.name}"', words))
            if token.sha256 in digests:
                faults.append(
                    Fault(f"tokens[{index}].sha256", "another token's digest", "a token of its own")
                )
            names.add(token.name)
            digests.add(token.sha256)
        if faults:
            raise refuse(faults)
        return self
