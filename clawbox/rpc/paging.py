"""Page tokens: opaque to clients, worthless to forge, since they hold a position and no right."""

from __future__ import annotations

import base64
import binascii

import msgspec

from clawbox.errors import ClawboxError, Reason, invalid_field

MAX_TOKEN = 1024
"""Characters of a page token; ours are shorter."""
MAX_PAGE = 1000
DEFAULT_PAGE = 100


class _Position(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    method: str
    query: str
    after: str


def page_size(asked: int) -> int:
    """How many entries a page has; 0 asks for the default. Raises INVALID_FIELD."""
    if asked > MAX_PAGE:
        raise invalid_field("page_size", f"must be at most {MAX_PAGE}", "maximum")
    return asked or DEFAULT_PAGE


def page_token(method: str, query: str, after: str) -> str:
    """The token of the page of ``method`` that begins after ``after``; ``query`` is what was asked for."""
    raw = msgspec.json.encode(_Position(method, query, after))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def page_start(token: str, method: str, query: str) -> str:
    """The ``after`` of a token; the empty one is the first page's. Raises INVALID_PAGE_TOKEN."""
    if not token:
        return ""
    if len(token) <= MAX_TOKEN and token.isascii():
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            position = msgspec.json.decode(raw, type=_Position)
        except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, ValueError):
            pass
        else:
            if (position.method, position.query) == (method, query):
                return position.after
    raise ClawboxError(
        Reason.INVALID_PAGE_TOKEN,
        "the page token is not one that {method} returned for this request",
        method=method,
    )
