"""What would happen, said by the functions that make it happen."""

from __future__ import annotations

import ipaddress

import pytest

from clawbox.egress.addresses import AddressPolicy
from clawbox.egress.credentials import Credential, SandboxSecrets, Secret
from clawbox.egress.explain import explain, needs_resolving
from clawbox.egress.messages import Grant
from clawbox.egress.refusal import Denial
from clawbox.network_rules import NetworkRule, TlsMode

RULES = (
    "pypi.org",
    {"host": "api.example.com", "ports": [443], "methods": ["GET"], "path_prefixes": ["/v1"]},
    {"host": "grpc.example.com", "ports": [443], "tls_mode": "tunnel"},
    {"host": "169.254.169.254", "ports": [80, 443]},
    {"host": "odd.example.com", "on_shape": "report"},
    {"host": "10.1.2.3"},
)
GRANT = Grant("box", "ann", tuple(map(NetworkRule.parse, RULES)), ("api", "grpc"))
PUBLIC = AddressPolicy()
KNOWN = SandboxSecrets(
    {
        name: Credential(name, Secret("a secret of enough characters"), (f"{name}.example.com",))
        for name in ("api", "grpc")
    }
)


def told(url, method="GET", *, grant=GRANT, policy=PUBLIC, secrets=KNOWN, answers=()):
    answers = [ipaddress.ip_address(answer) for answer in answers]
    return explain(grant, url, method, policy=policy, secrets=secrets, answers=answers)


def test_an_allowed_request():
    found = told("https://PYPI.org./simple/../a?token=x")
    assert found.allowed
    assert found.target is not None
    assert found.target.url == "https://pypi.org/a"
    assert found.rule == (0, GRANT.rules[0])
    assert found.tls is TlsMode.INTERCEPT
    assert (found.on_shape, found.credential, found.addresses) == ("block", None, ())


@pytest.mark.parametrize(
    ("url", "method", "denial", "rule"),
    [
        ("https://pypi.org:8443/", "GET", Denial.PORT_NOT_ALLOWED, 0),
        ("https://api.example.com/v1/x", "POST", Denial.METHOD_NOT_ALLOWED, 1),
        ("https://api.example.com/v2", "GET", Denial.PATH_NOT_ALLOWED, 1),
        ("https://evil.example.com/", "GET", Denial.HOST_NOT_ALLOWED, None),
        ("https://pypi.org/", "TRACE", Denial.METHOD_REFUSED, None),
        ("ftp://pypi.org/", "GET", Denial.SCHEME, None),
        ("https://u@pypi.org/", "GET", Denial.USERINFO, None),
        ("https://0x7f.1/", "GET", Denial.BAD_HOST, None),
    ],
)
def test_a_refused_request_has_its_reason_and_its_rule(url, method, denial, rule):
    found = told(url, method)
    assert not found.allowed
    assert found.refusal is not None
    assert found.refusal.denial is denial
    assert (None if found.rule is None else found.rule[0]) == rule
    assert found.credential is None


def test_the_credential_is_named_and_nothing_more():
    assert told("https://api.example.com/v1").credential == "api"
    assert told("https://grpc.example.com/").credential == "grpc"
    assert told("https://pypi.org/").credential is None
    assert "a secret of" not in repr(told("https://api.example.com/v1"))


def test_credentials_that_are_not_known_refuse_nothing():
    assert told("https://api.example.com/v1", secrets=None).allowed


def test_a_credential_that_cannot_be_used_refuses_what_might_need_it():
    secrets = SandboxSecrets(
        {"api": KNOWN.credentials["api"]}, {"grpc": "there is no credential of that name"}
    )
    assert told("https://api.example.com/v1", secrets=secrets).allowed
    refusal = told("https://pypi.org/", secrets=secrets).refusal
    assert refusal is not None
    assert refusal.denial is Denial.CREDENTIAL_UNAVAILABLE
    assert "grpc: there is no credential of that name" in refusal.message


def test_how_tls_is_carried():
    assert told("https://grpc.example.com/").tls is TlsMode.TUNNEL
    assert told("http://pypi.org/").tls is None


def test_the_rule_decides_about_look_alikes():
    assert told("https://odd.example.com/").on_shape == "report"


def test_a_literal_address_is_judged_even_where_a_rule_names_it():
    found = told("https://169.254.169.254/latest/")
    assert found.refusal is not None
    assert found.refusal.denial is Denial.ADDRESS_REFUSED
    assert found.addresses[0].refused is not None
    assert "cloud metadata" in found.addresses[0].refused


def test_a_literal_address_that_no_rule_names_is_judged_too():
    found = told("https://127.0.0.1/")
    assert found.refusal is not None
    assert found.refusal.denial is Denial.HOST_NOT_ALLOWED
    assert "loopback" in (found.addresses[0].refused or "")


def test_what_the_operator_trusts():
    policy = AddressPolicy(trusted=(ipaddress.ip_network("10.1.0.0/16"),))
    assert not told("http://10.1.2.3/").allowed
    assert told("http://10.1.2.3/", policy=policy).allowed


def test_resolved_addresses_are_judged_and_one_bad_one_refuses():
    found = told("https://pypi.org/", answers=["151.101.0.223", "10.0.0.1"])
    assert [(one.address, one.refused is None) for one in found.addresses] == [
        ("151.101.0.223", True),
        ("10.0.0.1", False),
    ]
    assert found.refusal is not None
    assert found.refusal.denial is Denial.ADDRESS_REFUSED


def test_only_names_that_the_grant_allows_are_resolved():
    assert needs_resolving(GRANT, "https://pypi.org/", "GET") == "pypi.org"
    for url in ("https://evil.example.com/", "https://10.1.2.3/", "https://u@pypi.org/"):
        assert needs_resolving(GRANT, url, "GET") is None
    assert needs_resolving(GRANT, "https://api.example.com/v1", "POST") is None
