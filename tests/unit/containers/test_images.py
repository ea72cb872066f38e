"""Image references have one form, and the allowlist is about that form."""

import pytest

from clawbox.config.containers import ImagesSettings
from clawbox.containers.images import ImageAllowlist, Reference, image_id
from clawbox.errors import ClawboxError, Reason

DIGEST = "sha256:" + "0123456789abcdef" * 4
ALLOWED = ImageAllowlist.parse(["ghcr.io/n0xmare/", "alpine", "ubuntu", "debian", "clawbox/"])


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("library/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/alpine:3.20", "docker.io/library/alpine:3.20"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("clawbox/agent-base:latest", "docker.io/clawbox/agent-base:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine:3@{DIGEST}"),
        ("ghcr.io/n0xmare/clawbox-agent", "ghcr.io/n0xmare/clawbox-agent:latest"),
        ("alpine:5000/x", "alpine:5000/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/a/b/c:T_1.x-", "localhost:5000/a/b/c:T_1.x-"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("a.b/c__d/e.f-g---h", "a.b/c__d/e.f-g---h:latest"),
        ("deadbeef", "docker.io/library/deadbeef:latest"),
    ],
)
def test_a_reference_has_one_form(text, canonical):
    assert str(Reference.parse(text)) == canonical
    assert str(Reference.parse(canonical)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        " alpine",
        "alpine\n",
        "alpine ",
        "alpine:",
        "alpine@",
        "alpine:a:b",
        "alpine@sha256:1234",
        "alpine@" + DIGEST.upper(),
        f"alpine@{DIGEST}@{DIGEST}",
        f"alpine@{DIGEST}:tag",
        "alpine:" + "t" * 129,
        "Alpine",
        "ALPINE",
        "alpinE:3",
        "GHCR.io/n0xmare/x",
        "Alpine/x",
        "аlpine",  # a Cyrillic letter
        "alpine\u200b",
        "alpine：3",
        "ghcr.io/n0xmare/",
        "ghcr.io//n0xmare/x",
        "ghcr.io/n0xmare/../evil",
        "ghcr.io/./n0xmare/x",
        "/alpine",
        "https://ghcr.io/n0xmare/x",
        "ghcr.io:/n0xmare/x",
        "ghcr.io:0443x/n0xmare/x",
        "user@ghcr.io/n0xmare/x",
        "-alpine",
        "alpine-",
        "al___pine",
        "a..b/x/",
        "a" * 300,
        "a" * 64,  # what the engine takes for an id
        DIGEST,
        "alpine\0",
        "%61lpine",
    ],
)
def test_what_is_no_reference_is_an_invalid_field(text):
    with pytest.raises(ClawboxError) as caught:
        Reference.parse(text)

    assert caught.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == ["image"]
    assert caught.value.message.isascii()


@pytest.mark.parametrize(
    "text",
    [
        "alpine",
        "alpine:3.20",
        f"alpine@{DIGEST}",
        f"alpine:3@{DIGEST}",
        "library/alpine",
        "docker.io/library/alpine",
        "index.docker.io/alpine",
        "ghcr.io/n0xmare/clawbox-agent",
        "ghcr.io/n0xmare/deep/er:1",
        "clawbox/agent-base",
        "docker.io/clawbox/agent-base",
    ],
)
def test_what_the_list_names_is_allowed(text):
    ALLOWED.check(Reference.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "alpineevil",
        "alpine-evil",
        "alpine.evil",
        "alpine/evil",
        "evil/alpine",
        "library/alpine/evil",
        "alpine:5000/x",
        "alpine:80/library/alpine",
        "alpine.example.com/alpine",
        "docker.io.example.com/library/alpine",
        "registry-1.docker.io/library/alpine",
        "docker.io:443/library/alpine",
        "localhost/alpine",
        "ghcr.io/n0xmare",
        "ghcr.io/n0xmareevil/x",
        "ghcr.io/n0xmare-x/x",
        "ghcr.io:443/n0xmare/x",
        "ghcr.io/x/ghcr.io/n0xmare/x",
        "xghcr.io/n0xmare/x",
        "n0xmare/x",
        "clawbox",
        "clawboxevil/x",
        "example.com/clawbox/agent-base",
    ],
)
def test_rule_89_what_only_looks_allowed_is_not(text):
    reference = Reference.parse(text)
    with pytest.raises(ClawboxError) as caught:
        ALLOWED.check(reference)

    assert caught.value.reason is Reason.IMAGE_NOT_ALLOWED
    assert caught.value.metadata == {"image": str(reference)}


def test_an_empty_list_allows_nothing():
    assert not ImageAllowlist.parse([]).allows(Reference.parse("alpine"))


def test_a_prefix_may_be_all_of_a_registry():
    everything = ImageAllowlist.parse(["docker.io/", "localhost:5000/"])

    for text in ("alpine", "a/b", "localhost:5000/x"):
        everything.check(Reference.parse(text))
    assert not everything.allows(Reference.parse("localhost/x"))


@pytest.mark.parametrize(
    "entry", ["", "/", "alpine:3", f"alpine@{DIGEST}", "Alpine", "*", "ghcr.io/*", "a//", "ghcr.io/../"]
)
def test_an_entry_that_is_neither_a_repository_nor_a_prefix_is_said(entry):
    with pytest.raises(ValueError, match=r".") as caught:
        ImageAllowlist.parse(["alpine", entry, "-also-wrong"])

    assert ascii(entry) in str(caught.value)
    assert "'-also-wrong'" in str(caught.value)


def test_rule_89_an_operator_may_ask_for_digests():
    pinned = ImageAllowlist.parse(["alpine"], require_digest=True)

    pinned.check(Reference.parse(f"alpine:3@{DIGEST}"))
    with pytest.raises(ClawboxError) as caught:
        pinned.check(Reference.parse("alpine:3"))
    assert caught.value.reason is Reason.IMAGE_NOT_ALLOWED


def test_the_settings_that_ship_can_be_read_and_allow_their_own_default():
    settings = ImagesSettings()

    ImageAllowlist.parse(settings.allowed).check(Reference.parse(settings.default))


def test_an_image_id_is_checked():
    assert image_id(DIGEST) == DIGEST
    for text in ("alpine", DIGEST + "0", DIGEST.upper(), DIGEST + "\n"):
        with pytest.raises(ValueError, match="not an image id"):
            image_id(text)
