"""Properties 10 to 15 and 18: which addresses may be connected to."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbox.egress.addresses import (
    SPECIAL_IPV4,
    SPECIAL_IPV6,
    AddressPolicy,
    check_answers,
    check_peer,
    parse_answer,
    why_not_public,
)
from clawbox.egress.refusal import Denial
from clawbox.network_rules import NetworkRule

RULE = NetworkRule.parse("a.example")
NOTHING = AddressPolicy()
PUBLIC = ipaddress.ip_address("93.184.215.14")


def address(text):
    return ipaddress.ip_address(text)


def networks(*texts):
    return tuple(ipaddress.ip_network(text) for text in texts)


def refused(answers, policy=NOTHING, rule=RULE, port=443):
    refusal = check_answers([address(text) for text in answers], port, rule, policy)
    return refusal.denial if refusal else None


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1",
        "8.8.8.8",
        "93.184.215.14",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001:82f::200e",
        "2001:4860:4860::8888",
        "2001:200::1",
        "2003::1",
        "3ffe::1",
    ],
)
def test_rule_11_public_addresses_are_public(text):
    assert why_not_public(address(text)) is None
    assert refused([text]) is None


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.9",
        "192.0.0.10",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "100::1",
        "2001::1",
        "2001:1::1",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:1ff:ffff::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "3fff::1",
        "3fff:fff:ffff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "1fff:ffff::1",
    ],
)
def test_rule_11_what_is_special_is_refused(text):
    assert Denial.ADDRESS_REFUSED is refused([text])


def test_rule_11_ipaddress_alone_would_let_some_of_them_pass():
    passed = [text for text in ("224.0.0.1", "168.63.129.16", "2002::1") if address(text).is_global]
    assert passed
    assert not [text for text in passed if refused([text]) is None]


@pytest.mark.parametrize("table", [SPECIAL_IPV4, SPECIAL_IPV6])
def test_rule_11_the_edges_of_every_listed_network(table):
    for text in table:
        network = ipaddress.ip_network(text)
        assert why_not_public(network[0])
        assert why_not_public(network[-1])


@settings(deadline=None)
@given(st.ip_addresses())
def test_rule_11_nothing_is_public_that_ipaddress_calls_private_or_worse(given_address):
    if why_not_public(given_address) is None:
        assert given_address.is_global
        assert not given_address.is_multicast
        assert not given_address.is_reserved
        assert not given_address.is_loopback
        assert not given_address.is_link_local


@pytest.mark.parametrize("inner", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "93.184.215.14", "8.8.8.8"])
def test_rule_12_ipv4_inside_ipv6_is_refused_even_when_it_is_public_or_trusted(inner):
    four = address(inner)
    hexed = f"{int(four) >> 16:x}:{int(four) & 0xFFFF:x}"
    trusted = AddressPolicy(trusted=networks("0.0.0.0/0", "::/0"))
    for text in (
        f"::{hexed}",
        f"::ffff:{inner}",
        f"::ffff:0:{hexed}",
        f"64:ff9b::{hexed}",
        f"64:ff9b:1::{hexed}",
        f"2002:{hexed}::1",
        f"2001:0:{hexed}::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ):
        assert Denial.ADDRESS_REFUSED is refused([text]), text
        assert Denial.ADDRESS_REFUSED is refused([text], trusted), text


@pytest.mark.parametrize("text", ["fe80::1%eth0", "2606:4700::1111%1", "::1%lo"])
def test_rule_12_zones_are_refused(text):
    assert Denial.ADDRESS_REFUSED is refused([text])
    assert Denial.ADDRESS_REFUSED is refused([text], AddressPolicy(trusted=networks("::/0")))


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.0.0.1", "::1", "169.254.169.254", "::ffff:8.8.8.8"])
def test_rule_13_one_forbidden_answer_refuses_the_host(bad):
    good = ["93.184.215.14", "2606:4700:4700::1111"]
    assert refused(good) is None
    for at in range(3):
        assert Denial.ADDRESS_REFUSED is refused([*good[:at], bad, *good[at:]])


def test_rule_13_no_answer_is_no_permission():
    assert Denial.NO_ADDRESS is refused([])


def test_rule_14_the_peer_is_one_of_the_checked_answers_and_is_checked_again():
    answers = [PUBLIC]
    assert check_peer(PUBLIC, 443, answers, RULE, NOTHING) is None
    other = check_peer(address("93.184.215.15"), 443, answers, RULE, NOTHING)
    assert other is not None
    assert Denial.ADDRESS_REFUSED is other.denial
    denied = AddressPolicy(denied=networks("93.184.215.14/32"))
    assert check_peer(PUBLIC, 443, answers, RULE, denied) is not None
    loopback = address("127.0.0.1")
    assert check_peer(loopback, 443, [loopback], RULE, NOTHING) is not None


def test_rule_15_this_machines_own_addresses_are_refused():
    own = AddressPolicy(own=frozenset({PUBLIC, address("2606:4700::1")}))
    assert Denial.ADDRESS_REFUSED is refused([str(PUBLIC)], own)
    assert Denial.ADDRESS_REFUSED is refused(["2606:4700::1"], own)
    assert refused(["93.184.215.15"], own) is None


def test_rule_15_trusting_a_network_is_not_trusting_this_machine():
    mine = address("10.0.0.5")
    policy = AddressPolicy(trusted=networks("10.0.0.0/8"), own=frozenset({mine}))
    assert refused(["10.0.0.6"], policy) is None
    assert Denial.ADDRESS_REFUSED is refused(["10.0.0.5"], policy)
    alone = AddressPolicy(trusted=networks("10.0.0.0/8", "10.0.0.5/32"), own=frozenset({mine}))
    assert refused(["10.0.0.5"], alone) is None
    everything = AddressPolicy(trusted=networks("0.0.0.0/0", "::/0"))
    assert Denial.ADDRESS_REFUSED is refused(["127.0.0.1"], everything)
    assert Denial.ADDRESS_REFUSED is refused(["::1"], everything)
    for loopback in ("127.0.0.0/8", "127.0.0.1/32"):
        assert refused(["127.0.0.1"], AddressPolicy(trusted=networks(loopback))) is None


def test_rule_15_what_the_operator_denies_is_refused_whatever_is_trusted():
    policy = AddressPolicy(trusted=networks("10.0.0.0/8", "10.0.0.7/32"), denied=networks("10.0.0.7/32"))
    assert Denial.ADDRESS_REFUSED is refused(["10.0.0.7"], policy)
    assert refused(["10.0.0.8"], policy) is None
    assert Denial.ADDRESS_REFUSED is refused(
        ["93.184.215.14"], AddressPolicy(denied=networks("93.184.0.0/16"))
    )


@pytest.mark.parametrize("listener", ["127.0.0.1", "0.0.0.0", "::"])
def test_rule_15_clawboxs_own_listeners_are_refused_whatever_is_trusted(listener):
    policy = AddressPolicy(trusted=networks("127.0.0.0/8"), listeners=frozenset({(address(listener), 9800)}))
    assert Denial.ADDRESS_REFUSED is refused(["127.0.0.1"], policy, port=9800)
    assert refused(["127.0.0.1"], policy, port=9801) is None


def test_rule_18_internal_networks_need_the_operator_and_a_rule_that_names_the_host():
    policy = AddressPolicy(trusted=networks("10.1.0.0/16", "fd00:1::/32"))
    anything = NetworkRule.parse("*", any_host=True)
    for text in ("10.1.2.3", "fd00:1::5"):
        assert Denial.ADDRESS_REFUSED is refused([text])
        assert refused([text], policy) is None
        assert refused([text], policy, NetworkRule.parse("*.corp.example")) is None
        assert Denial.ADDRESS_REFUSED is refused([text], policy, anything)
    assert Denial.ADDRESS_REFUSED is refused(["10.2.0.1"], policy)
    assert Denial.ADDRESS_REFUSED is refused(["10.1.2.3", "10.2.0.1"], policy)


def test_rule_10_resolvers_answers_are_read_in_binary_alone():
    assert address("127.0.0.1") == parse_answer(socket.inet_aton("127.1"))
    assert address("::1") == parse_answer(socket.inet_pton(socket.AF_INET6, "::1"))
    for data in (b"", b"127.1", b"\x7f\x00\x01", bytes(15), bytes(17)):
        with pytest.raises(ValueError, match="address"):
            parse_answer(data)
