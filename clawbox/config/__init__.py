"""Settings: TOML and environment, checked once, every problem reported together.

``Config.load(path)`` gives the whole; each part of the program gets only its section.
"""

from clawbox.config.fields import SCOPES
from clawbox.config.model import (
    AuditSettings,
    AuthSettings,
    ChildrenSettings,
    Config,
    ContainerPolicySettings,
    ContainersSettings,
    CredentialsSettings,
    EgressSettings,
    ImagesSettings,
    ImageTemplate,
    LoggingSettings,
    MetricsSettings,
    NetworkEntry,
    NetworkRuleTable,
    ProxySettings,
    SandboxSettings,
    ServerSettings,
    StateSettings,
    TemplateResources,
    TokenSettings,
    ToolPolicySettings,
    ToolsSettings,
)
from clawbox.config.problems import ConfigError, Problem

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
    "NetworkEntry",
    "NetworkRuleTable",
    "Problem",
    "ProxySettings",
    "SandboxSettings",
    "ServerSettings",
    "StateSettings",
    "TemplateResources",
    "TokenSettings",
    "ToolPolicySettings",
    "ToolsSettings",
]
