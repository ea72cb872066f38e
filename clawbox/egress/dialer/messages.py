"""What control and the dialer tell each other. What sidecars say to it is in clawbox.egress.messages."""

from __future__ import annotations

import enum

import msgspec

from clawbox.egress.messages import Grant, Limits  # noqa: TC001 - msgspec reads the types

MAX_FRAME_BYTES = 64 << 10
"""Largest frame that control accepts of the dialer."""


def dials_at_once(limits: Limits) -> int:
    """How many dials of one sandbox may be under way; a sidecar that asks for more is closed."""
    return limits.max_concurrent + limits.max_tunnels


class AddressPolicySpec(msgspec.Struct, frozen=True, tag="addresses"):
    """Which addresses are refused or trusted, from now on; nothing is dialled before the first of these.

    This machine's own addresses are not here: the dialer asks the kernel, each time.
    """

    trusted: tuple[str, ...] = ()
    """Networks: ``egress.trusted_networks``."""
    denied: tuple[str, ...] = ()
    """Networks: ``egress.deny_addresses``."""
    listeners: tuple[tuple[str, int], ...] = ()
    """Address and port of every listener of this program; ``0.0.0.0`` and ``::`` stand for all."""


class Enrol(msgspec.Struct, frozen=True, tag="enrol"):
    """The peer whose socket comes as ``Handed("sidecar", number)`` may reach what the grant says.

    A number is used once. The two may come in either order.
    """

    number: int
    grant: Grant


class Dismiss(msgspec.Struct, frozen=True, tag="dismiss"):
    """Close the peer, and all that is under way for it."""

    number: int


ToDialer = AddressPolicySpec | Enrol | Dismiss


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Confined and listening; the first message."""


class Why(enum.Enum):
    """Why a peer is served no longer."""

    GONE = "gone"
    """It closed its end, or died."""
    FLOODED = "flooded"
    """It asked for more at once than :func:`dials_at_once`."""
    MALFORMED = "malformed"
    """It sent what is no message, or a message that makes no sense."""
    STALLED = "stalled"
    """It did not read its answers."""


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """A peer that was not dismissed is served no longer: control ends a sidecar that broke the protocol."""

    number: int
    why: Why


FromDialer = Ready | Closed
