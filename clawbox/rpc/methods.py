"""Who may call what: one row for each method, and what the limits make of it.

A method that is registered without a row here makes the server refuse to start.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

Reflection = Literal["open", "token", "off"]
"""The setting ``server.reflection``."""


class Access(enum.Enum):
    """Who may call a method."""

    PUBLIC = "public"
    """Anyone. Open calls are bounded for each address, because nobody answers for them."""
    TOKEN = "token"  # noqa: S105 - a word, not a secret
    """Whoever has a valid token."""
    SCOPES = "scopes"
    """Whoever has a valid token with one of the method's scopes."""


@dataclass(frozen=True, slots=True)
class Method:
    """What the edge must know about a method before it reads anything of a call."""

    scopes: tuple[str, ...] = ()
    """Any one of them suffices; ``*`` includes all."""
    access: Access = Access.SCOPES
    execution: bool = False
    """Whether a call needs a place among the running executions."""
    watch: bool = False
    """Whether it goes on for as long as its caller likes, and is ended at once when the server drains. What
    does something for its caller meanwhile (Exec, a file) is not: it has until the end of the grace."""
    while_draining: bool = False
    """Whether it is answered while the server drains."""


_READ_TOOLS = Method(scopes=("sandbox:read", "sandbox:execute"))
_EXECUTE = Method(scopes=("sandbox:execute",), execution=True)
_WRITE_TOOLS = Method(scopes=("sandbox:write",))
_READ_CONTAINERS = Method(scopes=("containers:read",))
_WATCH_CONTAINERS = Method(scopes=("containers:read",), watch=True)
_WRITE_CONTAINERS = Method(scopes=("containers:write",))
_READ_AGENTS = Method(scopes=("agents:read",))
_WRITE_AGENTS = Method(scopes=("agents:write",))
_HEALTH = Method(access=Access.PUBLIC, while_draining=True)

_METHODS = {
    "/clawbox.v1.Sandbox/Execute": _EXECUTE,
    "/clawbox.v1.Sandbox/ExecuteStream": _EXECUTE,
    "/clawbox.v1.Sandbox/ListTools": _READ_TOOLS,
    "/clawbox.v1.Sandbox/GetTool": _READ_TOOLS,
    "/clawbox.v1.Sandbox/RegisterTool": _WRITE_TOOLS,
    "/clawbox.v1.Sandbox/UploadTool": _WRITE_TOOLS,
    "/clawbox.v1.Sandbox/DeleteTool": _WRITE_TOOLS,
    "/clawbox.v1.Sandbox/ReloadTools": _WRITE_TOOLS,
    "/clawbox.v1.Containers/Spawn": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/Get": _READ_CONTAINERS,
    "/clawbox.v1.Containers/List": _READ_CONTAINERS,
    "/clawbox.v1.Containers/Watch": _WATCH_CONTAINERS,
    "/clawbox.v1.Containers/Wait": _WATCH_CONTAINERS,
    "/clawbox.v1.Containers/Stop": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/Kill": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/Remove": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/Pause": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/Resume": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/Exec": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/RunCommand": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/Logs": _WATCH_CONTAINERS,
    "/clawbox.v1.Containers/Stats": _WATCH_CONTAINERS,
    "/clawbox.v1.Containers/WriteFile": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/ReadFile": _READ_CONTAINERS,
    "/clawbox.v1.Containers/ListFiles": _READ_CONTAINERS,
    "/clawbox.v1.Containers/StatFile": _READ_CONTAINERS,
    "/clawbox.v1.Containers/MakeDirectory": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/RemoveFile": _WRITE_CONTAINERS,
    "/clawbox.v1.Containers/ListTemplates": _READ_CONTAINERS,
    "/clawbox.v1.Agents/Register": _WRITE_AGENTS,
    "/clawbox.v1.Agents/Get": _READ_AGENTS,
    "/clawbox.v1.Agents/List": _READ_AGENTS,
    "/clawbox.v1.Agents/Update": _WRITE_AGENTS,
    "/clawbox.v1.Agents/Start": _WRITE_AGENTS,
    "/clawbox.v1.Agents/Stop": _WRITE_AGENTS,
    "/clawbox.v1.Agents/Remove": _WRITE_AGENTS,
    "/clawbox.v1.Agents/Heartbeat": _WRITE_AGENTS,
    "/clawbox.v1.Agents/Watch": Method(scopes=("agents:read",), watch=True),
    "/clawbox.v1.System/GetStatus": Method(scopes=("system:read",)),
    "/clawbox.v1.System/WatchAudit": Method(scopes=("audit:read",), watch=True),
    "/grpc.health.v1.Health/Check": _HEALTH,
    "/grpc.health.v1.Health/List": _HEALTH,
    # It ends by itself when the server drains, after it has told its last news.
    "/grpc.health.v1.Health/Watch": _HEALTH,
}

REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""The same service under its two names."""


def method_table(reflection: Reflection = "open") -> dict[str, Method]:
    """All rows, by full method name such as ``/clawbox.v1.Sandbox/Execute``."""
    table = dict(_METHODS)
    if reflection != "off":
        access = Access.PUBLIC if reflection == "open" else Access.TOKEN
        row = Method(access=access, watch=True)
        table.update({f"/{service}/ServerReflectionInfo": row for service in REFLECTION_SERVICES})
    return table
