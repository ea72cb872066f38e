"""A container gets what request, template, token and server all allow, and more is refused by name."""

from dataclasses import replace

import pytest

from clawbox.auth import PrincipalLimits
from clawbox.containers.narrowing import (
    Bound,
    ContainerCeiling,
    ContainerLimits,
    ContainerRequest,
    Isolation,
    TemplateTerms,
    narrow_container,
)
from clawbox.errors import ClawboxError, Reason
from clawbox.network_rules import NetworkRule, ShapeAction

ANYONE = PrincipalLimits()
SERVER = ContainerCeiling(
    memory_mb=Bound(512, 4096),
    timeout_ms=Bound(None, None),
    max_lifetime_ms=Bound(None, 86_400_000),
    cpu_millis=Bound(None, 2000),
    pids=Bound(256, 1024),
    max_output_bytes=Bound(262_144, 1_048_576),
    network=(NetworkRule.parse("*.example.com"), NetworkRule.parse("git.example.org")),
    credentials=frozenset({"git", "api"}),
)


def rules(*hosts):
    return tuple(NetworkRule.parse(host) for host in hosts)


def hosts(grant):
    return {rule.host for rule in grant.network.rules}


def refusal(requested, template=None, principal=ANYONE, server=SERVER):
    with pytest.raises(ClawboxError) as caught:
        narrow_container(requested, template, principal, server)
    return caught.value


def test_nothing_asked_for_is_no_network_no_credentials_and_the_servers_limits():
    grant = narrow_container(ContainerRequest(), None, ANYONE, SERVER)

    assert grant.isolation is Isolation.CONTAINER
    assert hosts(grant) == set()
    assert grant.credentials == frozenset()
    assert grant.limits == ContainerLimits(
        memory_mb=512,
        pids=256,
        cpu_shares=1024,
        max_output_bytes=262_144,
        max_lifetime_ms=86_400_000,
        cpu_millis=2000,
    )


def test_a_template_brings_its_network_within_token_and_server():
    template = TemplateTerms(network=rules("a.example.com", "git.example.org", "beyond.test"))

    assert hosts(narrow_container(ContainerRequest(), template, ANYONE, SERVER)) == {
        "a.example.com",
        "git.example.org",
    }
    bound = PrincipalLimits(network=rules("*.example.com"))
    assert hosts(narrow_container(ContainerRequest(), template, bound, SERVER)) == {"a.example.com"}
    none = ContainerRequest(network=())
    assert hosts(narrow_container(none, template, ANYONE, SERVER)) == set()


def test_what_is_granted_carries_the_servers_treatment_of_shapes():
    server = replace(SERVER, on_shape=ShapeAction.REPORT)
    grant = narrow_container(ContainerRequest(network=rules("a.example.com")), None, ANYONE, server)

    assert [rule.on_shape for rule in grant.network.rules] == [ShapeAction.REPORT]


@pytest.mark.parametrize(
    ("template", "principal", "server", "layer"),
    [
        (TemplateTerms(network=rules("b.example.com")), ANYONE, SERVER, "template"),
        (TemplateTerms(), ANYONE, SERVER, "template"),
        (None, PrincipalLimits(network=rules("b.example.com")), SERVER, "token"),
        (None, ANYONE, replace(SERVER, network=()), "server"),
    ],
)
def test_a_rule_beyond_any_layer_is_refused_by_name(template, principal, server, layer):
    request = ContainerRequest(network=rules("a.example.com"))

    error = refusal(request, template, principal, server)

    assert error.reason is Reason.POLICY_DENIED
    assert error.metadata["field"] == "capabilities.network.rules[0]"
    assert (error.metadata["layer"], error.metadata["entry"]) == (layer, "a.example.com")


@pytest.mark.parametrize(
    ("template", "principal", "server", "layer"),
    [
        (TemplateTerms(credentials=frozenset({"git"})), ANYONE, SERVER, "template"),
        (None, PrincipalLimits(credentials=frozenset({"git"})), SERVER, "token"),
        (None, ANYONE, replace(SERVER, credentials=frozenset({"git"})), "server"),
    ],
)
def test_a_credential_beyond_any_layer_is_refused_by_name(template, principal, server, layer):
    error = refusal(ContainerRequest(credentials=("git", "api")), template, principal, server)

    assert error.reason is Reason.CREDENTIAL_NOT_ALLOWED
    assert error.metadata == {"field": "capabilities.credentials[1]", "entry": "api", "layer": layer}


def test_credentials_are_those_that_were_asked_for():
    template = TemplateTerms(credentials=frozenset({"git", "api"}))

    assert narrow_container(ContainerRequest(), template, ANYONE, SERVER).credentials == frozenset()
    asked = ContainerRequest(credentials=("git",))
    assert narrow_container(asked, template, ANYONE, SERVER).credentials == {"git"}


def test_a_templates_limit_is_what_it_gives_and_the_most_of_it():
    template = TemplateTerms(memory_mb=128, timeout_ms=5000, pids=10_000, max_lifetime_ms=60_000)

    limits = narrow_container(ContainerRequest(), template, ANYONE, SERVER).limits
    assert (limits.memory_mb, limits.timeout_ms, limits.max_lifetime_ms) == (128, 5000, 60_000)
    assert limits.pids == 1024  # the server's

    less = ContainerRequest(memory_mb=64, timeout_ms=1, max_lifetime_ms=1)
    limits = narrow_container(less, template, ANYONE, SERVER).limits
    assert (limits.memory_mb, limits.timeout_ms, limits.max_lifetime_ms) == (64, 1, 1)


@pytest.mark.parametrize(
    ("request_", "field", "layer"),
    [
        (ContainerRequest(memory_mb=129), "capabilities.resources.memory_mb", "template"),
        (ContainerRequest(timeout_ms=5001), "capabilities.resources.timeout_ms", "template"),
        (ContainerRequest(pids=1025), "capabilities.resources.pids", "server"),
        (ContainerRequest(cpu_millis=2001), "capabilities.resources.cpu_millis", "server"),
        (ContainerRequest(cpu_shares=262_145), "capabilities.resources.cpu_shares", "server"),
        (ContainerRequest(max_output_bytes=2**40), "capabilities.resources.max_output_bytes", "server"),
        (ContainerRequest(max_lifetime_ms=2**63), "max_lifetime_ms", "server"),
        (ContainerRequest(max_concurrent=65), "capabilities.network.max_concurrent", "server"),
    ],
)
def test_a_limit_beyond_any_layer_is_refused_by_name(request_, field, layer):
    error = refusal(request_, TemplateTerms(memory_mb=128, timeout_ms=5000))

    assert error.reason is Reason.POLICY_DENIED
    assert (error.metadata["field"], error.metadata["layer"]) == (field, layer)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ContainerRequest(memory_mb=0), "capabilities.resources.memory_mb"),
        (ContainerRequest(memory_mb=5), "capabilities.resources.memory_mb"),
        (ContainerRequest(timeout_ms=0), "capabilities.resources.timeout_ms"),
        (ContainerRequest(pids=0), "capabilities.resources.pids"),
        (ContainerRequest(cpu_millis=9), "capabilities.resources.cpu_millis"),
        (ContainerRequest(cpu_shares=1), "capabilities.resources.cpu_shares"),
        (ContainerRequest(max_output_bytes=0), "capabilities.resources.max_output_bytes"),
        (ContainerRequest(max_lifetime_ms=0), "max_lifetime_ms"),
    ],
)
def test_a_limit_that_no_container_can_have_is_an_invalid_field(request_, field):
    error = refusal(request_)

    assert error.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in error.violations] == [field]


def test_a_network_of_its_own_needs_the_operator_and_nobody_who_is_bound_by_rules():
    request = ContainerRequest(isolation=Isolation.DIRECT)
    open_ = replace(SERVER, isolations=frozenset(Isolation))

    grant = narrow_container(request, None, ANYONE, open_)
    assert grant.isolation is Isolation.DIRECT
    assert hosts(grant) == set()

    for error, layer in (
        (refusal(request), "server"),
        (refusal(request, TemplateTerms(), ANYONE, open_), "template"),
        (refusal(request, None, PrincipalLimits(network=rules("*.example.com")), open_), "token"),
        (refusal(request, None, PrincipalLimits(credentials=frozenset()), open_), "token"),
    ):
        assert error.reason is Reason.POLICY_DENIED
        assert error.metadata == {"field": "policy", "entry": "container_direct", "layer": layer}
    for asked in (replace(request, network=()), replace(request, credentials=("git",))):
        assert refusal(asked, server=open_).reason is Reason.INVALID_FIELD


def test_the_operator_may_allow_no_containers_at_all():
    assert refusal(ContainerRequest(), server=replace(SERVER, isolations=frozenset())).metadata["entry"] == (
        "container"
    )
