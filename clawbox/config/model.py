"""Every setting, as one typed value.

``Config`` has one attribute for each section of the file, and each part of the program gets only its
section. All models are frozen, refuse unknown keys, and check themselves when made, wherever they are made:
an embedding program cannot build a ``ServerSettings`` that the file could not have said.

Sizes and times have their unit in the name: ``_ms`` milliseconds, ``_mb`` MiB, ``_bytes`` bytes. Paths are
absolute. Secrets are ``SecretStr``.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from clawbox.config.fields import (
    SCOPES,
    Accepts,
    Bytes,
    Count,
    CountOrZero,
    FilePath,
    Flag,
    Megabytes,
    Milliseconds,
    MillisecondsOrZero,
    Name,
    Network,
    OptionalPath,
    OptionalSecret,
    Port,
    Sha256,
    Text,
    Token,
)


class Settings(BaseModel):
    """What all sections share: frozen, no unknown keys, defaults checked like values."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


def _refuse(key: str, found: str, accepted: str) -> PydanticCustomError:
    """The error of a rule that looks at more than one key; ``key`` is relative to the section."""
    return PydanticCustomError(
        "clawbox_rule",
        "{key}: found {found}; accepted: {accepted}",
        {"key": key, "found": found, "accepted": accepted},
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on ``host``; a name other than localhost may be anything."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class NetworkRuleTable(Settings):
    """One network rule written as a table; a plain string is the same as a table with only ``host``."""

    host: Annotated[str, StringConstraints(min_length=1), Accepts('a host name, "*.suffix" or an IP address')]
    """Exact host name in lower case, ``*.suffix`` for every name below it, or an IP address."""
    ports: tuple[Annotated[int, Field(strict=True, ge=1, le=65535)], ...] = ()
    """Ports in 1..65535. Empty: 80 and 443."""
    methods: tuple[str, ...] = ()
    """HTTP methods in upper case. Empty: every method."""
    path_prefixes: tuple[str, ...] = ()
    """Prefixes of the canonical path, each starting with ``/``. Empty: every path."""
    tls_mode: Literal["intercept", "tunnel"] | None = None
    """How TLS is carried. Absent: intercept."""
    on_shape: Literal["block", "redact", "report"] | None = None
    """What happens when something credential-shaped leaves. Absent: ``egress.on_shape``."""


NetworkEntry = Annotated[
    str | NetworkRuleTable,
    Accepts(
        'a host such as "api.example.com" or "*.example.com", or a table {host, ports, methods, path_prefixes}'
    ),
]


class ServerSettings(Settings):
    """Where the gRPC service listens, who may call it, and how much it takes."""

    host: Annotated[
        str,
        StringConstraints(min_length=1, pattern=r"^[^\s\[\]/]+\z"),
        Accepts("an IP address or a host name"),
    ] = "127.0.0.1"
    """Address of the TCP listener. Other than loopback, it needs TLS, or ``insecure = true``."""
    port: Port = 9800
    """TCP port. 0: any free port, which the first log line and ``serve`` name."""
    unix_socket: OptionalPath = None
    """A second listener, a Unix socket made with mode 0600; the same tokens are asked for. Empty: none."""
    auth_token: Token = None
    """The administrator's token. Empty: read from ``auth_token_file``."""
    auth_token_file: FilePath = Path("token")
    """File that holds the administrator's token; readable by its owner alone, or the server does not start."""
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
    """PEM file with the authorities whose client certificates are asked for (mutual TLS, besides the token)."""
    insecure: Flag = False
    """Allow a non-loopback address without TLS, and the token ``changeme``."""
    grace_ms: MillisecondsOrZero = 30_000
    """How long calls may go on after SIGTERM or SIGINT, in milliseconds."""
    on_shutdown: Literal["stop", "leave"] = "stop"
    """What happens to containers when the server stops: they stop, or are left for the next server to adopt."""
    max_connection_age_ms: MillisecondsOrZero = 0
    """Age at which a connection is asked to go away, so that load balancers rebalance. 0: never."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing, given = ("tls_key", "tls_cert") if self.tls_key is None else ("tls_cert", "tls_key")
            raise _refuse(missing, "none", f"a path, because {given} is set")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise _refuse("tls_client_ca", str(self.tls_client_ca), "none without tls_cert and tls_key")
        if not self.insecure and self.tls_cert is None and not is_loopback(self.host):
            raise _refuse(
                "host",
                f'"{self.host}" without TLS',
                "a loopback address; or set tls_cert and tls_key; or insecure = true (tokens then travel readable)",
            )
        if (
            not self.insecure
            and self.auth_token is not None
            and self.auth_token.get_secret_value() == "changeme"
        ):
            raise _refuse(
                "auth_token",
                "the well-known token",
                "a token that nobody can guess, such as `clawbox init` makes",
            )
        return self


class MetricsSettings(Settings):
    """Where Prometheus finds ``/metrics``. No token is asked for, and no secret is shown."""

    host: Annotated[
        str,
        StringConstraints(min_length=1, pattern=r"^[^\s\[\]/]+\z"),
        Accepts("an IP address or a host name"),
    ] = "127.0.0.1"
    """Address of the HTTP listener."""
    port: Port = 9801
    """TCP port. 0: any free port, which a log line names."""


class SandboxSettings(Settings):
    """WebAssembly tools: where they are, what a run may use at most, and how many run."""

    tool_dir: FilePath = Path("tools/wasm")
    """Folder with ``NAME.wasm`` and ``NAME.json``."""
    builtin_tools: Flag = True
    """Serve the interpreters that ship with clawbox (``python``, ``javascript``)."""
    watch_tools: Flag = True
    """Reload tools when their files change."""
    default_fuel: Count = 100_000_000
    """Fuel (about one unit for each instruction) of a run whose manifest says nothing."""
    max_fuel: Count = 100_000_000_000
    """Most fuel that a manifest or a request may ask for."""
    default_timeout_ms: Milliseconds = 30_000
    """Wall-clock time of a run whose manifest says nothing, in milliseconds."""
    max_timeout_ms: Milliseconds = 120_000
    """Most time that a manifest or a request may ask for, in milliseconds."""
    default_memory_mb: Megabytes = 256
    """Memory of a run whose manifest says nothing, in MiB."""
    max_memory_mb: Megabytes = 1024
    """Most memory that a manifest or a request may ask for, in MiB."""
    workers: CountOrZero = 0
    """Worker processes. 0: as many as the machine has cores."""
    cache_dir: FilePath = Field(default_factory=lambda: default_cache_dir())
    """Folder of compiled tools, which belongs to the server alone; by default ``${XDG_CACHE_HOME:-~/.cache}/clawbox``."""
    max_tool_bytes: Bytes = 67_108_864
    """Largest ``.wasm`` file, uploaded or in the folder, in bytes."""
    compile_timeout_ms: Milliseconds = 120_000
    """How long compiling one tool may take, in milliseconds."""
    on_injection: Literal["mark", "block"] = "mark"
    """What happens to tool output with a prompt-injection pattern: it is marked and reported, or BLOCKED."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for default, most in (
            ("default_fuel", "max_fuel"),
            ("default_timeout_ms", "max_timeout_ms"),
            ("default_memory_mb", "max_memory_mb"),
        ):
            if getattr(self, default) > getattr(self, most):
                raise _refuse(
                    default, str(getattr(self, default)), f"at most {most}, which is {getattr(self, most)}"
                )
        return self


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/clawbox``, or ``~/.cache/clawbox`` (XDG Base Directory: a relative value is ignored)."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else Path("~/.cache")) / "clawbox"


class ToolPolicySettings(Settings):
    """What any tool's manifest may reach at most. Nothing listed: nothing allowed."""

    network_allowlist: tuple[NetworkEntry, ...] = ()
    """Network rules; a manifest's rule must be covered by one of them."""
    allowed_credentials: tuple[str, ...] = ()
    """Names of credentials that manifests may name."""


class ProxySettings(Settings):
    """``host_call`` and ``POST /proxy``, which answer with whole bodies."""

    max_response_bytes: Bytes = 1_048_576
    """Largest response body, in bytes; a larger one is an error."""
    default_timeout_ms: Milliseconds = 30_000
    """Time for one request, in milliseconds."""


class EgressSettings(Settings):
    """Limits and addresses of every sandbox's way out."""

    requests_per_second: Count = 100
    """Requests per second of one sandbox, in the long run."""
    burst: Count = 200
    """Requests that may come at once before the rate applies."""
    max_concurrent: Count = 64
    """Requests of one sandbox in flight at once."""
    connect_timeout_ms: Milliseconds = 10_000
    """Time to connect upstream, in milliseconds."""
    idle_timeout_ms: Milliseconds = 300_000
    """Time without a byte either way after which a connection ends, in milliseconds."""
    trusted_networks: tuple[Network, ...] = ()
    """Internal networks that rules may reach although they are not public."""
    deny_addresses: tuple[Network, ...] = ()
    """Addresses that nothing may reach, such as this machine's own public address behind NAT."""
    upstream_ca: tuple[FilePath, ...] = ()
    """PEM files with private authorities that upstream certificates may come from."""
    on_shape: Literal["block", "redact", "report"] = "block"
    """What happens when something credential-shaped leaves a sandbox."""


class CredentialsSettings(Settings):
    """The encrypted file of credentials. Its key comes from ``CLAWBOX_MASTER_KEY`` or a file, never from here."""

    store_path: FilePath = Path("~/.clawbox/credentials.enc")
    """The encrypted file; absent: no credentials."""
    master_key_file: OptionalPath = None
    """File with the key, 64 hexadecimal digits. Empty: ``CLAWBOX_MASTER_KEY``."""


_LEVELS = {"trace": "debug", "warn": "warning"}


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
    """Where agents, containers and request ids are remembered."""

    url: OptionalSecret = None
    """Database URL. Empty: SQLite in the folder of the settings file. May hold a password, so it is not shown."""


class ContainersSettings(Settings):
    """The container engine and what containers may use of the machine."""

    docker_url: Text = ""
    """``unix://`` or ``tcp://`` address of the engine. Empty: ``DOCKER_HOST``, or its usual socket."""
    max_containers: Count = 10
    """Containers at the same time."""
    workspace_root: FilePath = Path("~/.clawbox/workspaces")
    """Folder of the workspaces."""
    workspace_max_bytes: Bytes = 1_073_741_824
    """Most that one workspace may hold, in bytes."""
    retention_ms: MillisecondsOrZero = 3_600_000
    """How long an ended container and its output stay readable, in milliseconds."""
    runtime: Text = ""
    """Runtime asked of the engine: ``runc``, ``runsc``, ``kata`` … Empty: the engine's default."""
    pull_policy: Literal["never", "missing", "always"] = "missing"
    """When an image is pulled."""


class ContainerPolicySettings(Settings):
    """What any container may be given at most. Nothing listed: nothing allowed."""

    network_allowlist: tuple[NetworkEntry, ...] = ()
    """Network rules; a request's or template's rule must be covered by one of them."""
    allowed_credentials: tuple[str, ...] = ()
    """Names of credentials that requests and templates may name."""
    allowed_policies: tuple[Literal["wasm_only", "container", "container_direct"], ...] = (
        "wasm_only",
        "container",
    )
    """Policies that may be asked for; ``container_direct`` gives a container a real network."""


class TemplateResources(Settings):
    """Limits of a template's containers; what is absent takes the server's default."""

    timeout_ms: Milliseconds | None = None
    """Wall-clock time, in milliseconds."""
    memory_mb: Megabytes | None = None
    """Memory, in MiB."""
    max_output_bytes: Bytes | None = None
    """Output kept, stdout and stderr each, in bytes."""
    cpu_shares: Count | None = None
    """Relative CPU weight; 1024 is one share."""
    cpu_millis: Count | None = None
    """Hard CPU limit, in thousandths of a core."""
    pids: Count | None = None
    """Processes and threads at once."""


class ImageTemplate(Settings):
    """A container that callers may ask for by name."""

    image: Annotated[str, StringConstraints(min_length=1), Accepts("an image reference")]
    """Image reference."""
    description: Text = ""
    """What it is for; callers see it."""
    network_allowlist: tuple[NetworkEntry, ...] = ()
    """Where its containers may connect, within ``container_policy``."""
    credentials: tuple[str, ...] = ()
    """Names of credentials its containers get, within ``container_policy``."""
    resources: TemplateResources = TemplateResources()
    """Limits."""
    command: tuple[str, ...] = ()
    """Program and arguments. Empty: the image's own."""
    user: Annotated[
        str,
        StringConstraints(pattern=r"^([0-9]+(:[0-9]+)?)?\z"),
        Accepts('numeric "uid" or "uid:gid", or ""'),
    ] = ""
    """Numeric ``uid`` or ``uid:gid``. Empty: a uid of its own."""
    max_lifetime_ms: Milliseconds | None = None
    """Longest life of a container, in milliseconds. Absent: no limit but the request's."""


class ImagesSettings(Settings):
    """Which images containers may be made from."""

    default: Annotated[str, StringConstraints(min_length=1), Accepts("an image reference")] = (
        "clawbox/agent-base:latest"
    )
    """Image of a request that names neither image nor template."""
    allowed: tuple[str, ...] = ("ghcr.io/n0xmare/", "alpine", "ubuntu", "debian", "clawbox/")
    """Allowed images: an exact repository name, or a prefix that ends with ``/``."""
    templates: dict[Name, ImageTemplate] = {}
    """Templates by name."""


class ToolsSettings(Settings):
    """What ``clawbox tool new`` writes."""

    default_language: Literal["rust", "python", "javascript", "js", "go", "c"] = "rust"
    """Language of a new tool when ``--lang`` is absent."""


class ChildrenSettings(Settings):
    """The processes that the server starts. As root, each has a uid of its own from this range."""

    uid_first: Annotated[int, Field(strict=True, ge=1000, le=2**31 - 1), Accepts("1000 to 2147483647")] = (
        900_000
    )
    """First uid of the range; nothing else on the machine may use it."""
    uid_count: Annotated[int, Field(strict=True, ge=16, le=2**20), Accepts("16 to 1048576")] = 10_000
    """How many uids the range has."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.uid_first + self.uid_count > 2**32 - 2:
            raise _refuse("uid_count", str(self.uid_count), "a range that ends below 4294967294")
        return self


class TokenSettings(Settings):
    """One named principal: ``clawbox token add`` writes these."""

    name: Name
    """Name of the principal; ``admin`` is the server token's."""
    sha256: Sha256
    """SHA-256 of the token."""
    scopes: tuple[Annotated[Literal[SCOPES], Accepts("a scope")], ...] = ()  # type: ignore[valid-type]
    """What it may do. Empty: nothing but health checks."""
    network_allowlist: tuple[NetworkEntry, ...] | None = None
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
        names: set[str] = {"admin"}
        digests: set[str] = set()
        for index, token in enumerate(self.tokens):
            if token.name in names:
                raise _refuse(
                    f"tokens[{index}].name", f'"{token.name}"', "a name that no other token has, nor admin"
                )
            if token.sha256 in digests:
                raise _refuse(f"tokens[{index}].sha256", "the digest of another token", "a token of its own")
            names.add(token.name)
            digests.add(token.sha256)
        return self


class Config(Settings):
    """All settings of one server. Made by :meth:`load`, or by code, section by section."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)
    tool_policy: ToolPolicySettings = Field(default_factory=ToolPolicySettings)
    proxy: ProxySettings = Field(default_factory=ProxySettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    credentials: CredentialsSettings = Field(default_factory=CredentialsSettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    state: StateSettings = Field(default_factory=StateSettings)
    containers: ContainersSettings = Field(default_factory=ContainersSettings)
    container_policy: ContainerPolicySettings = Field(default_factory=ContainerPolicySettings)
    images: ImagesSettings = Field(default_factory=ImagesSettings)
    tools: ToolsSettings = Field(default_factory=ToolsSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    children: ChildrenSettings = Field(default_factory=ChildrenSettings)

    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """The file that the settings were read from; None when there was none."""
        return self._file

    @classmethod
    def load(cls, path: Path | None = None, *, overrides: Mapping[str, object] | None = None) -> Config:
        """Read the settings: the file, then the environment, then ``overrides`` (``{"server.insecure": True}``).

        Without ``path``, the file is looked for as :func:`clawbox.config.load.find_file` says. Raises
        :class:`clawbox.config.ConfigError` with every problem at once.
        """
        from clawbox.config.load import load  # noqa: PLC0415 - load builds this class

        return load(path, overrides=overrides).config
