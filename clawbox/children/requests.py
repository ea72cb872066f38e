"""What control asks of a forkserver and what it answers.

One msgpack message in each packet of a SOCK_SEQPACKET pair, descriptors beside it. The forkserver is trusted,
but types are declared here as everywhere.
"""

from __future__ import annotations

import msgspec

from clawbox.children.kind import ForkServerStatus  # noqa: TC001 - msgspec reads the types

MAX_PACKET_BYTES = 128 << 10


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Make something available to children of a kind that are forked from now on."""

    id: int
    kind: str
    key: str
    spec: bytes


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Fork a child; its ends of the channel and of the socket for descriptors come with the packet."""

    id: int
    kind: str
    uid: int | None
    data_bytes: int | None
    """In place of what its kind's profile says."""
    gid: int | None = None
    """None: the same number as ``uid``."""
    placed: bool = False
    """Whether a third descriptor comes with the packet: the folder that becomes its root."""


Request = Load | Fork


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Everything is imported; children of every kind can be forked."""

    status: ForkServerStatus


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The answer to Load. ``loaded`` is everything that children of that kind will have from now on."""

    id: int
    kind: str
    loaded: tuple[str, ...]
    error: str | None = None


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """The answer to Fork; the child's pidfd comes with the packet unless there is an error."""

    id: int
    pid: int = 0
    error: str | None = None


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """A child ended and was reaped. ``status`` is its exit code, or minus the signal that killed it."""

    pid: int
    kind: str
    status: int


Reply = Hello | Loaded | Forked | Exited
