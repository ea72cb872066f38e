"""The form of ``POST /proxy`` in which nothing is lost, which workers speak; the sidecar answers both.

The other is that of the Rust clawbox 0.1: its bodies are text, its headers an object. ``"binary": true`` asks
for this one. ``http_request`` of a tool has the members of both (docs/tool-abi.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_REQUEST_BYTES: Final = 10 << 20
"""Of the JSON of one request."""
_MAX_REPLY_HEAD_BYTES: Final = 1 << 20  # an upstream's head at its largest, every byte of it escaped

Status = Annotated[int, msgspec.Meta(ge=100, le=999)]


class CallRequest(msgspec.Struct, frozen=True):
    """One request that a sandbox wants sent."""

    url: str
    method: str
    headers: list[tuple[str, str]]
    """In their order, and with names that occur more than once."""
    body_base64: bytes | None
    """Base64 (RFC 4648 section 4) in the JSON, bytes here; None sends no body."""
    binary: bool
    """Answer with a :class:`BinaryReply`."""

    def __repr__(self) -> str:
        """Nothing that may be a secret."""
        return f"CallRequest({self.method[:16]!r})"


class BinaryReply(msgspec.Struct, frozen=True):
    """An answer of which nothing is lost."""

    status: Status
    header_list: list[tuple[str, str]]
    """In their order."""
    body_base64: bytes

    def __repr__(self) -> str:
        """Nothing that may be a secret."""
        return f"BinaryReply({self.status})"


def joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers as an object: the values of a name that occurs more than once are one list (RFC 9110 5.3).

    Set-Cookie is none, and keeps its lines apart.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        joint = "\n" if name == "set-cookie" else ", "
        found[name] = f"{found[name]}{joint}{value}" if name in found else value
    return found


def largest_reply(max_body_bytes: int) -> int:
    """The most bytes of JSON that a :class:`BinaryReply` with such a body can have."""
    return _MAX_REPLY_HEAD_BYTES + 4 * -(-max_body_bytes // 3)
