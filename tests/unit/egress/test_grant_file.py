"""The grant file: what it means, and how each mistake in it is told."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from clawbox.config import ConfigError
from clawbox.egress.grant_file import load_grant, read_authorities
from clawbox.egress.messages import Grant, Limits
from clawbox.network_rules import NetworkRule, ShapeAction

EXAMPLE = Path(__file__).parents[3] / "examples/egress/grant.toml"


def load(folder: Path, text: str):
    path = folder / "grant.toml"
    path.write_text(text)
    return load_grant(path)


def problems(folder: Path, text: str) -> dict[str, tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert {problem.source for problem in caught.value.problems} == {str(folder / "grant.toml")}
    return {problem.key: (problem.found, problem.accepted) for problem in caught.value.problems}


def test_what_is_left_out_has_the_defaults_of_the_sidecar(tmp_path):
    assert load(tmp_path, "[grant]").for_sandbox("box", "ann") == Grant("box", "ann")


def test_the_example_has_every_key_with_its_default():
    grant = load_grant(EXAMPLE).for_sandbox("box", "ann")
    assert grant.limits == Limits()
    assert grant.on_shape is ShapeAction.BLOCK
    assert grant.rules[0] == NetworkRule("pypi.org")
    text = EXAMPLE.read_text()
    for name in (
        *Limits.__struct_fields__,
        "trusted_networks",
        "deny_addresses",
        "upstream_ca",
        "credentials",
    ):
        assert f"{name} = " in text, name


def test_everything_that_is_said_is_meant(tmp_path):
    file = load(
        tmp_path,
        """
        [grant]
        network = ["A.example.com.", { host = "*.b.example.com", ports = [8443], methods = ["GET"] }, "*"]
        credentials = ["one", "two"]
        on_shape = "report"
        trusted_networks = ["10.1.0.0/16"]
        deny_addresses = ["203.0.113.7"]
        upstream_ca = ["ca.pem"]
        [limits]
        burst = 7
        max_tunnels = 0
        max_request_bytes = 10
        """,
    )
    grant = file.for_sandbox("box", "ann")
    assert [str(rule) for rule in grant.rules] == ["a.example.com", "GET *.b.example.com:8443", "*"]
    assert grant.credentials == ("one", "two")
    assert grant.on_shape is ShapeAction.REPORT
    assert grant.limits == Limits(burst=7, max_tunnels=0, max_request_bytes=10)
    assert file.grant.upstream_ca == (tmp_path / "ca.pem",)
    policy = file.address_policy()
    assert policy.trusted == (ipaddress.ip_network("10.1.0.0/16"),)
    assert policy.denied == (ipaddress.ip_network("203.0.113.7"),)


def test_every_problem_is_told_at_once(tmp_path):
    found = problems(
        tmp_path,
        """
        [grant]
        network = ["https://x.example.com", { host = "a.example.com", ports = [0], tls_mod = "x" }, 5]
        netwrok = []
        credentials = ["a b"]
        on_shape = "no"
        trusted_networks = ["10.0.0.1/8"]
        [limits]
        burst = 0
        max_concurent = 4
        idle_timeout_ms = "long"
        [egress]
        x = 1
        """,
    )
    assert "not a host name" in found["grant.network[0].host"][0]
    assert "not a port in 1..65535" in found["grant.network[1].ports[0]"][0]
    assert "unknown key 'tls_mod'" in found["grant.network[1]"][0]
    assert found["grant.netwrok"] == ("an unknown key", "grant.network")
    assert found["grant.credentials[0]"] == ('"a b"', "1 to 64 of A-Z a-z 0-9 _ . -")
    assert found["grant.on_shape"] == ('"no"', '"block", "redact" or "report"')
    assert found["grant.trusted_networks[0]"][0] == '"10.0.0.1/8"'
    assert found["limits.burst"] == ("0", "a whole number, 1 to 1048576")
    assert found["limits.max_concurent"] == ("an unknown key", "limits.max_concurrent")
    assert found["limits.idle_timeout_ms"][0] == '"long"'
    assert found["egress"] == ("an unknown key", "one of grant, limits")
    assert len(found) == 12


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("", "grant", "nothing"),
        ("[grant", "", "a syntax error"),
        ('[grant]\ncredentials = ["k", "k"]', "grant.credentials", '"k" twice'),
        (f"[grant]\nnetwork = {['a.example.com'] * 257}", "grant.network", "a list of 257"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole(tmp_path, text, key, found):
    told = problems(tmp_path, text)
    assert list(told) == [key]
    assert found in told[key][0]


def test_no_file_is_said_so(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_grant(tmp_path / "none.toml")


def test_authorities_are_read_and_each_that_is_none_is_named(tmp_path):
    (tmp_path / "empty.pem").write_text("no certificate\n")
    (tmp_path / "binary.pem").write_bytes(b"\xff")
    file = load(tmp_path, '[grant]\nupstream_ca = ["none.pem", "empty.pem", "binary.pem"]')
    with pytest.raises(ConfigError) as caught:
        read_authorities(file, tmp_path / "grant.toml")
    assert [(one.key, one.found.rpartition(": ")[2]) for one in caught.value.problems] == [
        ("grant.upstream_ca[0]", "No such file or directory"),
        ("grant.upstream_ca[1]", "no certificate in it"),
        ("grant.upstream_ca[2]", "no text"),
    ]
