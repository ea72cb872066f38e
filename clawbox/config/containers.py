"""Settings of containers: the engine, what containers may be given, and their images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from clawbox.config.fields import (
    Accepts,
    Bytes,
    Count,
    CountOrZero,
    Fault,
    FilePath,
    Flag,
    Megabytes,
    Milliseconds,
    MillisecondsOrZero,
    Name,
    Rule,
    Settings,
    Text,
    refuse,
)

FOLDER_WORDS = 'an absolute path without ".", ".." and ":", outside /proc, /sys and /dev'
"""What a folder in a container may be; who makes containers checks it."""


class ContainersSettings(Settings):
    """The container engine and what containers may use of the machine.

    Containers need a server that is root, on the engine's own host; others serve tools alone, and say so.
    """

    enabled: Flag = True
    """Whether containers are served at all."""

    docker_url: Text = ""
    """The engine: ``unix:///PATH``, or ``tcp://`` and a loopback address. Empty: ``DOCKER_HOST``, or
    ``/var/run/docker.sock``."""
    max_containers: Count = 10
    """Containers that are active at the same time, whoever's they are; the next is RESOURCE_EXHAUSTED."""
    workspace_root: FilePath = Path("~/.clawbox/workspaces")
    """Folder of the workspaces; no two servers share one, and nobody but root may write above it."""
    workspace_max_bytes: Bytes = 4_294_967_296
    """Most that one workspace may hold, in bytes; a container whose workspace holds more is ended."""
    max_workspaces: Count = 100
    """Workspaces that are kept of one owner; a Spawn that makes one more is RESOURCE_EXHAUSTED."""
    retention_ms: MillisecondsOrZero = 3_600_000
    """How long an ended container and its output stay readable, in milliseconds."""
    max_finished: Count = 200
    """Ended containers that are kept of one owner; with the next, the one that ended first is forgotten."""
    runtime: Text = ""
    """Runtime asked of the engine: ``runc``, ``runsc``, ``kata`` … Empty: the engine's default."""
    pull_policy: Literal["never", "missing", "always"] = "missing"
    """When an image is pulled: never, when the engine does not have it, or for every container."""
    default_memory_mb: Megabytes = 512
    """Memory of a container where nobody says, in MiB; it has no swap."""
    max_memory_mb: Megabytes = 4096
    """Most memory that a request may ask for, in MiB."""
    default_pids: Count = 256
    """Processes and threads of a container where nobody says."""
    max_pids: Count = 1024
    """Most processes and threads that a request may ask for."""
    default_cpu_millis: CountOrZero = 0
    """Hard CPU limit where nobody says, in thousandths of a core. 0: none."""
    max_cpu_millis: CountOrZero = 0
    """Most CPU that a request may ask for, in thousandths of a core. 0: no limit."""
    default_timeout_ms: MillisecondsOrZero = 0
    """Time from a container's start where nobody says, in milliseconds. 0: no limit."""
    max_timeout_ms: MillisecondsOrZero = 0
    """Most time from its start that a request may ask for, in milliseconds. 0: no limit."""
    max_lifetime_ms: MillisecondsOrZero = 0
    """Longest life of any container, from its creation, in milliseconds. 0: no limit."""
    default_output_bytes: Bytes = 262_144
    """Output of stdout and stderr each that RunCommand and Kill return where nobody says, in bytes."""
    max_output_bytes: Bytes = 4_194_304
    """Most output that a request may ask for, in bytes."""
    redact_shapes: Flag = True
    """Replace what looks like a credential in the output of containers; known secrets always are."""
    direct_network: Text = "bridge"
    """The engine's network that containers with ``container_direct`` join."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        pairs = (
            ("default_memory_mb", self.default_memory_mb, "max_memory_mb", self.max_memory_mb),
            ("default_pids", self.default_pids, "max_pids", self.max_pids),
            ("default_cpu_millis", self.default_cpu_millis, "max_cpu_millis", self.max_cpu_millis),
            ("default_timeout_ms", self.default_timeout_ms, "max_timeout_ms", self.max_timeout_ms),
            ("default_output_bytes", self.default_output_bytes, "max_output_bytes", self.max_output_bytes),
        )
        faults = [
            Fault(name, str(default), f"at most {most_name}, which is {most}", (most_name,))
            for name, default, most_name, most in pairs
            if most and default > most
        ]
        if faults:
            raise refuse(faults)
        return self


class ContainerPolicySettings(Settings):
    """What any container may be given at most. Nothing listed: nothing allowed."""

    network_allowlist: tuple[Rule, ...] = ()
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
    network_allowlist: tuple[Rule, ...] = ()
    """Where its containers may connect, within ``container_policy``."""
    credentials: tuple[str, ...] = ()
    """Names of credentials that a request may ask for, within ``container_policy``; unasked it gets none."""
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
    working_dir: Annotated[str, Accepts(FOLDER_WORDS)] = "/workspace"
    """Folder where its program starts, and each process executed in it that is not told another."""
    home: Annotated[str, Accepts(FOLDER_WORDS)] = "/workspace"
    """Home folder of its user: ``HOME``, and what ``/etc/passwd`` says."""
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
    require_digest: Flag = False
    """Whether a request must name its image by digest; anyone who can tag images chooses what a tag means."""
    templates: dict[Name, ImageTemplate] = Field(default_factory=dict)
    """Templates by name."""
