"""Who may make a call: decided from its metadata alone, before any of its messages is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from clawbox.errors import ClawboxError, Reason
from clawbox.rpc.call import peer_address
from clawbox.rpc.limits import RefusedTokens
from clawbox.rpc.methods import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clawbox.auth import Principal
    from clawbox.rpc.call import Call


class Authenticator(Protocol):
    """What knows the tokens: :class:`clawbox.auth.TokenTable`."""

    def authenticate(self, authorization: str | None) -> Principal:
        """Who presents ``authorization``; raises TOKEN_MISSING or TOKEN_INVALID."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that was not let in."""

    reason: Reason
    """TOKEN_MISSING, TOKEN_INVALID, RATE_LIMIT or SCOPE_MISSING."""
    method: str
    address: str
    """Whose: see :func:`clawbox.rpc.call.peer_address`."""
    request_id: str
    principal: str
    """Whose token lacks the scope; empty when the token is not known."""


class AccessControl:
    """Lets a call in, or raises why not."""

    def __init__(
        self,
        tokens: Authenticator,
        *,
        refused: RefusedTokens | None = None,
        on_refusal: Callable[[Refusal], None],
    ) -> None:
        self._tokens = tokens
        self._refused = refused if refused is not None else RefusedTokens()
        self._on_refusal = on_refusal

    def admit(self, call: Call, authorization: Sequence[str]) -> None:
        """Set the call's principal. ``authorization`` are all values of that metadata key.

        Raises TOKEN_MISSING, TOKEN_INVALID, RATE_LIMIT or SCOPE_MISSING. A valid token never meets the rate
        limit.
        """
        if call.method.access is Access.PUBLIC:
            return
        try:
            call.principal = self._authenticate(call, authorization)
            if call.method.access is Access.SCOPES:
                _check_scopes(call)
        except ClawboxError as error:
            principal = call.known_principal
            self._on_refusal(
                Refusal(
                    error.reason,
                    call.name,
                    peer_address(call.peer),
                    call.request_id,
                    principal.name if principal is not None else "",
                )
            )
            raise

    def _authenticate(self, call: Call, authorization: Sequence[str]) -> Principal:
        try:
            return self._tokens.authenticate(_only(authorization))
        except ClawboxError as error:
            if error.reason is Reason.TOKEN_INVALID:
                self._refused.refuse(peer_address(call.peer))
            raise


def _only(authorization: Sequence[str]) -> str | None:
    if len(authorization) > 1:
        # Which of them a proxy in front checked is anybody's guess.
        raise ClawboxError(Reason.TOKEN_INVALID, "there is more than one authorization")
    return authorization[0] if authorization else None


def _check_scopes(call: Call) -> None:
    principal = call.principal
    if not any(principal.allows(scope) for scope in call.method.scopes):
        raise ClawboxError(
            Reason.SCOPE_MISSING,
            "the token of {principal} lacks the scope {scope}, which {method} needs",
            principal=principal.name,
            scope=" or ".join(call.method.scopes),
            method=call.name,
        )
