"""The grant of one run: what is inherited, what is narrowed, and what is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.errors import ClawboxError, Code, Reason
from clawbox.policy import (
    NetworkGrant,
    NetworkRule,
    Requested,
    ShapeAction,
    ToolCeiling,
    covers,
    manifest_excess,
    narrow_tool,
)
from clawbox.wasm.model import Limits


@dataclass(frozen=True)
class Terms:
    """A manifest, as far as policy looks at one."""

    network_rules: tuple[NetworkRule, ...] = ()
    max_concurrent: int | None = None
    credential_names: tuple[str, ...] = ()
    default_timeout_ms: int | None = None
    max_timeout_ms: int | None = None
    default_memory_mb: int | None = None
    max_memory_mb: int | None = None
    default_fuel: int | None = None
    max_fuel: int | None = None


@dataclass(frozen=True)
class Bounds:
    """A principal, as far as policy looks at one."""

    network: tuple[NetworkRule, ...] | None = None
    credentials: frozenset[str] | None = None


def rules(*hosts: object) -> tuple[NetworkRule, ...]:
    return tuple(NetworkRule.parse(host) for host in hosts)


SERVER = ToolCeiling(
    default_timeout_ms=30_000,
    max_timeout_ms=120_000,
    default_memory_mb=256,
    max_memory_mb=1024,
    default_fuel=100,
    max_fuel=1000,
    network=rules("*.github.com", "api.openai.com"),
    credentials=frozenset({"github", "openai"}),
)
MANIFEST = Terms(network_rules=rules("api.github.com", "api.openai.com"), credential_names=("github",))
ANYONE = Bounds()


def refusal(
    requested: Requested,
    manifest: Terms = MANIFEST,
    principal: Bounds = ANYONE,
    owner: Bounds | None = None,
    server: ToolCeiling = SERVER,
) -> ClawboxError:
    with pytest.raises(ClawboxError) as refused:
        narrow_tool(requested, manifest, principal, owner, server)
    return refused.value


def asking(name: str, value: int) -> Requested:
    change: dict[str, Any] = {name: value}
    return replace(Requested(), **change)


def test_a_request_that_says_nothing_gets_the_manifest_and_no_credential():
    grant = narrow_tool(None, MANIFEST, ANYONE, None, SERVER)
    assert [rule.host for rule in grant.network.rules] == ["api.github.com", "api.openai.com"]
    assert grant.network.max_concurrent == 5
    assert grant.credentials == frozenset()
    assert grant.limits == Limits(timeout_ms=30_000, fuel=100, memory_bytes=256 << 20, stdout_bytes=1 << 20)


def test_no_manifest_means_no_network():
    assert narrow_tool(None, Terms(), ANYONE, None, SERVER).network == NetworkGrant()


def test_an_empty_list_means_no_network():
    grant = narrow_tool(Requested(network=()), MANIFEST, ANYONE, None, SERVER)
    assert grant.network.rules == ()


def test_an_empty_server_policy_allows_nothing():
    assert narrow_tool(None, MANIFEST, ANYONE, None, replace(SERVER, network=())).network.rules == ()


def test_a_request_narrows():
    wanted = rules(
        {"host": "api.github.com", "ports": [443], "methods": ["GET"], "path_prefixes": ["/repos"]}
    )
    grant = narrow_tool(Requested(network=wanted, max_concurrent=2), MANIFEST, ANYONE, None, SERVER)
    assert grant.network.max_concurrent == 2
    assert [replace(rule, on_shape=None) for rule in grant.network.rules] == list(wanted)


@pytest.mark.parametrize(
    ("layer", "changes"),
    [
        ("manifest", {"manifest": Terms(network_rules=rules("api.openai.com"))}),
        ("token", {"principal": Bounds(network=rules("api.openai.com"))}),
        ("token", {"principal": Bounds(network=())}),
        ("tool's owner", {"owner": Bounds(network=rules("api.openai.com"))}),
        ("server", {"server": replace(SERVER, network=rules("api.openai.com"))}),
    ],
)
def test_a_request_for_more_network_names_entry_and_layer(layer, changes):
    error = refusal(Requested(network=rules("api.openai.com", "api.github.com")), **changes)
    assert error.reason is Reason.POLICY_DENIED
    assert error.code is Code.PERMISSION_DENIED
    expected = {"field": "capabilities.network.rules[1]", "entry": "api.github.com", "layer": layer}
    if changes.get("principal") == Bounds(network=()):
        expected |= {"field": "capabilities.network.rules[0]", "entry": "api.openai.com"}
    assert error.metadata == expected


@pytest.mark.parametrize(
    "wanted",
    [
        {"host": "api.github.com", "ports": [8443]},
        {"host": "*.github.com"},
        {"host": "api.github.com", "tls_mode": "tunnel"},
        {"host": "api.github.com", "on_shape": "report"},
    ],
)
def test_more_of_an_allowed_host_is_refused(wanted):
    assert refusal(Requested(network=rules(wanted))).reason is Reason.POLICY_DENIED


def test_the_owner_caps_what_a_tool_reaches_without_a_request():
    grant = narrow_tool(None, MANIFEST, ANYONE, Bounds(network=rules("api.openai.com")), SERVER)
    assert [rule.host for rule in grant.network.rules] == ["api.openai.com"]


def test_the_server_fills_in_what_happens_to_secret_shapes():
    server = replace(SERVER, on_shape=ShapeAction.REDACT)
    grant = narrow_tool(None, MANIFEST, ANYONE, None, server)
    assert {rule.on_shape for rule in grant.network.rules} == {ShapeAction.REDACT}
    stricter = Terms(network_rules=rules({"host": "api.github.com", "on_shape": "block"}))
    grant = narrow_tool(None, stricter, ANYONE, None, server)
    assert {rule.on_shape for rule in grant.network.rules} == {ShapeAction.BLOCK}


@pytest.mark.parametrize(
    ("name", "layer", "changes"),
    [
        ("openai", "manifest", {}),
        ("github", "token", {"principal": Bounds(credentials=frozenset())}),
        ("github", "tool's owner", {"owner": Bounds(credentials=frozenset({"openai"}))}),
        ("github", "server", {"server": replace(SERVER, credentials=frozenset())}),
    ],
)
def test_a_credential_beyond_a_layer_is_refused_by_name(name, layer, changes):
    error = refusal(Requested(credentials=(name,)), **changes)
    assert error.reason is Reason.CREDENTIAL_NOT_ALLOWED
    assert error.metadata == {"field": "capabilities.credentials[0]", "entry": name, "layer": layer}


def test_an_allowed_credential_is_granted():
    assert narrow_tool(Requested(credentials=("github",)), MANIFEST, ANYONE, None, SERVER).credentials == {
        "github"
    }


@pytest.mark.parametrize("name", ["timeout_ms", "memory_mb", "fuel", "max_output_bytes"])
def test_zero_is_not_unlimited(name):
    error = refusal(asking(name, 0))
    assert error.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in error.violations] == [f"capabilities.resources.{name}"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("timeout_ms", 120_000), ("memory_mb", 1024), ("fuel", 1000), ("max_output_bytes", 1 << 20)],
)
def test_over_the_servers_maximum_is_refused_with_both_numbers(name, allowed):
    narrow_tool(asking(name, allowed), MANIFEST, ANYONE, None, SERVER)
    error = refusal(asking(name, allowed + 1))
    assert error.reason is Reason.POLICY_DENIED
    assert error.metadata == {
        "field": f"capabilities.resources.{name}",
        "entry": str(allowed + 1),
        "asked": str(allowed + 1),
        "allowed": str(allowed),
        "layer": "server",
    }


def test_over_the_manifests_maximum_is_refused():
    error = refusal(Requested(timeout_ms=5001), manifest=Terms(max_timeout_ms=5000))
    assert (error.metadata["allowed"], error.metadata["layer"]) == ("5000", "manifest")
    assert narrow_tool(None, Terms(max_timeout_ms=5000), ANYONE, None, SERVER).limits.timeout_ms == 5000


def test_the_manifests_defaults_win_within_the_servers_maximum():
    manifest = Terms(default_timeout_ms=1000, default_fuel=10_000, max_fuel=20_000, default_memory_mb=8)
    limits = narrow_tool(None, manifest, ANYONE, None, SERVER).limits
    assert (limits.timeout_ms, limits.fuel, limits.memory_bytes) == (1000, 1000, 8 << 20)


def test_more_requests_at_once_than_the_manifest_allows_are_refused():
    assert refusal(Requested(max_concurrent=6)).metadata["field"] == "capabilities.network.max_concurrent"
    assert (
        narrow_tool(Requested(max_concurrent=0), MANIFEST, ANYONE, None, SERVER).network.max_concurrent == 5
    )


def test_everything_that_a_manifest_asks_too_much_is_listed():
    greedy = Terms(
        network_rules=rules("api.github.com", "evil.org"),
        max_concurrent=65,
        credential_names=("github", "aws"),
        max_timeout_ms=120_001,
        default_fuel=1001,
        max_memory_mb=1025,
    )
    fields = [violation.field for violation in manifest_excess(greedy, None, SERVER)]
    assert fields == [
        "network.allowlist[1]",
        "credentials.available[1]",
        "network.max_concurrent",
        "resources.max_timeout_ms",
        "resources.max_memory_mb",
        "resources.default_fuel",
    ]
    assert manifest_excess(MANIFEST, None, SERVER) == ()


def test_a_manifest_is_bounded_by_its_owners_token():
    owner = Bounds(network=rules("api.openai.com"), credentials=frozenset())
    found = manifest_excess(MANIFEST, owner, SERVER)
    assert [violation.field for violation in found] == ["network.allowlist[0]", "credentials.available[0]"]


_hosts = st.sampled_from(["a.com", "b.a.com", "*.a.com", "c.org"])
_rule_lists = st.lists(
    st.builds(
        lambda host, ports: NetworkRule(host, tuple(sorted(ports))),
        _hosts,
        st.sets(st.sampled_from([80, 443]), min_size=1),
    ),
    max_size=3,
).map(tuple)


@given(_rule_lists | st.none(), _rule_lists, _rule_lists | st.none(), _rule_lists | st.none(), _rule_lists)
def test_no_grant_is_wider_than_any_layer(asked, manifest, principal, owner, server):
    layers = (
        Terms(network_rules=manifest),
        Bounds(principal),
        Bounds(owner),
        replace(SERVER, network=server),
    )
    too_much = any(
        not covers(layer, rule)
        for rule in asked or ()
        for layer in (manifest, principal, owner, server)
        if layer is not None
    )
    if too_much:
        with pytest.raises(ClawboxError):
            narrow_tool(Requested(network=asked), *layers)
        return
    grant = narrow_tool(Requested(network=asked), *layers)
    for rule in grant.network.rules:
        bare = replace(rule, on_shape=None)
        assert all(
            covers(layer, bare) for layer in (asked, manifest, principal, owner, server) if layer is not None
        )
    # What was asked for and not refused is granted whole.
    assert all(covers(grant.network.rules, rule) for rule in asked or ())
