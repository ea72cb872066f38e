"""What an image is called, and which images callers may name. Pure decisions, no I/O.

A reference is read once, by the grammar of github.com/distribution/reference, into one canonical form. The
allowlist decides over that form and the engine is asked for that form, so that both mean the same image:
``alpine``, ``library/alpine`` and ``docker.io/library/alpine`` are one repository. What the engine would read
in more than one way (a first part in upper case, 64 hexadecimal digits) is no reference here.

A name says nothing lasting: whoever can tag images chooses what it stands for. So it is resolved once, to an
image id, and the id is what a container is made from (docs/security.md, 89).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.errors import ClawboxError, Reason, invalid_field

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_REGISTRY: Final = "docker.io"
"""Of a name that begins with no registry."""
DEFAULT_TAG: Final = "latest"
_OFFICIAL: Final = "library"  # where docker.io keeps names of one part
_LEGACY_REGISTRY: Final = "index.docker.io"  # what docker.io was called
_MAX_NAME: Final = 255
_MAX_REFERENCE: Final = 512

_HOST: Final = (
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:]+\])"
    r"(?::[1-9][0-9]{0,4})?"
)
_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REGISTRY: Final = re.compile(_HOST)
_PATH: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image as somebody names it, in its one canonical form. Made by :meth:`parse`."""

    registry: str
    """Host, with its port where that was named; lower case."""
    path: str
    tag: str | None = None
    digest: str | None = None
    """``sha256:`` and 64 hexadecimal digits. The engine then takes that content, whatever the tag says."""

    @classmethod
    def parse(cls, text: str, *, field: str = "image") -> Reference:
        """Read ``[registry/]path[:tag][@digest]``; without tag and digest it is ``:latest``.

        Raises INVALID_FIELD for ``field``.
        """
        try:
            return _parse(text)
        except ValueError as error:
            raise invalid_field(field, f"{_shown(text)} {error}", "image reference") from None

    @property
    def name(self) -> str:
        """The repository: registry and path, without tag and digest."""
        return f"{self.registry}/{self.path}"

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.name}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class ImageAllowlist:
    """Which images callers may name: ``images.allowed``. Made by :meth:`parse`."""

    names: frozenset[str] = frozenset()
    """Repositories in canonical form, each with all its tags and digests."""
    prefixes: tuple[str, ...] = ()
    """Canonical too; each ends with ``/``."""
    require_digest: bool = False
    """Whether a reference must say which content it means."""

    @classmethod
    def parse(cls, entries: Iterable[str], *, require_digest: bool = False) -> ImageAllowlist:
        """Read the settings: an exact repository (``alpine``), or a prefix that ends with ``/``.

        Raises ValueError that names every entry that is neither.
        """
        names: set[str] = set()
        prefixes: list[str] = []
        problems: list[str] = []
        for entry in entries:
            try:
                if entry.endswith("/"):
                    prefixes.append(_parse_prefix(entry))
                else:
                    names.add(_parse_repository(entry))
            except ValueError as error:
                problems.append(f"{_shown(entry)} {error}")
        if problems:
            raise ValueError("; ".join(problems))
        return cls(frozenset(names), tuple(dict.fromkeys(prefixes)), require_digest)

    def allows(self, reference: Reference) -> bool:
        """Whether a repository is one of the list, or below one of its prefixes."""
        return reference.name in self.names or any(
            reference.name.startswith(prefix) for prefix in self.prefixes
        )

    def check(self, reference: Reference) -> None:
        """Raise IMAGE_NOT_ALLOWED for an image that callers may not name."""
        if not self.allows(reference):
            raise ClawboxError(
                Reason.IMAGE_NOT_ALLOWED, "the server does not allow the image {image}", image=reference
            )
        if self.require_digest and reference.digest is None:
            raise ClawboxError(
                Reason.IMAGE_NOT_ALLOWED,
                "the server allows images by digest alone, and {image} names none",
                image=reference,
            )


def image_id(text: str) -> str:
    """Check what the engine calls an image's id: ``sha256:`` and 64 hexadecimal digits. Raises ValueError."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"{_shown(text)} is not an image id")
    return text


def image_digest(reference: Reference, known: Iterable[str]) -> str:
    """What of a repository was taken: ``sha256:`` and 64 hexadecimal digits.

    ``known`` is ``repository@digest``, as the engine says of the image that the reference stands for. A
    reference that names a digest has that one. Empty: its repository is not among ``known``. One content that
    was pushed in several forms has several; then it is the first of them in order, so always the same.
    """
    if reference.digest is not None:
        return reference.digest
    digests: list[str] = []
    for text in known:
        try:
            one = _parse(text)
        except ValueError:  # "<none>@<none>", or a digest of another algorithm
            continue
        if one.digest is not None and one.name == reference.name:
            digests.append(one.digest)
    return min(digests, default="")


def _parse(text: str) -> Reference:
    if not text or len(text) > _MAX_REFERENCE:
        raise ValueError("is empty or too long")
    if _DIGEST.fullmatch(text):
        raise ValueError("is the id of an image, not a name")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError("has a digest that is not sha256: and 64 hexadecimal digits")
    # A colon behind the last slash begins a tag, one before it a port.
    slash = rest.rfind("/")
    last, colon, tag = rest[slash + 1 :].partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError("has a tag that is none")
    registry, path = _split(rest[: slash + 1] + last)
    return Reference(registry, path, tag if colon else None if at else DEFAULT_TAG, digest if at else None)


def _split(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        registry, path = first, rest
    else:
        registry, path = DEFAULT_REGISTRY, name
    if not _REGISTRY.fullmatch(registry):
        raise ValueError("has a registry that is no host in lower case")
    if not _PATH.fullmatch(path):
        raise ValueError("is not [registry/]path[:tag][@digest] in lower case")
    if registry == _LEGACY_REGISTRY:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in path:
        if _BARE_ID.fullmatch(path):
            raise ValueError("could be the id of an image")
        path = f"{_OFFICIAL}/{path}"
    if len(registry) + 1 + len(path) > _MAX_NAME:
        raise ValueError("has too long a name")
    return registry, path


def _parse_repository(entry: str) -> str:
    reference = _parse(entry)
    if "@" in entry or ":" in entry.rpartition("/")[2]:
        raise ValueError("names a tag or digest; a repository is allowed with all of them")
    return reference.name


def _parse_prefix(entry: str) -> str:
    host = entry[:-1]
    if "/" not in host and (host == "localhost" or "." in host or ":" in host):
        # All that a registry has: of docker.io, not only what has one part.
        registry, _ = _split(f"{host}/x/x")
        return f"{registry}/"
    registry, path = _split(f"{entry}x")
    return f"{registry}/{path.removesuffix('x')}"


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
