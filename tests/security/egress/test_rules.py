"""Properties 5, 6, 8, 9, 31, 38, 41, 70: what a grant allows, and why not."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbox.egress import rules
from clawbox.egress.refusal import Denial
from clawbox.egress.rules import CredentialScope, decide, may_attach
from clawbox.egress.target import Form, Target, parse_request_target, parse_tunnel_target, parse_url
from clawbox.network_rules import NetworkRule, ShapeAction, TlsMode, covers
from clawbox.policy import NetworkGrant


def grant(*values: object) -> NetworkGrant:
    return NetworkGrant(tuple(NetworkRule.parse(value, any_host=True) for value in values))


def target_of(method: str, text: str) -> Target:
    target = parse_request_target(method, text)
    assert isinstance(target, Target)
    return target


def denial_of(decision):
    assert not decision.allowed
    return decision.refusal.denial


@pytest.mark.parametrize(
    "host",
    [
        "x.com",
        "evilx.com",
        "x.com.evil",
        "a.x.com.evil",
        "a.evilx.com",
        "xx.com",
        "a-x.com",
        "com",
        "x.co",
        "[2001:db8::1]",
    ],
)
def test_rule_5_a_suffix_never_matches_another_domain(host):
    decision = decide(grant("*.x.com"), parse_url(f"https://{host}/"), "GET")
    assert Denial.HOST_NOT_ALLOWED is denial_of(decision)


@pytest.mark.parametrize("host", ["a.x.com", "A.B.X.com", "a.x.com.", "_x.x.com"])
def test_rule_5_a_suffix_matches_what_is_below_it(host):
    assert decide(grant("*.x.com"), parse_url(f"https://{host}/"), "GET").allowed


@pytest.mark.parametrize(
    ("port", "allowed"), [(80, True), (443, True), (8443, False), (1, False), (65535, False)]
)
def test_rule_6_a_port_outside_the_rule_is_refused(port, allowed):
    for method, text in (("GET", f"https://a.example:{port}/"), ("CONNECT", f"a.example:{port}")):
        decision = decide(grant("a.example"), target_of(method, text), method)
        assert allowed == decision.allowed
        assert allowed or denial_of(decision) is Denial.PORT_NOT_ALLOWED


@settings(deadline=None)
@given(st.sampled_from(["GET", "POST", "CONNECT"]), st.from_regex(r"[a-z]{1,8}\.example", fullmatch=True))
def test_rule_8_an_empty_grant_refuses_everything(method, host):
    text = f"{host}:443" if method == "CONNECT" else f"https://{host}/"
    assert Denial.NO_RULES is denial_of(decide(grant(), target_of(method, text), method))


def test_rule_9_every_way_in_gets_the_same_decision():
    rules_of = grant({"host": "a.example", "methods": ["GET"], "path_prefixes": ["/ok"]})
    tunnel = target_of("CONNECT", "a.example:443")
    for path, allowed in (("/ok/x", True), ("/no", False)):
        decisions = {
            decide(rules_of, target, "GET")
            for target in (
                target_of("GET", f"https://a.example{path}"),
                target_of("GET", f"/https://a.example{path}"),
                target_of("GET", f"http://localhost/https://a.example{path}"),
                parse_url(f"https://a.example{path}"),
                parse_tunnel_target(path, tunnel, "https"),
                parse_tunnel_target(f"https://a.example{path}", tunnel, "https"),
            )
        }
        assert [allowed] == [decision.allowed for decision in decisions]


def test_rule_31_a_tunnels_requests_are_decided_by_themselves():
    rules_of = grant({"host": "a.example", "methods": ["GET"], "path_prefixes": ["/ok"]})
    tunnel = target_of("CONNECT", "a.example:443")
    opened = decide(rules_of, tunnel, "CONNECT")
    assert (True, TlsMode.INTERCEPT) == (opened.allowed, opened.tls)
    assert decide(rules_of, parse_tunnel_target("/ok", tunnel, "https"), "GET").allowed
    post = decide(rules_of, parse_tunnel_target("/ok", tunnel, "https"), "POST")
    assert Denial.METHOD_NOT_ALLOWED is denial_of(post)
    other = decide(rules_of, parse_tunnel_target("/other", tunnel, "https"), "GET")
    assert Denial.PATH_NOT_ALLOWED is denial_of(other)


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "trace", "Track", "CONNECT", "connect"])
def test_rule_70_methods_that_are_never_passed_on(method):
    assert Denial.METHOD_REFUSED is denial_of(decide(grant("*"), parse_url("https://a.example/"), method))


def test_rule_70_only_connect_opens_a_tunnel():
    assert Denial.METHOD_REFUSED is denial_of(
        decide(grant("*"), target_of("CONNECT", "a.example:443"), "GET")
    )


@pytest.mark.parametrize("method", ["get", "Get", "GETT", "POST", "G"])
def test_methods_are_compared_as_they_are(method):
    decision = decide(
        grant({"host": "a.example", "methods": ["GET"]}), parse_url("https://a.example/"), method
    )
    assert Denial.METHOD_NOT_ALLOWED is denial_of(decision)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/repos/me", True),
        ("/repos/me/", True),
        ("/repos/me/x", True),
        ("/repos/me//x", True),
        ("/repos/me/../me/x", True),
        ("/repos/%6de/x", True),
        ("/repos/me/a%2Fb", True),
        ("/repos/me-too", False),
        ("/repos/me;x/y", False),
        ("/repos/me%2Fx", False),
        ("/repos%2Fme/x", False),
        ("//repos/me", False),
        ("/repos//me", False),
        ("/repos/me/../you", False),
        ("/repos/me/%2e%2e/you", False),
        ("/REPOS/me", False),
        ("/", False),
    ],
)
def test_rule_41_path_rules_see_the_canonical_path(path, allowed):
    rules_of = grant({"host": "a.example", "path_prefixes": ["/repos/me"]})
    assert allowed == decide(rules_of, parse_url(f"https://a.example{path}"), "GET").allowed


def test_rule_41_the_query_is_no_part_of_the_path():
    rules_of = grant({"host": "a.example", "path_prefixes": ["/ok"]})
    assert not decide(rules_of, parse_url("https://a.example/no?/ok"), "GET").allowed
    assert decide(rules_of, parse_url("https://a.example/ok?/../no"), "GET").allowed


def test_a_decision_names_its_rule():
    rules_of = grant("b.example", {"host": "a.example", "methods": ["POST"]}, "*.example")
    decision = decide(rules_of, parse_url("https://a.example/"), "GET")
    assert (True, 2) == (decision.allowed, decision.rule)
    decision = decide(rules_of, parse_url("https://a.example:444/"), "GET")
    assert (Denial.PORT_NOT_ALLOWED, 1) == (denial_of(decision), decision.rule)
    decision = decide(rules_of, parse_url("https://c.test/"), "GET")
    assert (Denial.HOST_NOT_ALLOWED, None) == (denial_of(decision), decision.rule)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ((None,), ShapeAction.REDACT),
        (("report",), ShapeAction.REPORT),
        (("report", "redact"), ShapeAction.REDACT),
        (("redact", "block", "report"), ShapeAction.BLOCK),
        (("report", None), ShapeAction.REDACT),
    ],
)
def test_where_rules_overlap_the_strictest_treatment_of_shapes_holds(shapes, expected):
    rules_of = grant(*({"host": "a.example", "on_shape": shape} for shape in shapes))
    decision = decide(rules_of, parse_url("https://a.example/"), "GET", ShapeAction.REDACT)
    assert expected is decision.on_shape


def test_a_treatment_of_a_rule_that_does_not_allow_the_request_says_nothing():
    rules_of = grant(
        {"host": "a.example", "on_shape": "report"},
        {"host": "a.example", "on_shape": "block", "path_prefixes": ["/x"]},
    )
    assert ShapeAction.REPORT is decide(rules_of, parse_url("https://a.example/y"), "GET").on_shape
    assert ShapeAction.BLOCK is decide(rules_of, parse_url("https://a.example/x"), "GET").on_shape


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (("tunnel",), TlsMode.TUNNEL),
        (("tunnel", "tunnel"), TlsMode.TUNNEL),
        (("intercept",), TlsMode.INTERCEPT),
        (("tunnel", "intercept"), TlsMode.INTERCEPT),
        (("intercept", "tunnel"), TlsMode.INTERCEPT),
    ],
)
def test_a_tunnel_is_read_unless_every_rule_says_otherwise(modes, expected):
    rules_of = grant(*({"host": "a.example", "tls_mode": mode} for mode in modes))
    assert expected is decide(rules_of, target_of("CONNECT", "a.example:443"), "CONNECT").tls


_RULES = st.builds(
    lambda host, ports, methods, prefixes: NetworkRule.parse(
        {"host": host, "ports": ports, "methods": methods, "path_prefixes": prefixes}, any_host=True
    ),
    st.sampled_from(["a.example", "*.a.example", "*.example", "b.example", "*"]),
    st.lists(st.sampled_from([80, 443, 8443]), max_size=2),
    st.lists(st.sampled_from(["GET", "POST"]), max_size=2),
    st.lists(st.sampled_from(["/", "/x", "/x/y", "/z/"]), max_size=2),
)
_TARGETS = st.builds(
    lambda host, port, path: parse_url(f"https://{host}:{port}{path}"),
    st.sampled_from(["a.example", "c.a.example", "b.example", "evil.test"]),
    st.sampled_from([80, 443, 8443]),
    st.sampled_from(["/", "/x", "/x/y/z", "/xx", "/z/", "/z/a"]),
)


@settings(deadline=None)
@given(st.lists(_RULES, max_size=4), _TARGETS, st.sampled_from(["GET", "POST", "PUT"]))
def test_a_request_is_allowed_exactly_when_the_grant_covers_it(held, target, method):
    alone = NetworkRule(
        host=target.host, ports=(target.port,), methods=(method,), path_prefixes=(target.path,)
    )
    decision = decide(NetworkGrant(tuple(held)), target, method)
    if decision.allowed:
        assert decision.rule is not None
        one = NetworkGrant((held[decision.rule],))
        assert decide(one, target, method).allowed
        assert covers(held, alone)
    else:
        assert not covers(held, alone)


SCOPE = CredentialScope(("api.example",), (443,), ("GET",), ("/v1",))


@pytest.mark.parametrize(
    ("url", "method", "attached"),
    [
        ("https://api.example/v1/x", "GET", True),
        ("https://API.example./v1", "GET", True),
        ("http://api.example:443/v1/x", "GET", False),
        ("http://api.example/v1/x", "GET", False),
        ("https://api.example:8443/v1/x", "GET", False),
        ("https://x.api.example/v1/x", "GET", False),
        ("https://api.example.evil/v1/x", "GET", False),
        ("https://api.example/v1/x", "POST", False),
        ("https://api.example/v1/x", "get", False),
        ("https://api.example/v2/x", "GET", False),
        ("https://api.example/v1/../v2", "GET", False),
        ("https://api.example/v11", "GET", False),
    ],
)
def test_rule_38_a_credential_goes_to_its_own_requests_alone(url, method, attached):
    assert attached == may_attach(SCOPE, parse_url(url), method)


def test_rule_38_clear_text_needs_the_operators_mark_and_tunnels_get_nothing():
    plain = CredentialScope(("api.example",), (80, 443), plain=True)
    assert may_attach(plain, parse_url("http://api.example/"), "GET")
    assert not may_attach(
        CredentialScope(("api.example",), (80, 443)), parse_url("http://api.example/"), "GET"
    )
    assert not may_attach(plain, target_of("CONNECT", "api.example:443"), "CONNECT")
    assert not may_attach(CredentialScope(("*.example",), (443,)), parse_url("https://api.example/"), "GET")


def test_rule_16_deciding_resolves_nothing():
    source = inspect.getsource(rules)
    assert not {"socket", "asyncio", "getaddrinfo"} & set(source.replace(".", " ").split())
    assert Form.CONNECT is target_of("CONNECT", "nowhere.invalid:443").form
