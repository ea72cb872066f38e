"""Settings of what runs in sandboxes: tools, what they may reach, and how they reach it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from clawbox.config.fields import (
    Bytes,
    Count,
    CountOrZero,
    Fault,
    FilePath,
    Flag,
    Megabytes,
    Milliseconds,
    Network,
    OptionalPath,
    Rule,
    Settings,
    refuse,
)


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/clawbox``, else ``~/.cache/clawbox``; XDG says to ignore a relative value."""
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path("~/.cache")) / "clawbox"


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
    cache_dir: FilePath = Field(default_factory=default_cache_dir)
    """Folder of compiled tools, the server's alone. Default: ``${XDG_CACHE_HOME:-~/.cache}/clawbox``."""
    max_tool_bytes: Bytes = 67_108_864
    """Largest ``.wasm`` file, uploaded or in the folder, in bytes."""
    compile_timeout_ms: Milliseconds = 120_000
    """How long compiling one tool may take, in milliseconds."""
    on_injection: Literal["mark", "block"] = "mark"
    """What happens to tool output with a prompt-injection pattern: it is marked and reported, or BLOCKED."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = [
            Fault(
                f"default_{limit}", str(default), f"at most max_{limit}, which is {most}", (f"max_{limit}",)
            )
            for limit, default, most in (
                ("fuel", self.default_fuel, self.max_fuel),
                ("timeout_ms", self.default_timeout_ms, self.max_timeout_ms),
                ("memory_mb", self.default_memory_mb, self.max_memory_mb),
            )
            if default > most
        ]
        if faults:
            raise refuse(faults)
        return self


class ToolPolicySettings(Settings):
    """What any tool's manifest may reach at most. Nothing listed: nothing allowed."""

    network_allowlist: tuple[Rule, ...] = ()
    """Network rules; a manifest's rule must be covered by one of them."""
    allowed_credentials: tuple[str, ...] = ()
    """Names of credentials that manifests may name."""


class ProxySettings(Settings):
    """``http_request`` of tools and the sidecar's ``POST /proxy``, which answer with whole bodies."""

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
    """The encrypted file of credentials; its key comes from ``CLAWBOX_MASTER_KEY`` or from a file.

    `clawbox creds` keeps and checks it. The server's keeper reads it again whenever it changes.
    """

    store_path: FilePath = Path("~/.clawbox/credentials.enc")
    """The encrypted file; absent: no credentials."""
    master_key_file: OptionalPath = None
    """File with the key, 64 hexadecimal digits. Empty: ``CLAWBOX_MASTER_KEY``."""


class ToolsSettings(Settings):
    """Accepted because files of 0.1 have it, and without effect: say ``clawbox tool new --lang``."""

    default_language: Literal["rust", "python", "javascript", "js", "go", "c"] = "rust"
    """What 0.1 took where ``--lang`` was absent."""
