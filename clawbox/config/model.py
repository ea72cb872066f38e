"""All settings as one typed value.

``Config`` has one attribute for each section of the file, and each part of the program gets only its
section. All models are frozen, refuse unknown keys, and check themselves when made, wherever they are made:
an embedding program cannot build a ``ServerSettings`` that the file could not have said.

Sizes and times have their unit in the name: ``_ms`` milliseconds, ``_mb`` MiB, ``_bytes`` bytes. Paths are
absolute. Secrets are ``SecretStr``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pydantic import Field, PrivateAttr, model_validator

from clawbox.config.containers import ContainerPolicySettings, ContainersSettings, ImagesSettings
from clawbox.config.fields import Fault, Settings, refuse
from clawbox.config.running import (
    CredentialsSettings,
    EgressSettings,
    ProxySettings,
    SandboxSettings,
    ToolPolicySettings,
    ToolsSettings,
)
from clawbox.config.serving import (
    AuditSettings,
    AuthSettings,
    ChildrenSettings,
    LoggingSettings,
    MetricsSettings,
    ServerSettings,
    StateSettings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Origin:
    """What settings were made from, so that they can be read again."""

    file: Path | None
    overrides: Mapping[str, object] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    """The variables that are settings; may hold the administrator's token."""
    here: Path
    """The working directory, where relative paths of the environment start."""


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

    _origin: Origin | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """The file that the settings were read from; None when there was none."""
        return None if self._origin is None else self._origin.file

    def reload(self) -> Config:
        """Read the same file again, with the environment and overrides of the first time.

        Settings that code made are what they are. Raises ConfigError as :meth:`load` does.
        """
        from clawbox.config.load import load_from  # noqa: PLC0415 - load builds this class

        return self if self._origin is None else load_from(self._origin).config

    @model_validator(mode="after")
    def _check(self) -> Self:
        server, metrics = self.server, self.metrics
        if server.port == metrics.port != 0 and server.host == metrics.host:
            raise refuse(
                [
                    Fault(
                        "metrics.port", str(metrics.port), "another port than server.port's", ("server.port",)
                    )
                ]
            )
        return self

    @classmethod
    def load(cls, path: Path | None = None, *, overrides: Mapping[str, object] | None = None) -> Config:
        """Read the settings: file, then environment, then ``overrides`` (``{"server.insecure": True}``).

        Without ``path``, the file is looked for as :func:`clawbox.config.load.find_file` says. Raises
        :class:`clawbox.config.ConfigError` with every problem at once.
        """
        from clawbox.config.load import load  # noqa: PLC0415 - load builds this class

        return load(path, overrides=overrides).config
