"""Rules as sets: what parses, what is refused and why, inclusion against a matcher that tries requests."""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.network_rules import (
    NetworkRule,
    RuleError,
    ShapeAction,
    TlsMode,
    covers,
    intersect,
    intersect_all,
    path_within,
    with_shape,
)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("api.github.com", "api.github.com"),
        ("API.GitHub.com", "api.github.com"),
        ("example.com.", "example.com"),
        ("*.Example.com", "*.example.com"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("localhost", "localhost"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
    ],
)
def test_a_string_is_a_host_on_the_web_ports(text, host):
    assert NetworkRule.parse(text) == NetworkRule(host=host, ports=(80, 443))


@pytest.mark.parametrize(
    "host",
    [
        "",
        "*",
        "*.",
        "*.*.com",
        "a.*.com",
        "*example.com",
        "münchen.de",
        "https://example.com",
        "example.com:443",
        "example.com/x",
        "user@example.com",
        "example..com",
        ".example.com",
        "-a.com",
        "a b.com",
        "a\n.com",
        "example.com\n",
        "127.1",
        "0x7f.1",
        "2130706433",
        "1.2.3.4.5",
        "01.2.3.4",
        "*.1.2.3.4",
        "[::1]",
        "::1.",
        "fe80::1%eth0",
        "a" * 64 + ".com",
        ".".join(["a" * 60] * 5),
        "\u0661.\u0662.3.4",
    ],
)
def test_what_is_not_a_host_is_refused(host):
    with pytest.raises(RuleError) as refused:
        NetworkRule.parse({"host": host})
    assert [part for part, _ in refused.value.problems] == ["host"]


def test_every_host_needs_an_operator_who_says_so():
    with pytest.raises(RuleError, match=r"bare \*"):
        NetworkRule.parse("*")
    assert NetworkRule.parse("*", any_host=True).host == "*"


def test_a_full_rule_is_canonical():
    rule = NetworkRule.parse(
        {
            "host": "a.com",
            "ports": [8443, 443, 443],
            "methods": ["POST", "GET"],
            "path_prefixes": ["/v1/a", "/v1", "/v2/%C3%BC"],
            "on_shape": "report",
        }
    )
    assert rule == NetworkRule(
        "a.com", (443, 8443), ("GET", "POST"), ("/v1", "/v2/%C3%BC"), TlsMode.INTERCEPT, ShapeAction.REPORT
    )
    assert NetworkRule.parse(rule.to_json()) == rule


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("ports", [0], "ports[0]"),
        ("ports", [80, 65536], "ports[1]"),
        ("ports", ["443"], "ports[0]"),
        ("ports", [True], "ports[0]"),
        ("ports", [443.0], "ports[0]"),
        ("ports", 443, "ports"),
        ("ports", list(range(1, 100)), "ports"),
        ("methods", ["get"], "methods[0]"),
        ("methods", [""], "methods[0]"),
        ("methods", ["CONNECT"], "methods[0]"),
        ("methods", "GET", "methods"),
        ("path_prefixes", ["v1"], "path_prefixes[0]"),
        ("path_prefixes", ["/a/../b"], "path_prefixes[0]"),
        ("path_prefixes", ["/a//b"], "path_prefixes[0]"),
        ("path_prefixes", ["//"], "path_prefixes[0]"),
        ("path_prefixes", ["/."], "path_prefixes[0]"),
        ("path_prefixes", ["/a%2fb"], "path_prefixes[0]"),
        ("path_prefixes", ["/a%2Fb"], "path_prefixes[0]"),
        ("path_prefixes", ["/%2E%2E"], "path_prefixes[0]"),
        ("path_prefixes", ["/a;b"], "path_prefixes[0]"),
        ("path_prefixes", ["/a?b"], "path_prefixes[0]"),
        ("path_prefixes", ["/a\\b"], "path_prefixes[0]"),
        ("path_prefixes", ["/ü"], "path_prefixes[0]"),
        ("path_prefixes", ["/a\n"], "path_prefixes[0]"),
        ("tls_mode", "off", "tls_mode"),
        ("on_shape", "ignore", "on_shape"),
        ("on_shape", [], "on_shape"),
    ],
)
def test_a_bad_part_is_named(key, value, part):
    with pytest.raises(RuleError) as refused:
        NetworkRule.parse({"host": "a.com", key: value})
    assert [name for name, _ in refused.value.problems] == [part]


def test_all_problems_are_reported_at_once():
    with pytest.raises(RuleError) as refused:
        NetworkRule.parse({"hosts": "a.com", "ports": [0, 70000], "methods": ["x"]})
    assert [part for part, _ in refused.value.problems] == ["", "host", "ports[0]", "ports[1]", "methods[0]"]


def test_a_tunnel_cannot_have_rules_that_need_reading():
    with pytest.raises(RuleError, match="tunnel is not read"):
        NetworkRule.parse({"host": "a.com", "tls_mode": "tunnel", "methods": ["GET"]})


@pytest.mark.parametrize("value", [None, 1, b"a.com", ["a.com"]])
def test_only_hosts_and_objects_are_rules(value):
    with pytest.raises(RuleError, match="a rule is a host or an object"):
        NetworkRule.parse(value)


def test_prefixes_hold_whole_segments():
    assert path_within("/repos/me", "/repos/me")
    assert path_within("/repos/me", "/repos/me/x")
    assert not path_within("/repos/me", "/repos/me-too")
    assert path_within("/repos/", "/repos/x")
    assert not path_within("/repos/", "/repos")


def test_a_suffix_never_matches_itself_or_a_lookalike():
    suffix = NetworkRule.parse("*.x.com")
    assert covers(suffix, NetworkRule.parse("a.x.com"))
    assert covers(suffix, NetworkRule.parse("*.a.x.com"))
    for other in ("x.com", "evilx.com", "x.com.evil", "*.com", "*.evilx.com"):
        assert not covers(suffix, NetworkRule.parse(other))


def test_a_tunnel_is_more_than_an_interception():
    tunnel, read = NetworkRule("a.com", tls_mode=TlsMode.TUNNEL), NetworkRule("a.com")
    assert covers(tunnel, read)
    assert not covers(read, tunnel)
    assert intersect(tunnel, read) == read


def test_a_laxer_treatment_of_secrets_is_more():
    strict, lax = (
        NetworkRule("a.com", on_shape=ShapeAction.BLOCK),
        NetworkRule("a.com", on_shape=ShapeAction.REPORT),
    )
    assert covers(lax, strict)
    assert not covers(strict, lax)
    assert covers(strict, NetworkRule("a.com"))
    assert intersect(NetworkRule("a.com"), lax) == lax
    assert intersect(strict, lax) == strict
    assert with_shape((NetworkRule("a.com"), lax), ShapeAction.REDACT)[0].on_shape is ShapeAction.REDACT
    assert with_shape((NetworkRule("a.com"), lax), ShapeAction.REDACT)[1] == lax


# A small world in which every request can be tried. It holds, for every infinite set that a rule can name,
# members that no rule names: a name, a method and a path of their own.
_HOSTS = ("x.com", "a.x.com", "b.x.com", "c.a.x.com", "zzz.x.com", "zzz.a.x.com", "y.org", "192.0.2.1")
_METHODS = ("GET", "POST", "ZZZ")
_PATHS = ("/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/a/zzz", "/zzz", "/a/b/zzz")
_PORTS = (80, 443, 8443)


@dataclass(frozen=True)
class _Request:
    host: str
    port: int
    method: str
    path: str
    tunnelled: bool


_EVERY_REQUEST = [
    _Request(*parts) for parts in itertools.product(_HOSTS, _PORTS, _METHODS, _PATHS, (False, True))
]


def _allows(rule: NetworkRule, request: _Request) -> bool:
    """As a reader of the documentation would decide it, one request at a time."""
    if rule.host not in {"*", request.host}:
        if not rule.host.startswith("*."):
            return False
        labels, suffix = request.host.split("."), rule.host[2:].split(".")
        if len(labels) <= len(suffix) or labels[-len(suffix) :] != suffix:
            return False
    if request.port not in rule.ports or (rule.methods and request.method not in rule.methods):
        return False
    if rule.path_prefixes:
        held = False
        for prefix in rule.path_prefixes:
            rest = request.path[len(prefix) :] if request.path.startswith(prefix) else None
            held = held or (rest is not None and (rest == "" or prefix.endswith("/") or rest[0] == "/"))
        if not held:
            return False
    return rule.tls_mode is TlsMode.TUNNEL or not request.tunnelled


@st.composite
def _rules(draw: st.DrawFn) -> NetworkRule:
    value: dict[str, object] = {
        "host": draw(
            st.sampled_from(
                ["x.com", "a.x.com", "b.x.com", "*.x.com", "*.a.x.com", "*.com", "y.org", "192.0.2.1", "*"]
            )
        ),
        "ports": draw(st.lists(st.sampled_from(_PORTS), max_size=3)),
    }
    if draw(st.integers(0, 4)) == 0:
        value["tls_mode"] = "tunnel"
    else:
        value["methods"] = draw(st.lists(st.sampled_from(["GET", "POST"]), max_size=2))
        value["path_prefixes"] = draw(
            st.lists(st.sampled_from(["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c"]), max_size=3)
        )
    return NetworkRule.parse(value, any_host=True)


@given(st.lists(_rules(), max_size=4), _rules())
def test_inclusion_is_exact(outer, inner):
    expected = all(
        any(_allows(rule, request) for rule in outer) for request in _EVERY_REQUEST if _allows(inner, request)
    )
    assert covers(outer, inner) == expected


@given(_rules(), _rules())
def test_intersection_is_exact(one, other):
    both = intersect(one, other)
    for request in _EVERY_REQUEST:
        expected = _allows(one, request) and _allows(other, request)
        assert (both is not None and _allows(both, request)) == expected, request


@given(st.lists(_rules(), max_size=3), st.lists(_rules(), max_size=3))
def test_what_an_intersection_allows_both_lists_cover(one, other):
    for rule in intersect_all(tuple(one), tuple(other)):
        assert covers(one, rule)
        assert covers(other, rule)


@given(_rules())
def test_a_rule_survives_its_own_json(rule):
    assert NetworkRule.parse(rule.to_json(), any_host=True) == rule
    named = replace(rule, on_shape=ShapeAction.REDACT)
    assert NetworkRule.parse(named.to_json(), any_host=True) == named


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["host", "ports", "methods", "path_prefixes", "tls_mode", "on_shape"])
            | st.text(string.printable, max_size=5),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(_json)
def test_any_value_is_a_rule_or_is_refused(value):
    try:
        rule = NetworkRule.parse(value)
    except RuleError:
        return
    assert NetworkRule.parse(rule.to_json()) == rule
