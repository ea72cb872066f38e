"""Which digest an image was taken by, and that it stays with its container."""

import dataclasses
import json

import pytest

from clawbox.containers.images import Reference, image_digest
from clawbox.containers.labels import ForeignLabelsError, from_labels, mac_text, to_labels
from clawbox.containers.persistence import from_row, to_row
from clawbox.containers.record import Container
from clawbox.containers.states import Status
from tests.unit.containers.test_labels import IDENTITY

ONE, OTHER, THIRD = ("sha256:" + letter * 64 for letter in "abc")
WITH = dataclasses.replace(IDENTITY, image_digest=ONE)


@pytest.mark.parametrize(
    ("asked", "known", "digest"),
    [
        # The engine writes names of docker.io short.
        ("alpine", [f"alpine@{ONE}"], ONE),
        ("docker.io/library/alpine:3", [f"alpine@{ONE}"], ONE),
        ("ghcr.io/team/box:1", [f"alpine@{OTHER}", f"ghcr.io/team/box@{ONE}"], ONE),
        ("localhost:5000/box", [f"localhost:5000/box@{ONE}"], ONE),
        # Of another repository, or of none: what the engine has was not taken from there.
        ("ghcr.io/team/box:1", [f"alpine@{OTHER}", f"ghcr.io/team/boxes@{OTHER}"], ""),
        ("box", [f"team/box@{OTHER}", f"localhost:5000/box@{OTHER}"], ""),
        ("clawbox/agent-base", [], ""),
        # What old engines say of images without a name, and what is no SHA-256.
        ("alpine", ["<none>@<none>", "alpine@sha512:" + "d" * 128, "alpine:3", "", f"alpine@{ONE}"], ONE),
        # The same content, pushed in two forms: always the same answer.
        ("alpine", [f"alpine@{OTHER}", f"alpine@{ONE}"], ONE),
        ("alpine", [f"alpine@{ONE}", f"alpine@{OTHER}"], ONE),
        # A reference that says which.
        (f"alpine@{OTHER}", [f"alpine@{ONE}", f"alpine@{OTHER}"], OTHER),
        (f"alpine:3@{OTHER}", [], OTHER),
    ],
)
def test_the_digest_is_that_of_the_repository_that_was_asked_for(asked, known, digest):
    assert image_digest(Reference.parse(asked), known) == digest


def test_a_digest_is_in_the_labels_and_under_their_mac():
    labels = to_labels(WITH)

    assert from_labels(labels) == WITH
    assert mac_text(labels) != mac_text(to_labels(dataclasses.replace(WITH, image_digest=OTHER)))


def test_labels_without_a_digest_are_as_they_were_before_there_was_one():
    """Else no container of an earlier version would be known again, for the MAC is over every letter."""
    labels = to_labels(IDENTITY)
    detail = json.loads(labels["clawbox.detail"])

    assert "image_digest" not in detail
    assert from_labels(labels).image_digest == ""


def test_labels_with_an_empty_digest_are_nobodys():
    """One value has one form."""
    labels = to_labels(IDENTITY)
    detail = json.loads(labels["clawbox.detail"]) | {"image_digest": ""}
    written = json.dumps(detail, sort_keys=True, separators=(",", ":"))

    with pytest.raises(ForeignLabelsError):
        from_labels(labels | {"clawbox.detail": written})


@pytest.mark.parametrize("identity", [IDENTITY, WITH])
def test_a_row_keeps_the_digest_and_one_from_before_is_read(identity):
    container = Container(identity=identity, status=Status())

    row = to_row(container)

    assert (b"image_digest" in row.document) == bool(identity.image_digest)
    assert from_row(row) == container
