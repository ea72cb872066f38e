"""What a sandbox may send where: decisions as values that say why. Pure.

The same function decides on ``POST /proxy``, absolute-form, CONNECT and every request inside an intercepted
tunnel (properties 9 and 31). A grant is the union of its rules, as ``network_rules.covers`` has it; where
rules overlap in how a request is treated, the stricter treatment is the one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from clawbox.egress.refusal import Denial, Refusal
from clawbox.egress.target import Form
from clawbox.network_rules import NetworkRule, ShapeAction, TlsMode, host_within, path_within, stricter_shape

if TYPE_CHECKING:
    from clawbox.egress.target import Target
    from clawbox.policy import NetworkGrant


class Decision(msgspec.Struct, frozen=True):
    """Whether one request may go on, why, and how it is treated."""

    refusal: Refusal | None
    """None: allowed."""
    rule: int | None = None
    """The first rule of the grant that allows it. When refused, the first that names the host, if any."""
    tls: TlsMode = TlsMode.INTERCEPT
    """For CONNECT: how TLS in the tunnel is carried."""
    on_shape: ShapeAction = ShapeAction.BLOCK
    """The strictest of the rules that allow it."""

    @property
    def allowed(self) -> bool:
        """Whether the request may go on."""
        return self.refusal is None


@dataclass(frozen=True, slots=True)
class CredentialScope:
    """The requests that a credential may be attached to."""

    hosts: tuple[str, ...]
    """Canonical names, matched exactly: a pattern is never a credential's host."""
    ports: tuple[int, ...]
    methods: tuple[str, ...] = ()
    """Empty: every method."""
    path_prefixes: tuple[str, ...] = ()
    """Empty: every path."""
    plain: bool = False
    """The operator marked the hosts as reachable in clear text; else https alone."""


def decide(
    grant: NetworkGrant, target: Target, method: str, default_shape: ShapeAction = ShapeAction.BLOCK
) -> Decision:
    """Whether ``method`` on ``target`` may go on.

    CONNECT is judged by host and port alone, and what is inside by a decision of its own, unless every rule
    for host and port says that the tunnel is not read. ``default_shape`` is for rules that name none.
    """
    refused = method.upper()
    if refused in ("TRACE", "TRACK") or (refused == "CONNECT") != (target.form is Form.CONNECT):
        return Decision(Refusal(Denial.METHOD_REFUSED))
    if not grant.rules:
        return Decision(Refusal(Denial.NO_RULES))
    host, port, path, connect = target.host, target.port, target.path, target.form is Form.CONNECT
    first = None
    denial = Denial.HOST_NOT_ALLOWED
    allowing: list[tuple[int, NetworkRule]] = []
    for index, rule in enumerate(grant.rules):
        if rule.host != host and not host_within(rule.host, host):
            continue
        if first is None:
            first, denial = index, Denial.PORT_NOT_ALLOWED
        if port not in rule.ports:
            continue
        if connect:
            allowing.append((index, rule))
        elif rule.methods and method not in rule.methods:
            denial = Denial.METHOD_NOT_ALLOWED if denial is Denial.PORT_NOT_ALLOWED else denial
        elif rule.path_prefixes and not any(path_within(held, path) for held in rule.path_prefixes):
            denial = Denial.PATH_NOT_ALLOWED
        else:
            allowing.append((index, rule))
    if not allowing:
        return Decision(Refusal(denial, "" if first is not None else host), first)
    tunnelled = all(rule.tls_mode is TlsMode.TUNNEL for _, rule in allowing)
    return Decision(
        None,
        allowing[0][0],
        TlsMode.TUNNEL if tunnelled else TlsMode.INTERCEPT,
        stricter_shape(rule.on_shape or default_shape for _, rule in allowing),
    )


def may_attach(scope: CredentialScope, target: Target, method: str) -> bool:
    """Whether a credential of that scope goes with a request (property 38); never with a tunnel."""
    return (
        target.form is not Form.CONNECT
        and (target.scheme == "https" or scope.plain)
        and target.host in scope.hosts
        and target.port in scope.ports
        and (not scope.methods or method in scope.methods)
        and (not scope.path_prefixes or any(path_within(held, target.path) for held in scope.path_prefixes))
    )
