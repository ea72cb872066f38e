"""Narrowing: what one run of a tool may reach and use. Pure decisions, no I/O.

A grant is request ∩ manifest ∩ principal ∩ owner ∩ server. A *request* that asks for more than any of the
others allows is refused with an error that names the field and the entry; nothing is cut from it silently.
What a *manifest* asks beyond its owner and the server is never granted, and :func:`manifest_excess` says what
that is: registration over the API is refused for it, a file in the tool folder loads with warnings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from clawbox.errors import ClawboxError, FieldViolation, Reason, invalid_field
from clawbox.network_rules import (
    ANY_HOST,
    DEFAULT_PORTS,
    MAX_RULES,
    NetworkRule,
    RuleError,
    ShapeAction,
    TlsMode,
    covers,
    intersect_all,
    with_shape,
)
from clawbox.wasm.model import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ANY_HOST",
    "DEFAULT_PORTS",
    "MAX_RULES",
    "NOTHING",
    "LimitRange",
    "ManifestTerms",
    "NetworkGrant",
    "NetworkRule",
    "PrincipalTerms",
    "Requested",
    "RuleError",
    "ShapeAction",
    "TlsMode",
    "ToolCeiling",
    "ToolGrant",
    "covers",
    "limit_ranges",
    "manifest_excess",
    "narrow_tool",
    "over_limit",
]

_MIB = 1 << 20
DEFAULT_MAX_CONCURRENT = 5
"""Requests in flight at once for one run where the manifest names no number (Rust clawbox)."""


class PrincipalTerms(Protocol):
    """What a principal is limited to; ``clawbox.auth.PrincipalLimits`` is one. None: as the server."""

    @property
    def network(self) -> tuple[NetworkRule, ...] | None:
        """The rules that bound what its runs and its tools may reach."""

    @property
    def credentials(self) -> frozenset[str] | None:
        """The credentials that its runs and its tools may use."""


@dataclass(frozen=True, slots=True)
class _Nothing:
    network: tuple[NetworkRule, ...] | None = ()
    credentials: frozenset[str] | None = frozenset()


NOTHING: PrincipalTerms = _Nothing()
"""The terms of an owner whose token was revoked: its tools reach nothing."""


class ManifestTerms(Protocol):
    """What a manifest says about reach and limits; ``clawbox.wasm.manifest.Manifest`` is one."""

    @property
    def network_rules(self) -> tuple[NetworkRule, ...]:
        """Where the tool may connect."""

    @property
    def max_concurrent(self) -> int | None:
        """Requests in flight at once for one run; None: the default."""

    @property
    def credential_names(self) -> tuple[str, ...]:
        """Credentials that the tool may ask for."""

    @property
    def default_timeout_ms(self) -> int | None:
        """Time limit where a request names none."""

    @property
    def max_timeout_ms(self) -> int | None:
        """Largest time limit that a request may name."""

    @property
    def default_memory_mb(self) -> int | None:
        """Memory limit in MiB where a request names none."""

    @property
    def max_memory_mb(self) -> int | None:
        """Largest memory limit in MiB that a request may name."""

    @property
    def default_fuel(self) -> int | None:
        """Fuel where a request names none."""

    @property
    def max_fuel(self) -> int | None:
        """Most fuel that a request may name."""


@dataclass(frozen=True, slots=True)
class Requested:
    """What one Execute asks for. None: the field was left out. Values are as received, not yet checked."""

    network: tuple[NetworkRule, ...] | None = None
    """None: everything that the manifest allows; empty: no network."""
    max_concurrent: int | None = None
    """None or 0: the manifest's."""
    credentials: tuple[str, ...] = ()
    timeout_ms: int | None = None
    memory_mb: int | None = None
    fuel: int | None = None
    max_output_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCeiling:
    """What the server allows any tool: ``[tool_policy]``, ``[sandbox]`` and ``[egress]``."""

    default_timeout_ms: int
    max_timeout_ms: int
    default_memory_mb: int
    max_memory_mb: int
    default_fuel: int
    max_fuel: int
    network: tuple[NetworkRule, ...] = ()
    """Empty: no tool reaches anything."""
    credentials: frozenset[str] = frozenset()
    max_concurrent: int = 64
    max_output_bytes: int = 1 << 20
    """Of a run's output; also what a request that names none gets."""
    on_shape: ShapeAction = ShapeAction.BLOCK

    @property
    def any_host(self) -> bool:
        """Whether the operator opted into the bare ``*``."""
        return any(rule.host == ANY_HOST for rule in self.network)


@dataclass(frozen=True, slots=True)
class NetworkGrant:
    """Where one run may connect, and with how many requests in flight at once."""

    rules: tuple[NetworkRule, ...] = ()
    max_concurrent: int = DEFAULT_MAX_CONCURRENT


@dataclass(frozen=True, slots=True)
class ToolGrant:
    """What one run of a tool may reach and use."""

    network: NetworkGrant
    credentials: frozenset[str]
    limits: Limits


@dataclass(frozen=True, slots=True)
class LimitRange:
    """The value that a run gets where the request names none, and the most that a request may name."""

    default: int
    maximum: int
    set_by: str
    """Who set the maximum: ``manifest`` or ``server``."""


def limit_ranges(manifest: ManifestTerms, server: ToolCeiling) -> dict[str, LimitRange]:
    """The limits in force for a tool, by their name in ``Resources``.

    The names are ``timeout_ms``, ``memory_mb``, ``fuel`` and ``max_output_bytes``.
    """
    return {
        "timeout_ms": _range(
            manifest.default_timeout_ms,
            manifest.max_timeout_ms,
            server.default_timeout_ms,
            server.max_timeout_ms,
        ),
        "memory_mb": _range(
            manifest.default_memory_mb, manifest.max_memory_mb, server.default_memory_mb, server.max_memory_mb
        ),
        "fuel": _range(manifest.default_fuel, manifest.max_fuel, server.default_fuel, server.max_fuel),
        "max_output_bytes": LimitRange(server.max_output_bytes, server.max_output_bytes, "server"),
    }


def manifest_excess(
    manifest: ManifestTerms, owner: PrincipalTerms | None, server: ToolCeiling
) -> tuple[FieldViolation, ...]:
    """Everything that a manifest asks beyond what its owner and the server allow; empty when nothing.

    ``owner`` None: the operator, whom the server's policy alone bounds.
    """
    found: list[FieldViolation] = []
    for layer, allowed in _network_layers(None, owner, server):
        found += [
            FieldViolation(f"network.allowlist[{index}]", f"the {layer} does not allow {rule}", "policy")
            for index, rule in enumerate(manifest.network_rules)
            if not covers(allowed, rule)
        ]
    for layer, names in _credential_layers(None, owner, server):
        found += [
            FieldViolation(f"credentials.available[{index}]", f"the {layer} does not allow {name}", "policy")
            for index, name in enumerate(manifest.credential_names)
            if name not in names
        ]
    limits = (
        ("network.max_concurrent", manifest.max_concurrent, server.max_concurrent),
        ("resources.default_timeout_ms", manifest.default_timeout_ms, server.max_timeout_ms),
        ("resources.max_timeout_ms", manifest.max_timeout_ms, server.max_timeout_ms),
        ("resources.default_memory_mb", manifest.default_memory_mb, server.max_memory_mb),
        ("resources.max_memory_mb", manifest.max_memory_mb, server.max_memory_mb),
        ("resources.default_fuel", manifest.default_fuel, server.max_fuel),
        ("resources.max_fuel", manifest.max_fuel, server.max_fuel),
    )
    found += [
        FieldViolation(field, f"{asked} is more than the server's {allowed}", "policy")
        for field, asked, allowed in limits
        if asked is not None and asked > allowed
    ]
    return tuple(found)


def narrow_tool(
    requested: Requested | None,
    manifest: ManifestTerms,
    principal: PrincipalTerms,
    owner: PrincipalTerms | None,
    server: ToolCeiling,
) -> ToolGrant:
    """What one run gets.

    Left out: the manifest's network, no credentials, the manifest's and then the server's default limits,
    each within what principal, owner and server allow. Raises POLICY_DENIED or CREDENTIAL_NOT_ALLOWED when
    the request asks for more, and INVALID_FIELD when a limit is zero; each names the field, the entry and
    whose limit it is.
    """
    requested = requested or Requested()
    return ToolGrant(
        network=_narrow_network(requested, manifest, principal, owner, server),
        credentials=_narrow_credentials(requested, manifest, principal, owner, server),
        limits=_narrow_limits(requested, limit_ranges(manifest, server)),
    )


def _narrow_network(
    requested: Requested,
    manifest: ManifestTerms,
    principal: PrincipalTerms,
    owner: PrincipalTerms | None,
    server: ToolCeiling,
) -> NetworkGrant:
    layers = _network_layers(principal, owner, server)
    check_network(requested.network or (), (("manifest", manifest.network_rules), *layers))
    rules = manifest.network_rules
    for _, allowed in layers:
        rules = intersect_all(rules, allowed)
    if requested.network is not None:
        rules = intersect_all(requested.network, rules)
    maximum = min(manifest.max_concurrent or DEFAULT_MAX_CONCURRENT, server.max_concurrent)
    asked = requested.max_concurrent or maximum
    if asked > maximum:
        raise over_limit("capabilities.network.max_concurrent", asked, maximum, "manifest")
    return NetworkGrant(rules=rules, max_concurrent=asked)


def _narrow_credentials(
    requested: Requested,
    manifest: ManifestTerms,
    principal: PrincipalTerms,
    owner: PrincipalTerms | None,
    server: ToolCeiling,
) -> frozenset[str]:
    layers = (
        ("manifest", frozenset(manifest.credential_names)),
        *_credential_layers(principal, owner, server),
    )
    return check_credentials(requested.credentials, layers)


def _narrow_limits(requested: Requested, ranges: dict[str, LimitRange]) -> Limits:
    def pick(name: str, asked: int | None) -> int:
        field, within = f"capabilities.resources.{name}", ranges[name]
        if asked is None:
            return within.default
        if asked <= 0:
            raise invalid_field(field, "must be greater than zero; leave it out for the default", "minimum")
        if asked > within.maximum:
            raise over_limit(field, asked, within.maximum, within.set_by)
        return asked

    return Limits(
        timeout_ms=pick("timeout_ms", requested.timeout_ms),
        fuel=pick("fuel", requested.fuel),
        memory_bytes=pick("memory_mb", requested.memory_mb) * _MIB,
        stdout_bytes=pick("max_output_bytes", requested.max_output_bytes),
    )


def _network_layers(
    principal: PrincipalTerms | None, owner: PrincipalTerms | None, server: ToolCeiling
) -> tuple[tuple[str, tuple[NetworkRule, ...]], ...]:
    layers: list[tuple[str, tuple[NetworkRule, ...]]] = []
    if principal is not None and principal.network is not None:
        layers.append(("token", principal.network))
    if owner is not None and owner.network is not None:
        layers.append(("tool's owner", owner.network))
    return (*layers, ("server", with_shape(server.network, server.on_shape)))


def _credential_layers(
    principal: PrincipalTerms | None, owner: PrincipalTerms | None, server: ToolCeiling
) -> tuple[tuple[str, frozenset[str]], ...]:
    layers: list[tuple[str, frozenset[str]]] = []
    if principal is not None and principal.credentials is not None:
        layers.append(("token", principal.credentials))
    if owner is not None and owner.credentials is not None:
        layers.append(("tool's owner", owner.credentials))
    return (*layers, ("server", server.credentials))


def _range(
    manifest_default: int | None, manifest_max: int | None, server_default: int, server_max: int
) -> LimitRange:
    manifest_sets = manifest_max is not None and manifest_max < server_max
    maximum = manifest_max if manifest_max is not None and manifest_sets else server_max
    default = server_default if manifest_default is None else manifest_default
    return LimitRange(min(default, maximum), maximum, "manifest" if manifest_sets else "server")


def check_network(asked: Sequence[NetworkRule], layers: Sequence[tuple[str, Sequence[NetworkRule]]]) -> None:
    """Raise POLICY_DENIED for the first rule that a layer (``manifest``, ``server`` …) does not allow."""
    for index, rule in enumerate(asked):
        for layer, allowed in layers:
            if not covers(allowed, rule):
                raise ClawboxError(
                    Reason.POLICY_DENIED,
                    "{field}: the {layer} does not allow {entry}",
                    field=f"capabilities.network.rules[{index}]",
                    entry=rule,
                    layer=layer,
                )


def check_credentials(asked: Sequence[str], layers: Sequence[tuple[str, frozenset[str]]]) -> frozenset[str]:
    """The names, if every layer allows each. Raises CREDENTIAL_NOT_ALLOWED for the first that is not."""
    for index, name in enumerate(asked):
        for layer, allowed in layers:
            if name not in allowed:
                raise ClawboxError(
                    Reason.CREDENTIAL_NOT_ALLOWED,
                    "{field}: the {layer} does not allow the credential {entry}",
                    field=f"capabilities.credentials[{index}]",
                    entry=name[:128],
                    layer=layer,
                )
    return frozenset(asked)


def over_limit(field: str, asked: int, allowed: int, layer: str) -> ClawboxError:
    """The error for a number that is more than a layer (``manifest``, ``server`` …) allows."""
    return ClawboxError(
        Reason.POLICY_DENIED,
        "{field}: {asked} is more than the {layer} allows ({allowed})",
        field=field,
        asked=asked,
        allowed=allowed,
        entry=asked,
        layer=layer,
    )
