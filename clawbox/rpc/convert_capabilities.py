"""What a sandbox may reach and use, as messages: asked for by a request, and granted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clawbox_client.v1 import capabilities_pb2

from clawbox.containers.narrowing import ContainerRequest, Isolation
from clawbox.errors import FieldViolation, invalid_field, invalid_fields
from clawbox.network_rules import NetworkRule, RuleError, ShapeAction, TlsMode
from clawbox.policy import MAX_RULES, Requested

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clawbox_client.v1 import containers_pb2, sandbox_pb2

    from clawbox.containers.narrowing import ContainerGrant

_TLS_MODES: Final = {
    capabilities_pb2.TLS_MODE_INTERCEPT: TlsMode.INTERCEPT.value,
    capabilities_pb2.TLS_MODE_TUNNEL: TlsMode.TUNNEL.value,
}
_SHAPE_ACTIONS: Final = {
    capabilities_pb2.SHAPE_ACTION_BLOCK: ShapeAction.BLOCK.value,
    capabilities_pb2.SHAPE_ACTION_REDACT: ShapeAction.REDACT.value,
    capabilities_pb2.SHAPE_ACTION_REPORT: ShapeAction.REPORT.value,
}
_TO_TLS_MODE: Final = {TlsMode(value): number for number, value in _TLS_MODES.items()}
_TO_SHAPE_ACTION: Final = {ShapeAction(value): number for number, value in _SHAPE_ACTIONS.items()}
_ISOLATIONS: Final = {
    capabilities_pb2.EXECUTION_POLICY_UNSPECIFIED: None,
    capabilities_pb2.EXECUTION_POLICY_CONTAINER: Isolation.CONTAINER,
    capabilities_pb2.EXECUTION_POLICY_CONTAINER_DIRECT: Isolation.DIRECT,
}
_TO_POLICY: Final = {isolation: number for number, isolation in _ISOLATIONS.items() if isolation is not None}

_EVERY: Final = ("timeout_ms", "memory_mb", "max_output_bytes")
_TOOLS_ONLY: Final = ("fuel",)
_CONTAINERS_ONLY: Final = ("cpu_shares", "cpu_millis", "pids")


# Asked for


def requested(request: sandbox_pb2.ExecuteRequest, *, any_host: bool) -> Requested | None:
    """What a request for a run asks for; None when it says nothing. Fields that are absent stay None.

    ``any_host``: whether the operator's policy holds a bare ``*``. Raises INVALID_FIELD with every bad field.
    """
    if not request.HasField("capabilities"):
        return None
    wanted = request.capabilities
    network, max_concurrent = _asked_network(wanted, any_host=any_host)
    credentials = _asked_credentials(wanted)
    _refuse_fields(wanted.resources, _CONTAINERS_ONLY, "containers", "tools")
    return Requested(
        network=network,
        max_concurrent=max_concurrent,
        credentials=credentials,
        **_given(wanted.resources, _EVERY + _TOOLS_ONLY),
    )


def container_request(request: containers_pb2.SpawnRequest, *, any_host: bool) -> ContainerRequest:
    """What a request for a container asks for; as :func:`requested`."""
    wanted = request.capabilities
    network, max_concurrent = _asked_network(wanted, any_host=any_host)
    credentials = _asked_credentials(wanted)
    _refuse_fields(wanted.resources, _TOOLS_ONLY, "tools", "containers")
    return ContainerRequest(
        isolation=isolation(request.policy),
        network=network,
        max_concurrent=max_concurrent,
        credentials=credentials,
        max_lifetime_ms=request.max_lifetime_ms if request.HasField("max_lifetime_ms") else None,
        **_given(wanted.resources, _EVERY + _CONTAINERS_ONLY),
    )


def isolation(policy: int) -> Isolation | None:
    """Which kind of container a policy is; None: the default. Raises INVALID_FIELD for what is none."""
    if policy == capabilities_pb2.EXECUTION_POLICY_WASM_ONLY:
        raise invalid_field("policy", "wasm_only has no container", "conflict")
    if policy not in _ISOLATIONS:
        raise invalid_field("policy", f"{policy} is no policy", "enum")
    return _ISOLATIONS[policy]  # type: ignore[index]


def _asked_network(
    wanted: capabilities_pb2.Capabilities, *, any_host: bool
) -> tuple[tuple[NetworkRule, ...] | None, int | None]:
    if not wanted.HasField("network"):
        return None, None
    rules = _network_rules(wanted.network.rules, "capabilities.network.rules", any_host=any_host)
    return rules, wanted.network.max_concurrent or None


def _asked_credentials(wanted: capabilities_pb2.Capabilities) -> tuple[str, ...]:
    if len(wanted.credentials) > MAX_RULES:
        raise invalid_field("capabilities.credentials", f"has more than {MAX_RULES} names", "max_items")
    return tuple(wanted.credentials)


def _refuse_fields(
    resources: capabilities_pb2.Resources, fields: Sequence[str], whose: str, others: str
) -> None:
    for name in fields:
        if resources.HasField(name):  # type: ignore[arg-type]
            raise invalid_field(
                f"capabilities.resources.{name}",
                f"is for {whose}; leave it out for {others}",
                f"{whose}_only",
            )


def _given(resources: capabilities_pb2.Resources, fields: Iterable[str]) -> dict[str, int | None]:
    return {
        name: getattr(resources, name) if resources.HasField(name) else None  # type: ignore[arg-type]
        for name in fields
    }


def _network_rules(
    rules: Sequence[capabilities_pb2.NetworkRule], field: str, *, any_host: bool
) -> tuple[NetworkRule, ...]:
    if len(rules) > MAX_RULES:
        raise invalid_field(field, f"has more than {MAX_RULES} rules", "max_items")
    parsed: list[NetworkRule] = []
    violations: list[FieldViolation] = []
    for index, rule in enumerate(rules):
        try:
            parsed.append(NetworkRule.parse(rule_to_mapping(rule), any_host=any_host))
        except RuleError as error:
            violations += [
                FieldViolation(f"{field}[{index}]" + (f".{part}" if part else ""), text, "network_rule")
                for part, text in error.problems
            ]
    if violations:
        raise invalid_fields(violations)
    return tuple(parsed)


def rule_to_mapping(rule: capabilities_pb2.NetworkRule) -> dict[str, object]:
    """A rule as :meth:`NetworkRule.parse` reads it."""
    mapping: dict[str, object] = {"host": rule.host}
    if rule.ports:
        mapping["ports"] = list(rule.ports)
    if rule.methods:
        mapping["methods"] = list(rule.methods)
    if rule.path_prefixes:
        mapping["path_prefixes"] = list(rule.path_prefixes)
    if rule.tls_mode:
        mapping["tls_mode"] = _TLS_MODES.get(rule.tls_mode, f"unknown value {rule.tls_mode}")
    if rule.on_shape:
        mapping["on_shape"] = _SHAPE_ACTIONS.get(rule.on_shape, f"unknown value {rule.on_shape}")
    return mapping


def rule_message(rule: NetworkRule) -> capabilities_pb2.NetworkRule:
    """A rule as a message."""
    return capabilities_pb2.NetworkRule(
        host=rule.host,
        ports=rule.ports,
        methods=rule.methods,
        path_prefixes=rule.path_prefixes,
        tls_mode=_TO_TLS_MODE[rule.tls_mode],
        on_shape=(
            capabilities_pb2.SHAPE_ACTION_UNSPECIFIED
            if rule.on_shape is None
            else _TO_SHAPE_ACTION[rule.on_shape]
        ),
    )


# Granted


def grant_message(grant: ContainerGrant) -> capabilities_pb2.Capabilities:
    """What a container may reach and use, every field that it has set."""
    limits = grant.limits
    return capabilities_pb2.Capabilities(
        network=capabilities_pb2.NetworkCapabilities(
            rules=[rule_message(rule) for rule in grant.network.rules],
            max_concurrent=grant.network.max_concurrent,
        ),
        credentials=sorted(grant.credentials),
        resources=capabilities_pb2.Resources(
            **{name: getattr(limits, name) for name in _EVERY + _CONTAINERS_ONLY}
        ),
    )


def policy(value: Isolation) -> capabilities_pb2.ExecutionPolicy.ValueType:
    """Which kind of container it is."""
    return _TO_POLICY[value]
