"""What labels say of a container, and that all of it is authenticated."""

import hashlib
import hmac

import pytest

from clawbox.containers.labels import (
    MAC,
    ForeignLabelsError,
    Identity,
    check_labels,
    from_labels,
    mac_of,
    mac_text,
    sealed,
    to_labels,
)
from clawbox.containers.narrowing import ContainerGrant, ContainerLimits, Isolation
from clawbox.errors import ClawboxError, Reason
from clawbox.network_rules import NetworkRule
from clawbox.policy import NetworkGrant

GRANT = ContainerGrant(
    isolation=Isolation.CONTAINER,
    network=NetworkGrant(
        (NetworkRule.parse({"host": "api.example.com", "ports": [443], "on_shape": "block"}),), 8
    ),
    credentials=frozenset({"git", "api"}),
    limits=ContainerLimits(memory_mb=512, pids=256, cpu_shares=1024, max_output_bytes=1, timeout_ms=5),
)
IDENTITY = Identity(
    installation="0d9c",
    container_id="6a1e1c4e-0f4e-4f66-9c53-0f3a6cf0a3a1",
    owner="alice",
    task="build “it”\n",
    image="docker.io/library/alpine:latest",
    image_id="sha256:" + "a" * 64,
    uid=900_001,
    gid=900_001,
    created_ms=1_700_000_000_000,
    grant=GRANT,
    template="code-runner",
    agent_id="a1",
    request_id="r1",
    workspace_id="w1",
    workspace_kept=True,
    workspace_goes=False,
    labels={"team": "x", "traefik.enable": "true"},
    env_names=("DEBUG", "STAGE"),
    token_sha256="ab" * 32,
    stop_signal="SIGINT",
)


def mac(labels):
    return hmac.digest(b"k" * 32, mac_text(labels).encode(), hashlib.sha256)


def test_a_container_is_known_again_from_its_labels_alone():
    labels = to_labels(IDENTITY)

    assert from_labels(sealed(labels, mac(labels))) == IDENTITY
    assert all(isinstance(value, str) for value in labels.values())
    # The names that the Rust clawbox used.
    assert labels["clawbox.container_id"] == IDENTITY.container_id
    assert labels["clawbox.task"] == IDENTITY.task
    assert labels["clawbox.policy"] == "container"


def test_rule_83_every_label_is_ours_and_none_is_the_callers():
    assert all(key.startswith("clawbox.") for key in to_labels(IDENTITY))


def test_rule_83_the_mac_is_over_every_label_of_ours():
    labels = to_labels(IDENTITY)
    right = sealed(labels, mac(labels))
    assert mac_of(right) == mac(right)

    for key in labels:
        assert mac({**right, key: labels[key] + " "}) != mac_of(right), key
        assert mac({other: value for other, value in right.items() if other != key}) != mac_of(right), key
    assert mac({**right, "clawbox.more": ""}) != mac_of(right)
    # What the image or the engine adds says nothing about a container.
    assert mac({**right, "org.opencontainers.image.title": "x"}) == mac_of(right)


def test_rule_83_no_label_can_be_written_as_two():
    one = {"clawbox.a": '1","clawbox.b":"2'}
    other = {"clawbox.a": "1", "clawbox.b": "2"}

    assert mac_text(one) != mac_text(other)


@pytest.mark.parametrize("text", ["", "zz", "abc", "AB", "ab\n"])
def test_a_mac_that_cannot_be_read_is_none(text):
    assert mac_of({MAC: text}) == b""
    assert mac_of({}) == b""


def test_rule_83_labels_that_are_not_as_they_were_written_are_nobodys():
    labels = to_labels(IDENTITY)
    detail = labels["clawbox.detail"]
    for changed in (
        {},
        {**labels, "clawbox.detail": "{"},
        {**labels, "clawbox.detail": "[]"},
        {**labels, "clawbox.detail": detail.replace('"version":1', '"version":2')},
        {**labels, "clawbox.detail": detail.replace('"pids":256', '"pids":256,"more":1')},
        {**labels, "clawbox.detail": detail.replace('"owner":"alice"', '"owner":"alice","x":1')},
        {**labels, "clawbox.detail": detail.replace("api.example.com", "API.example.com")},
        {**labels, "clawbox.policy": "root"},
        {**labels, "clawbox.more": "x"},
    ):
        with pytest.raises(ForeignLabelsError):
            from_labels(changed)


def test_a_callers_labels_are_checked():
    check_labels({"a": "", "team/x.y_z-0": "v" * 256})
    with pytest.raises(ClawboxError) as caught:
        check_labels({"clawbox.policy": "x", "Upper": "", "ok": "v" * 257, "": "", "a\n": ""})

    assert caught.value.reason is Reason.INVALID_FIELD
    assert {violation.field: violation.rule for violation in caught.value.violations} == {
        "labels[clawbox.policy]": "reserved",
        "labels[Upper]": "pattern",
        "labels[ok]": "max_length",
        "labels[]": "pattern",
        "labels[a\\n]": "pattern",
    }
    with pytest.raises(ClawboxError, match="more than 64"):
        check_labels({f"a{n}": "" for n in range(65)})
