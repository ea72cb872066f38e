"""What a Spawn asks for, checked and narrowed. Pure: nothing was looked for or made yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.config.containers import FOLDER_WORDS
from clawbox.containers.commands import check_command
from clawbox.containers.environment import check_environment
from clawbox.containers.images import ImageAllowlist, Reference
from clawbox.containers.labels import check_labels
from clawbox.containers.mounts import WORKSPACE, is_template_folder
from clawbox.containers.narrowing import (
    Bound,
    ContainerCeiling,
    Isolation,
    TemplateTerms,
    narrow_container,
)
from clawbox.containers.users import User
from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.network_rules import ShapeAction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clawbox.auth import Principal
    from clawbox.config import Config
    from clawbox.config.containers import ImageTemplate
    from clawbox.containers.calls import SpawnCall
    from clawbox.containers.narrowing import ContainerGrant

MAX_TASK: Final = 1024
"""Characters."""
FOLDER_KEYS: Final = ("working_dir", "home")
"""Of a template: folders in its containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What this server's settings offer to callers."""

    ceiling: ContainerCeiling
    allowlist: ImageAllowlist
    default_image: str
    templates: Mapping[str, ImageTemplate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one container is to be."""

    reference: Reference
    grant: ContainerGrant
    template: str = ""
    template_command: tuple[str, ...] = ()
    user: User | None = None
    """Pinned by the template; None: one of its own."""
    working_dir: str = WORKSPACE
    home: str = WORKSPACE


def offer_of(config: Config) -> Offer:
    """What the settings offer.

    Raises ValueError for an entry of ``images`` that names no image, and for a template's folder that no
    program may start in.
    """
    containers, policy, images = config.containers, config.container_policy, config.images
    allowlist = ImageAllowlist.parse(images.allowed, require_digest=images.require_digest)
    for where, image in [
        ("images.default", images.default),
        *((f"images.templates.{name}", template.image) for name, template in images.templates.items()),
    ]:
        try:
            Reference.parse(image)
        except ClawboxError as error:
            raise ValueError(f"{where}: {error.metadata['description']}") from None
    for name, template in images.templates.items():
        for key in FOLDER_KEYS:
            if not is_template_folder(getattr(template, key)):
                raise ValueError(f"images.templates.{name}.{key}: must be {FOLDER_WORDS}")
    ceiling = ContainerCeiling(
        memory_mb=Bound(containers.default_memory_mb, containers.max_memory_mb),
        timeout_ms=Bound(containers.default_timeout_ms or None, containers.max_timeout_ms or None),
        max_lifetime_ms=Bound(None, containers.max_lifetime_ms or None),
        cpu_millis=Bound(containers.default_cpu_millis or None, containers.max_cpu_millis or _all_cores()),
        pids=Bound(containers.default_pids, containers.max_pids),
        max_output_bytes=Bound(containers.default_output_bytes, containers.max_output_bytes),
        isolations=frozenset(Isolation(name) for name in policy.allowed_policies if name != "wasm_only"),
        network=policy.network_allowlist,
        credentials=frozenset(policy.allowed_credentials),
        max_concurrent=config.egress.max_concurrent,
        on_shape=ShapeAction(config.egress.on_shape),
    )
    return Offer(
        ceiling=ceiling, allowlist=allowlist, default_image=images.default, templates=images.templates
    )


def _all_cores() -> int:
    """More than this the engine refuses."""
    return 1000 * (os.cpu_count() or 1)


def template_terms(template: ImageTemplate) -> TemplateTerms:
    """What a template allows at most."""
    resources = template.resources
    return TemplateTerms(
        network=template.network_allowlist,
        credentials=frozenset(template.credentials),
        timeout_ms=resources.timeout_ms,
        memory_mb=resources.memory_mb,
        max_output_bytes=resources.max_output_bytes,
        cpu_shares=resources.cpu_shares,
        cpu_millis=resources.cpu_millis,
        pids=resources.pids,
        max_lifetime_ms=template.max_lifetime_ms,
    )


def check(call: SpawnCall, principal: Principal, offer: Offer) -> Wanted:
    """What the call gets. Raises INVALID_FIELD, IMAGE_NOT_ALLOWED, POLICY_DENIED, CREDENTIAL_NOT_ALLOWED."""
    if not call.task.strip():
        raise invalid_field("task", "must say what the container is for", "required")
    if len(call.task) > MAX_TASK:
        raise invalid_field("task", f"has more than {MAX_TASK} characters", "max_length")
    if call.command:
        check_command(call.command)
        if call.hold:
            raise invalid_field("hold", "excludes a command", "conflict")
    check_environment(call.env)
    check_labels(call.labels)
    template = _template(call, offer)
    # What the operator named in the settings needs no leave of the list for callers.
    if call.image is not None:
        reference = Reference.parse(call.image)
        offer.allowlist.check(reference)
    else:
        reference = Reference.parse(offer.default_image if template is None else template.image)
    grant = narrow_container(
        call.requested,
        None if template is None else template_terms(template),
        principal.limits,
        offer.ceiling,
    )
    if template is None:
        return Wanted(reference=reference, grant=grant)
    return Wanted(
        reference=reference,
        grant=grant,
        template=call.template or "",
        template_command=template.command,
        user=User.parse(template.user) if template.user else None,
        working_dir=template.working_dir,
        home=template.home,
    )


def _template(call: SpawnCall, offer: Offer) -> ImageTemplate | None:
    if call.template is None:
        return None
    template = offer.templates.get(call.template)
    if template is None:
        shown = call.template if len(call.template) <= 64 else f"{call.template[:61]}..."
        raise ClawboxError(
            Reason.TEMPLATE_NOT_FOUND,
            "there is no template {template}",
            resource=("template", shown),
            template=shown,
        )
    return template
