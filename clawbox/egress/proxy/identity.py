"""Whose request it is: the token that came with it (property 43)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.egress.refusal import Denial, RefusedError

if TYPE_CHECKING:
    from clawbox.egress.http.headers import Headers
    from clawbox.egress.proxy.state import SandboxState

_BEARER: Final = re.compile(rb"(?i)bearer[ \t]+([!-~]{1,512})")
_BASIC: Final = re.compile(rb"(?i)basic[ \t]+([A-Za-z0-9+/=_-]{1,1024})")


class Identity(msgspec.Struct, frozen=True):
    """Whose request it is."""

    token: bytes = b""
    """Digest of the token; empty where none came and none was needed."""
    call: str = ""
    in_authorization: bool = False
    """The token was in Authorization, which is then the sidecar's and goes nowhere."""


def identify(headers: Headers, state: SandboxState, *, required: bool, for_sidecar: bool) -> Identity:
    """The sender of a request. Raises RefusedError without a good token.

    It is in Proxy-Authorization, as Bearer or as the password of Basic, whatever the user name; where
    Authorization is ``for_sidecar``, it may be there. Where none is ``required``, a wrong one is refused all
    the same.
    """
    values = headers.values(b"proxy-authorization")
    in_authorization = for_sidecar and not values
    if in_authorization:
        values = headers.values(b"authorization")
    if not values:
        if required:
            raise RefusedError(Denial.TOKEN_MISSING)
        return Identity()
    if len(values) > 1:
        raise RefusedError(Denial.TOKEN_INVALID)
    return Identity(*state.call_of(_token(values[0])), in_authorization)


def _token(value: bytes) -> bytes:
    if bearer := _BEARER.fullmatch(value):
        return bearer[1]
    if basic := _BASIC.fullmatch(value):
        try:
            return base64.b64decode(basic[1], validate=True).partition(b":")[2]
        except binascii.Error:
            pass
    raise RefusedError(Denial.TOKEN_INVALID)
