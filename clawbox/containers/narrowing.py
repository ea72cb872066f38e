"""Narrowing: what one container may reach and use. Pure decisions, no I/O.

A grant is request ∩ template ∩ principal ∩ server. A request that asks for more than any of them allows is
refused with an error that names the field and the entry, as for tools (``clawbox.policy``). What a *template*
has beyond the principal and the server is not granted. Without a template a container gets no network that
its request does not name.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.network_rules import NetworkRule, ShapeAction, intersect_all, with_shape
from clawbox.policy import NetworkGrant, PrincipalTerms, check_credentials, check_network, over_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

_LARGEST_SHARES: Final = 262_144  # the kernel's
_LEAST: Final = {
    "memory_mb": 6,  # the engine's
    "cpu_shares": 2,  # the kernel's
    "cpu_millis": 10,  # the engine's: 1 ms in each period of 100
    "pids": 4,  # init, the gate, and a program with a child
}
"""Where less is refused by others; everything else is at least 1."""
_MOST_MS: Final = 100 * 366 * 86_400_000
"""A hundred years: what ends later has no date that everyone can read."""


class Isolation(enum.Enum):
    """What kind of sandbox a container is; the values are those of ``container_policy.allowed_policies``."""

    CONTAINER = "container"
    """Without a network card; the egress sidecar is the only way out."""
    DIRECT = "container_direct"
    """On the operator's own network, past the sidecar."""


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """What one Spawn asks for. None: the field was left out. Values are as received, not yet checked."""

    isolation: Isolation | None = None
    network: tuple[NetworkRule, ...] | None = None
    """None: everything that the template allows; empty: no network."""
    max_concurrent: int | None = None
    """None or 0: the server's."""
    credentials: tuple[str, ...] = ()
    timeout_ms: int | None = None
    memory_mb: int | None = None
    max_output_bytes: int | None = None
    cpu_shares: int | None = None
    cpu_millis: int | None = None
    pids: int | None = None
    max_lifetime_ms: int | None = None


@dataclass(frozen=True, slots=True)
class TemplateTerms:
    """What a template allows at most, and what it gives where a request says nothing. None: as the server."""

    network: tuple[NetworkRule, ...] = ()
    credentials: frozenset[str] = frozenset()
    timeout_ms: int | None = None
    memory_mb: int | None = None
    max_output_bytes: int | None = None
    cpu_shares: int | None = None
    cpu_millis: int | None = None
    pids: int | None = None
    max_lifetime_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """What a container gets where nobody says, and the most that may be asked for. None: no limit."""

    default: int | None
    maximum: int | None


@dataclass(frozen=True, slots=True)
class ContainerCeiling:
    """What the server allows any container."""

    memory_mb: Bound
    timeout_ms: Bound
    max_lifetime_ms: Bound
    cpu_millis: Bound
    pids: Bound
    max_output_bytes: Bound
    cpu_shares: Bound = Bound(1024, _LARGEST_SHARES)
    isolations: frozenset[Isolation] = frozenset({Isolation.CONTAINER})
    network: tuple[NetworkRule, ...] = ()
    """Empty: no container reaches anything."""
    credentials: frozenset[str] = frozenset()
    max_concurrent: int = 64
    on_shape: ShapeAction = ShapeAction.BLOCK


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """Limits of one container. None: it has no such limit."""

    memory_mb: int
    pids: int
    cpu_shares: int
    """Relative weight; 1024 is one share."""
    max_output_bytes: int
    """Of stdout and stderr each."""
    cpu_millis: int | None = None
    """Thousandths of a core."""
    timeout_ms: int | None = None
    """From its start."""
    max_lifetime_ms: int | None = None
    """From its creation."""


@dataclass(frozen=True, slots=True)
class ContainerGrant:
    """What one container may reach and use."""

    isolation: Isolation
    network: NetworkGrant
    credentials: frozenset[str]
    limits: ContainerLimits


def narrow_container(
    requested: ContainerRequest,
    template: TemplateTerms | None,
    principal: PrincipalTerms,
    server: ContainerCeiling,
) -> ContainerGrant:
    """What one container gets.

    Left out: the template's network (none without a template), no credentials, the template's and then the
    server's limits. Raises POLICY_DENIED or CREDENTIAL_NOT_ALLOWED when the request asks for more, and
    INVALID_FIELD for a limit that is too small for any container, or for rules beside a policy that has none.
    """
    isolation = _narrow_isolation(requested, template, principal, server)
    return ContainerGrant(
        isolation=isolation,
        network=NetworkGrant(rules=(), max_concurrent=server.max_concurrent)
        if isolation is Isolation.DIRECT
        else _narrow_network(requested, template, principal, server),
        credentials=_narrow_credentials(requested, template, principal, server),
        limits=_narrow_limits(requested, template, server),
    )


def _narrow_isolation(
    requested: ContainerRequest,
    template: TemplateTerms | None,
    principal: PrincipalTerms,
    server: ContainerCeiling,
) -> Isolation:
    isolation = requested.isolation or Isolation.CONTAINER
    layer = None
    if isolation not in server.isolations:
        layer = "server"
    elif isolation is Isolation.DIRECT:
        # It goes past every rule, so whoever is bound by rules cannot have it.
        if template is not None:
            layer = "template"
        elif principal.network is not None or principal.credentials is not None:
            layer = "token"
    if layer is not None:
        raise ClawboxError(
            Reason.POLICY_DENIED,
            "{field}: the {layer} does not allow {entry}",
            field="policy",
            entry=isolation.value,
            layer=layer,
        )
    if isolation is Isolation.DIRECT:
        for field, given in (
            ("capabilities.network", requested.network is not None),
            ("capabilities.credentials", bool(requested.credentials)),
        ):
            if given:
                raise invalid_field(field, "has no effect with container_direct; leave it out", "conflict")
    return isolation


def _narrow_network(
    requested: ContainerRequest,
    template: TemplateTerms | None,
    principal: PrincipalTerms,
    server: ContainerCeiling,
) -> NetworkGrant:
    layers: list[tuple[str, Sequence[NetworkRule]]] = []
    if template is not None:
        layers.append(("template", template.network))
    if principal.network is not None:
        layers.append(("token", principal.network))
    layers.append(("server", with_shape(server.network, server.on_shape)))
    check_network(requested.network or (), layers)
    rules = requested.network
    if rules is None:
        rules = () if template is None else template.network
    for _, allowed in layers:
        rules = intersect_all(rules, tuple(allowed))
    asked = requested.max_concurrent or server.max_concurrent
    if asked > server.max_concurrent:
        raise over_limit("capabilities.network.max_concurrent", asked, server.max_concurrent, "server")
    return NetworkGrant(rules=rules, max_concurrent=asked)


def _narrow_credentials(
    requested: ContainerRequest,
    template: TemplateTerms | None,
    principal: PrincipalTerms,
    server: ContainerCeiling,
) -> frozenset[str]:
    layers: list[tuple[str, frozenset[str]]] = []
    if template is not None:
        layers.append(("template", template.credentials))
    if principal.credentials is not None:
        layers.append(("token", principal.credentials))
    layers.append(("server", server.credentials))
    return check_credentials(requested.credentials, layers)


def _narrow_limits(
    requested: ContainerRequest, template: TemplateTerms | None, server: ContainerCeiling
) -> ContainerLimits:
    def pick(name: str, asked: int | None, templates: int | None, bound: Bound) -> int | None:
        field = name if name == "max_lifetime_ms" else f"capabilities.resources.{name}"
        maximum, layer, default = bound.maximum, "server", bound.default
        if templates is not None:
            default = templates
            if maximum is None or templates < maximum:
                maximum, layer = templates, "template"
        if asked is None:
            # A limit that the layers have is never lost because nobody named a number.
            known = [number for number in (default, maximum) if number is not None]
            return min(known, default=None)
        least = _LEAST.get(name, 1)
        if asked < least:
            raise invalid_field(field, f"must be at least {least}; leave it out for the default", "minimum")
        if maximum is not None and asked > maximum:
            raise over_limit(field, asked, maximum, layer)
        if name.endswith("_ms") and asked > _MOST_MS:
            raise invalid_field(field, f"must be at most {_MOST_MS}; leave it out for no limit", "maximum")
        return asked

    terms = template or TemplateTerms()

    def must(name: str, asked: int | None, templates: int | None, bound: Bound) -> int:
        found = pick(name, asked, templates, bound)
        if found is None:
            raise ValueError(f"the server has neither a default nor a maximum for {name}")
        return found

    return ContainerLimits(
        memory_mb=must("memory_mb", requested.memory_mb, terms.memory_mb, server.memory_mb),
        pids=must("pids", requested.pids, terms.pids, server.pids),
        cpu_shares=must("cpu_shares", requested.cpu_shares, terms.cpu_shares, server.cpu_shares),
        max_output_bytes=must(
            "max_output_bytes", requested.max_output_bytes, terms.max_output_bytes, server.max_output_bytes
        ),
        cpu_millis=pick("cpu_millis", requested.cpu_millis, terms.cpu_millis, server.cpu_millis),
        timeout_ms=pick("timeout_ms", requested.timeout_ms, terms.timeout_ms, server.timeout_ms),
        max_lifetime_ms=pick(
            "max_lifetime_ms", requested.max_lifetime_ms, terms.max_lifetime_ms, server.max_lifetime_ms
        ),
    )
