"""Attaching a credential to a request, after the client's own authentication was taken out. Pure.

The order is the sidecar's: decide, :func:`strip_client_auth`, scan for leaks, :func:`attach`, send.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_plus

import msgspec
from msgspec import structs

from clawbox.egress.credentials import BasicAttachment, Credential, HeaderAttachment, QueryAttachment
from clawbox.egress.http.headers import Field, canonical_name
from clawbox.egress.refusal import Denial, RefusedError
from clawbox.egress.rules import may_attach

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clawbox.egress.credentials import SandboxSecrets
    from clawbox.egress.target import Target

_MAX_DECODINGS: Final = 10
# Names that carry who the client is, as services document them; `idempotency-key` and `if-match` do not.
_AUTH_WORDS: Final = (
    r"api-?keys?|api-?token|app-?key|application-?key|access-?keys?|access-?token|auth|auth-?key|auth-?token"
    r"|authentication|authorization|bearer|bearer-?token|client-?secret|credentials?|deploy-?token|functions-key"
    r"|job-?token|oauth-?token|password|private-?token|rapidapi-key|refresh-?token|secret|secret-?key"
    r"|security-?token|session|session-?id|session-?token|subscription-(?:key|token)|user-?token|vault-?token"
)
_AUTH_HEADER: Final = re.compile(rf"cookie2?|sid|token|(?:.*-)?(?:{_AUTH_WORDS}|gitlab-token|figma-token)")
_AUTH_PARAMETER: Final = re.compile(
    rf"(?:.*-)?(?:{_AUTH_WORDS})|key|token|sid|sig|signature|awsaccesskeyid|googleaccessid"
    r"|x-(?:amz|goog)-(?:algorithm|credential|signature|security-token)"
)


class NotAttachableError(Exception):
    """The credential is not for this request, which must not go out as if it were (properties 38, 42)."""


class Stripped(msgspec.Struct, frozen=True):
    """A request without authentication of the client's own."""

    target: Target
    headers: tuple[Field, ...]
    removed: tuple[str, ...]
    """Names of headers and parameters: for the audit row."""


class Attached(msgspec.Struct, frozen=True):
    """A request that holds a secret: goes upstream, and nowhere else."""

    target: Target
    headers: tuple[Field, ...]

    def __repr__(self) -> str:
        """Nothing of the request: the query may be the secret."""
        return "Attached(…)"


def choose_credential(
    granted: Iterable[str], secrets: SandboxSecrets, target: Target, method: str
) -> Credential | None:
    """What is to be attached to a request, or None. The last of ``granted`` that fits wins, as in 0.1.

    Raises RefusedError where one should be and cannot: no request goes out without (property 42). Where a
    credential is broken it is not known which hosts it is for, so all that none other fits are refused.
    """
    found, broken = None, None
    for name in granted:
        credential = secrets.credentials.get(name)
        if credential is None:
            broken = broken or name
        elif may_attach(credential.scope, target, method):
            found = credential
    if found is None and broken is not None:
        raise RefusedError(
            Denial.CREDENTIAL_UNAVAILABLE, f"{broken}: {secrets.broken.get(broken, 'unknown')}"
        )
    return found


def credentials_of(granted: Iterable[str], secrets: SandboxSecrets, host: str) -> tuple[Credential, ...]:
    """Those of ``granted`` that are for a host, whichever of its ports, paths and methods they are for."""
    held = (secrets.credentials.get(name) for name in granted)
    return tuple(one for one in held if one is not None and host in one.scope.hosts)


def strip_client_auth(credential: Credential, target: Target, headers: Iterable[Field]) -> Stripped:
    """The request without any way in which the client could say who it is (properties 39, 69, 70).

    Else an attacker's own account at an allowed host is a way out. Gone are Authorization, Cookie, headers
    and parameters named like keys and tokens, and every spelling of the one that the credential uses.
    """
    own_header, own_parameter = _own_names(credential)
    kept, removed = [], []
    for name, value in headers:
        plain = canonical_name(name)
        if plain == own_header or _AUTH_HEADER.fullmatch(plain.decode("latin-1")):
            removed.append(name.decode("latin-1"))
        else:
            kept.append((name, value))
    query = target.query
    if query:
        parts, gone = [], []
        for part in re.split(r"[&;]", query):
            parameter = _parameter_name(part)
            if parameter == own_parameter or _AUTH_PARAMETER.fullmatch(parameter):
                gone.append(parameter)
            else:
                parts.append(part)
        # As it came unless something goes: `;` may be data.
        if gone:
            query = "&".join(parts)
            removed += gone
    return Stripped(structs.replace(target, query=query), tuple(kept), tuple(removed))


def attach(credential: Credential, method: str, target: Target, headers: Iterable[Field]) -> Attached:
    """The request with the secret in it. ``headers`` are those of :func:`strip_client_auth`.

    Raises NotAttachableError when the credential is not for the request.
    """
    if not may_attach(credential.scope, target, method):
        raise NotAttachableError(f"the credential {credential.name} is not for this request")
    stripped = strip_client_auth(credential, target, headers)
    secret = credential.value.reveal()
    match credential.attachment:
        case HeaderAttachment(name, prefix):
            own = (name.encode(), f"{prefix}{secret}".encode())
        case BasicAttachment(username):
            own = (b"Authorization", b"Basic " + base64.b64encode(f"{username}:{secret}".encode()))
        case QueryAttachment(parameter):
            pair = f"{parameter}={quote(secret, safe='')}"
            query = f"{stripped.target.query}&{pair}" if stripped.target.query else pair
            return Attached(structs.replace(stripped.target, query=query), stripped.headers)
    return Attached(stripped.target, (*stripped.headers, own))


def _own_names(credential: Credential) -> tuple[bytes, str | None]:
    match credential.attachment:
        case HeaderAttachment(name, _):
            return canonical_name(name.encode()), None
        case BasicAttachment():
            return b"authorization", None
        case QueryAttachment(parameter):
            return b"authorization", _parameter_name(parameter)


def _parameter_name(part: str) -> str:
    """A parameter's name as the laxest server reads it: decoded, without an index, ``_ . blank`` as ``-``."""
    name = part.partition("=")[0]
    for _ in range(_MAX_DECODINGS):
        decoded = unquote_plus(name).partition("=")[0]
        if decoded == name:
            break
        name = decoded
    return re.sub(r"[\s_.]", "-", name.partition("[")[0].strip().lower())
