"""Which addresses may be connected to. Pure: resolving and connecting are the dialer's.

Public means what the registries say is globally reachable unicast, less what is public on paper only. The
lists are written out, each with its source, since ``ipaddress.is_global`` changed between Python versions and
calls multicast and translated addresses global. Textual spellings do not matter here: names that look like
numbers never become a target (``network_rules.canonical_host``), and resolvers answer in binary.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from clawbox.egress.refusal import Denial, Refusal
from clawbox.network_rules import ANY_HOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clawbox.network_rules import NetworkRule

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA IPv4 Special-Purpose Address Registry (RFC 6890 and those named): what it does not call globally
# reachable, its relays and sinks too, and multicast and what is reserved besides.
SPECIAL_IPV4: Final = {
    "0.0.0.0/8": "this network (RFC 791, RFC 1122 3.2.1.3)",
    "10.0.0.0/8": "private (RFC 1918)",
    "100.64.0.0/10": "shared, carrier NAT (RFC 6598); cloud metadata at 100.100.100.200",
    "127.0.0.0/8": "loopback (RFC 1122 3.2.1.3)",
    "168.63.129.16/32": "Azure's host agent (Microsoft: What is IP address 168.63.129.16)",
    "169.254.0.0/16": "link-local (RFC 3927); cloud metadata at 169.254.169.254",
    "172.16.0.0/12": "private (RFC 1918)",
    "192.0.0.0/24": "IETF protocol assignments (RFC 6890); cloud metadata at 192.0.0.192",
    "192.0.2.0/24": "documentation (RFC 5737)",
    "192.31.196.0/24": "AS112 (RFC 7535)",
    "192.52.193.0/24": "AMT relays (RFC 7450)",
    "192.88.99.0/24": "6to4 relays (RFC 7526)",
    "192.168.0.0/16": "private (RFC 1918)",
    "192.175.48.0/24": "AS112 (RFC 7534)",
    "198.18.0.0/15": "benchmarking (RFC 2544)",
    "198.51.100.0/24": "documentation (RFC 5737)",
    "203.0.113.0/24": "documentation (RFC 5737)",
    "224.0.0.0/4": "multicast (RFC 5771)",
    "240.0.0.0/4": "reserved and broadcast (RFC 1112 4, RFC 919 7)",
}
# IANA allocates unicast from here alone (IPv6 Address Space registry, RFC 4291 2.4); so loopback, ::/96
# (IPv4-compatible), ::ffff:0:0/96 (mapped), 64:ff9b::/96 and 64:ff9b:1::/48 (NAT64), fc00::/7, fe80::/10,
# fec0::/10, ff00::/8, 100::/64 and 5f00::/16 lie outside.
PUBLIC_IPV6: Final = ipaddress.IPv6Network("2000::/3")
SPECIAL_IPV6: Final = {
    "2001::/23": "IETF protocol assignments, Teredo and ORCHID among them (RFC 2928, RFC 4380, RFC 7343)",
    "2001:db8::/32": "documentation (RFC 3849)",
    "2002::/16": "6to4 (RFC 3056)",
    "2620:4f:8000::/48": "AS112 (RFC 7534)",
    "3fff::/20": "documentation (RFC 9637)",
}
_IPV4: Final = tuple((ipaddress.IPv4Network(net), why) for net, why in SPECIAL_IPV4.items())
_IPV6: Final = tuple((ipaddress.IPv6Network(net), why) for net, why in SPECIAL_IPV6.items())
_LOOPBACK_6: Final = ipaddress.IPv6Address("::1")
_LOOPBACK: Final = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What the operator and this machine say about addresses; the dialer holds it."""

    trusted: tuple[Network, ...] = ()
    """``egress.trusted_networks``: internal, but reachable where a rule names the host."""
    denied: tuple[Network, ...] = ()
    """``egress.deny_addresses``: nothing reaches them, whatever else says so."""
    own: frozenset[Address] = frozenset()
    """The addresses of this machine's interfaces."""
    listeners: frozenset[tuple[Address, int]] = frozenset()
    """Where clawbox itself listens; an unspecified address stands for every address of this machine."""

    def refuses(self, address: Address, port: int, rule: NetworkRule) -> str | None:
        """Why a connection may not go there, or None. ``rule`` is the one that allowed the host.

        This machine's own addresses need an entry in ``trusted`` that means them alone (one address, or
        loopback); its own listeners and what is denied are refused whatever is trusted (property 15).
        """
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
            return "it has a zone"
        if _within(address, self.denied):
            return "the operator denies it"
        mine = address in self.own or _within(address, _LOOPBACK)
        for listener, at in self.listeners:
            if port == at and (address == listener or (listener.is_unspecified and mine)):
                return "clawbox itself listens there"
        special = why_not_public(address)
        if special is None and not mine:
            return None
        trusted = () if rule.host == ANY_HOST else self.trusted
        if mine:
            trusted = tuple(net for net in trusted if net.num_addresses == 1 or _inside(net, _LOOPBACK))
        if _within(address, trusted) and not _carries_another(address):
            return None
        return special or "it is this machine's own"


def why_not_public(address: Address) -> str | None:
    """Why an address is not one on the public internet (properties 11 and 12), or None."""
    if isinstance(address, ipaddress.IPv4Address):
        return next((why for net, why in _IPV4 if address in net), None)
    if address not in PUBLIC_IPV6:
        return "not global unicast (RFC 4291 2.4)"
    return next((why for net, why in _IPV6 if address in net), None)


def check_answers(
    answers: Sequence[Address], port: int, rule: NetworkRule, policy: AddressPolicy
) -> Refusal | None:
    """Whether a host with these addresses may be connected to: one bad address refuses all (property 13)."""
    if not answers:
        return Refusal(Denial.NO_ADDRESS)
    for address in answers:
        why = policy.refuses(address, port, rule)
        if why is not None:
            return Refusal(Denial.ADDRESS_REFUSED, f"{address}: {why}")
    return None


def check_peer(
    peer: Address, port: int, answers: Sequence[Address], rule: NetworkRule, policy: AddressPolicy
) -> Refusal | None:
    """What the connect hook asks of a socket's peer (property 14): a checked answer, and still a good one."""
    if peer not in answers:
        return Refusal(Denial.ADDRESS_REFUSED, f"{peer}: not one of the addresses that were checked")
    return check_answers([peer], port, rule, policy)


def parse_answer(data: bytes) -> Address:
    """An address as the resolver gives it: 4 or 16 bytes. Raises ValueError."""
    return ipaddress.ip_address(data)


def _carries_another(address: Address) -> bool:
    """Whether an IPv6 address stands for an IPv4 one, so that trusting a network must not reach it (12)."""
    if isinstance(address, ipaddress.IPv4Address):
        return False
    return any(address in net for net in _TRANSLATED) and address != _LOOPBACK_6


_TRANSLATED: Final = tuple(
    ipaddress.IPv6Network(net)
    for net in (
        "::/96",  # IPv4-compatible (RFC 4291 2.5.5.1)
        "::ffff:0:0/96",  # IPv4-mapped (RFC 4291 2.5.5.2)
        "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765)
        "64:ff9b::/96",  # NAT64 (RFC 6052)
        "64:ff9b:1::/48",  # local NAT64 (RFC 8215)
        "2001::/32",  # Teredo (RFC 4380)
        "2002::/16",  # 6to4 (RFC 3056)
    )
)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in net for net in networks)


def _inside(network: Network, networks: Iterable[Network]) -> bool:
    return any(
        network.version == net.version
        and network.network_address in net
        and network.prefixlen >= net.prefixlen
        for net in networks
    )
