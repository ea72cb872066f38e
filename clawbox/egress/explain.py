"""What a sidecar would do with a request, said without sending anything. Pure.

The functions that decide are the sidecar's and the dialer's own, so that an explanation cannot differ from
what happens. What only happens on the way (leaks, limits, the upstream) is not foreseen.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox.egress.addresses import check_answers
from clawbox.egress.attach import choose_credential
from clawbox.egress.dialer.connector import permitted
from clawbox.egress.refusal import RefusedError
from clawbox.egress.rules import decide
from clawbox.egress.target import Form, Target, parse_url
from clawbox.network_rules import NetworkRule, TlsMode
from clawbox.policy import NetworkGrant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clawbox.egress.addresses import Address, AddressPolicy
    from clawbox.egress.credentials import SandboxSecrets
    from clawbox.egress.messages import Grant
    from clawbox.egress.refusal import Refusal


@dataclass(frozen=True, slots=True)
class AddressVerdict:
    """One address that the host has, or is."""

    address: str
    refused: str | None
    """Why nothing connects to it, or None."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen."""

    method: str
    target: Target | None
    """What the URL means; None when it means nothing for sure."""
    refusal: Refusal | None
    """None: it would be sent."""
    rule: tuple[int, NetworkRule] | None
    """The rule that allows it; when refused, the first that names the host. Numbered from 0."""
    tls: TlsMode | None
    """How a CONNECT to the same place is carried. None for http, and where it is refused."""
    on_shape: str
    """What happens to things that look like credentials; empty where nothing is looked into."""
    credential: str | None
    """The name of what would be attached, where that is known."""
    addresses: tuple[AddressVerdict, ...]
    """Of a literal address, and those that were resolved. Empty: not known before the name is resolved."""

    @property
    def allowed(self) -> bool:
        """Whether it would be sent."""
        return self.refusal is None


def explain(
    grant: Grant,
    url: str,
    method: str,
    *,
    policy: AddressPolicy,
    secrets: SandboxSecrets | None = None,
    answers: Sequence[Address] = (),
) -> Explanation:
    """What a sidecar with ``grant`` would do with ``method`` on ``url``.

    ``secrets`` None: the credentials are not known, and none is considered. ``answers`` are the host's
    addresses, if somebody resolved it; a literal needs none.
    """
    try:
        target = parse_url(url)
    except RefusedError as error:
        return Explanation(method, None, error.refusal, None, None, "", None, ())
    network = NetworkGrant(grant.rules)
    decision = decide(network, target, method, grant.on_shape)
    rule = None if decision.rule is None else (decision.rule, grant.rules[decision.rule])
    refusal, tls, credential, on_shape = decision.refusal, None, None, ""
    if refusal is None:
        on_shape = decision.on_shape.value
        if target.scheme == "https":
            tunnel = Target("https", target.host, target.port, "", None, Form.CONNECT)
            tls = decide(network, tunnel, "CONNECT").tls
        if secrets is not None:
            try:
                chosen = choose_credential(grant.credentials, secrets, target, method)
                credential = None if chosen is None else chosen.name
            except RefusedError as error:
                refusal = error.refusal
    literal = _literal(target.host)
    addresses = [literal] if literal is not None else list(answers)
    verdicts = tuple(_verdict(address, target, grant, policy) for address in addresses)
    if refusal is None and addresses:
        refusal = check_answers(addresses, target.port, permitted(grant, target.host, target.port), policy)
    return Explanation(method, target, refusal, rule, tls, on_shape, credential, verdicts)


def needs_resolving(grant: Grant, url: str, method: str) -> str | None:
    """The name that a request would have resolved: none for a literal, nor where rules refuse it (16)."""
    try:
        target = parse_url(url)
    except RefusedError:
        return None
    if _literal(target.host) is not None or not decide(NetworkGrant(grant.rules), target, method).allowed:
        return None
    return target.host


def literal_address(url: str) -> Address | None:
    """The address that a URL names itself, if it does."""
    try:
        return _literal(parse_url(url).host)
    except RefusedError:
        return None


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _verdict(address: Address, target: Target, grant: Grant, policy: AddressPolicy) -> AddressVerdict:
    try:
        rule = permitted(grant, target.host, target.port)
    except RefusedError:
        rule = NetworkRule(target.host)  # what one that names the host would see
    return AddressVerdict(str(address), policy.refuses(address, target.port, rule))
