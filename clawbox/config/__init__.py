"""Settings: TOML and environment, checked once, every problem reported together.

``Config.load(path)`` gives the whole; each part of the program gets only its section.
"""

from clawbox.config.containers import (
    ContainerPolicySettings,
    ContainersSettings,
    ImagesSettings,
    ImageTemplate,
    TemplateResources,
)
from clawbox.config.fields import SCOPES, Scope
from clawbox.config.model import Config
from clawbox.config.problems import ConfigError, Problem
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
    TokenSettings,
)

__all__ = [
    "SCOPES",
    "AuditSettings",
    "AuthSettings",
    "ChildrenSettings",
    "Config",
    "ConfigError",
    "ContainerPolicySettings",
    "ContainersSettings",
    "CredentialsSettings",
    "EgressSettings",
    "ImageTemplate",
    "ImagesSettings",
    "LoggingSettings",
    "MetricsSettings",
    "Problem",
    "ProxySettings",
    "SandboxSettings",
    "Scope",
    "ServerSettings",
    "StateSettings",
    "TemplateResources",
    "TokenSettings",
    "ToolPolicySettings",
    "ToolsSettings",
]
