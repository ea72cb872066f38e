"""Who may see, change and publish a tool. What one may not see does not exist, as far as one is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from clawbox.auth import Principal
    from clawbox.wasm.tool_entry import ToolEntry


def sees(principal: Principal, entry: ToolEntry) -> bool:
    """Whether a principal sees a tool, and so may run it."""
    return entry.published or principal.is_admin or (entry.owner != "" and entry.owner == principal.name)


def check_may_change(principal: Principal, entry: ToolEntry) -> None:
    """Raises SCOPE_MISSING unless the tool is the principal's own, or it is an administrator."""
    if not principal.is_admin and not (entry.owner and entry.owner == principal.name):
        raise ClawboxError(
            Reason.SCOPE_MISSING,
            "only its owner or an administrator (scope {scope}) may change the tool {tool}",
            scope="*",
            tool=entry.name,
        )


def check_may_publish(principal: Principal, published: bool | None) -> None:  # noqa: FBT001
    """Raises SCOPE_MISSING when a tool is to be published by somebody who is no administrator."""
    if published and not principal.is_admin:
        raise ClawboxError(
            Reason.SCOPE_MISSING, "only an administrator (scope {scope}) may publish a tool", scope="*"
        )


def not_found(name: str) -> ClawboxError:
    """TOOL_NOT_FOUND, for a tool that is not there and for one that may not be seen alike."""
    return ClawboxError(
        Reason.TOOL_NOT_FOUND, "there is no tool {tool}", resource=("tool", name[:64]), tool=name[:64]
    )
