"""What ``POST /proxy`` says when it refuses: the texts and the three statuses of the Rust clawbox 0.1.

Programs match on those texts, so every refusal gets the one that fits it best, with our sentence behind it
where the original's text says less. Nothing that the upstream sent is in any of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.egress.refusal import Denial, Side

if TYPE_CHECKING:
    from clawbox.egress.refusal import Refusal

_BLOCKED: Final = frozenset({Denial.NO_RULES, Denial.HOST_NOT_ALLOWED})
_BLOCKED_IN_PART: Final = frozenset(
    {Denial.PORT_NOT_ALLOWED, Denial.METHOD_NOT_ALLOWED, Denial.PATH_NOT_ALLOWED}
)
_INVALID: Final = frozenset(
    {
        Denial.MALFORMED_TARGET,
        Denial.USERINFO,
        Denial.SCHEME,
        Denial.BAD_HOST,
        Denial.BAD_PORT,
        Denial.BAD_PATH,
        # The Rust clawbox resolved while it validated.
        Denial.NO_ADDRESS,
        Denial.DNS_FAILED,
        Denial.DNS_TIMEOUT,
    }
)
_LIMITED: Final = frozenset(
    {Denial.RATE_LIMITED, Denial.TOO_MANY_REQUESTS, Denial.TOO_MANY_TUNNELS, Denial.BUDGET_SPENT}
)
_UNAUTHORIZED: Final = frozenset({Denial.TOKEN_MISSING, Denial.TOKEN_INVALID})


def call_error_text(refusal: Refusal, url: str) -> str:
    """The ``error`` member; ``url`` is the one asked for, as it came."""
    denial = refusal.denial
    if refusal.side is Side.UPSTREAM:
        return f"HTTP error: {refusal.message}"
    if denial in _BLOCKED:
        return f"URL blocked by allowlist: {url}"
    if denial in _BLOCKED_IN_PART:
        return f"URL blocked by allowlist: {url} ({denial.meaning})"
    if denial is Denial.ADDRESS_REFUSED:
        return f"request to private/internal IP blocked: {refusal.detail or url}"
    if denial in _INVALID:
        return f"invalid URL: {refusal.message}"
    if denial is Denial.LEAK:
        return "credential leak detected in outbound request"
    if denial in _LIMITED:
        return f"rate limited: {refusal.message}"
    if denial in _UNAUTHORIZED:
        return "unauthorized"
    if denial is Denial.MALFORMED_CALL:
        return refusal.message
    return f"HTTP error: {refusal.message}"


def call_error_status(refusal: Refusal) -> int:
    """The HTTP status: 401 without a good token, 400 for what is not the JSON that it takes, else 403."""
    if refusal.side is Side.CLIENT:
        if refusal.denial in _UNAUTHORIZED:
            return 401
        if refusal.denial is Denial.MALFORMED_CALL:
            return 400
    return 403


def call_error_body(refusal: Refusal, url: str) -> bytes:
    """The JSON body: the text, and beside it the reason that programs need not parse (property 60)."""
    return msgspec.json.encode({"error": call_error_text(refusal, url), "reason": refusal.code})
