"""What control and the keeper say to each other, in frames of :mod:`clawbox.children.channel`.

Descriptors come beside the channel, each with a :class:`clawbox.egress.messages.Handed`: ``key`` and
``identity`` once, ``sidecar`` with the number of a :class:`HandOut`. No message has a value of a credential
in it, nor a key.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

MAX_STORE_BYTES: Final = 5 << 20
"""Largest frame that the keeper accepts of control: a credential file at its largest."""
MAX_REPLY_BYTES: Final = 8 << 20
"""Largest frame that control accepts of the keeper: names of credentials, and what is wrong with each."""
MAX_NAMES: Final = 1024
MAX_LABELS_CHARACTERS: Final = 1 << 20
"""Most of a container's labels, in their one form as JSON, that a MAC is made over."""

Name = Annotated[str, msgspec.Meta(max_length=128)]
Why = Annotated[str, msgspec.Meta(max_length=4096)]
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=1 << 17)]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


# Control to keeper ----------------------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """The first message. An ``identity`` descriptor comes, and a ``key`` unless there is none."""

    no_key: Why = ""
    """Why there is no master key; empty: there is one."""


class Store(msgspec.Struct, frozen=True, tag="store"):
    """The credential file, from now on."""

    data: bytes | None
    """As it is on disk, encrypted; None: there is no file, so there are no credentials."""
    fault: Why = ""
    """Why the file must not be used; then there is no ``data``."""


class HandOut(msgspec.Struct, frozen=True, tag="hand_out"):
    """Send the sidecar at the descriptor of that number what its sandbox may know, now and after changes."""

    number: int
    sandbox: Name
    owner: Name
    credentials: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_NAMES)]
    """Those of its grant, by name: nothing else is ever sent there (docs/security.md, 44)."""


class Dismiss(msgspec.Struct, frozen=True, tag="dismiss"):
    """That sidecar gets nothing any more."""

    number: int


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """The sandbox's retention ended: what it had need not be known any more (docs/security.md, 76)."""

    sandbox: Name


class SignHead(msgspec.Struct, frozen=True, tag="sign"):
    """Sign the head of the audit log."""

    sequence: int
    hash: Hash


class AuthenticateLabels(msgspec.Struct, frozen=True, tag="labels"):
    """Make a MAC over the labels of a container (docs/security.md, 83)."""

    text: Annotated[str, msgspec.Meta(max_length=MAX_LABELS_CHARACTERS)]


ToKeeper = Begin | Store | HandOut | Dismiss | Forget | SignHead | AuthenticateLabels


# Keeper to control ----------------------------------------------------------------------------------------


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """Confined, and has its keys."""

    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """Ed25519: what audit heads are signed with."""
    fault: Why
    """Why credentials cannot be decrypted; empty: they can."""


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """The answer to Store."""

    names: Names
    """Of usable credentials."""
    broken: dict[Name, Why]
    """Of the others, and why."""
    fault: Why
    """Why there are none at all; empty: the file could be read."""


class HandedOut(msgspec.Struct, frozen=True, tag="handed_out"):
    """The sidecar was sent its secrets: once for a HandOut, and again for each change."""

    number: int
    credentials: Names
    """Those that it has now."""
    missing: dict[Name, Why]
    """Those of its grant that it has not, and why."""


GONE: Final = "it is gone"
"""The reason of one that ended, as they all do."""


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """A sidecar gets nothing any more, although nobody dismissed it."""

    number: int
    why: Why


class SignedHead(msgspec.Struct, frozen=True, tag="signed"):
    """The answer to SignHead; answers come in the order of the questions."""

    sequence: int
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class AuthenticatedLabels(msgspec.Struct, frozen=True, tag="labels_mac"):
    """The answer to AuthenticateLabels; answers come in the order of the questions."""

    mac: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


FromKeeper = Begun | Stored | HandedOut | Closed | SignedHead | AuthenticatedLabels
