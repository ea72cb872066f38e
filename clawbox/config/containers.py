"""Settings of containers: the engine, what containers may be given, and their images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from clawbox.config.fields import (
    Accepts,
    Bytes,
    Count,
    FilePath,
    Flag,
    Megabytes,
    Milliseconds,
    MillisecondsOrZero,
    Name,
    Rule,
    Settings,
    Text,
)


class ContainersSettings(Settings):
    """The container engine and what containers may use of the machine.

    Planned: checked, and without effect until containers are served.
    """

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
    """What any container may be given at most. Nothing listed: nothing allowed.

    Planned: checked, and without effect until containers are served.
    """

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
    """Which images containers may be made from.

    Planned: checked, and without effect until containers are served.
    """

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
