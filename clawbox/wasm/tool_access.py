"""Who may see, change and publish a tool, and what its manifest may ask for.

What one may not see does not exist, as far as one is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clawbox.errors import ClawboxError, FieldViolation, Reason
from clawbox.policy import PrincipalTerms, ToolCeiling, manifest_excess

if TYPE_CHECKING:
    from clawbox.auth import Principal
    from clawbox.wasm.manifest import Manifest
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


def check_grantable(manifest: Manifest, owner: PrincipalTerms | None, ceiling: ToolCeiling) -> None:
    """Raises POLICY_DENIED when a manifest asks for more than the tool's owner or the server allows.

    ``owner`` is what the owner's token allows; None: the operator's, whom the server alone bounds.
    """
    excess = manifest_excess(manifest, owner, ceiling)
    if excess:
        raise ClawboxError(
            Reason.POLICY_DENIED,
            "manifest.{field}: {description}",
            violations=[FieldViolation(f"manifest.{v.field}", v.description, v.rule) for v in excess],
            field=excess[0].field,
            description=excess[0].description,
        )


def not_found(name: str) -> ClawboxError:
    """TOOL_NOT_FOUND, for a tool that is not there and for one that may not be seen alike."""
    return ClawboxError(
        Reason.TOOL_NOT_FOUND, "there is no tool {tool}", resource=("tool", name[:64]), tool=name[:64]
    )
