"""What a credential is: a secret, where it may go, and how it is attached. Values; no input or output."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from clawbox.egress.http.headers import NEVER_SENT, canonical_name
from clawbox.egress.rules import CredentialScope
from clawbox.network_rules import NetworkRule, RuleError, canonical_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHORTEST: Final = 16
"""Characters of a secret: a shorter one can be guessed from what redaction shows (docs/security.md, 68)."""
LONGEST: Final = 8192
"""Characters of a secret; what servers take as one header line."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class InvalidCredentialError(ValueError):
    """A credential that cannot be: ``field`` says which part; the message never holds a value."""

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        super().__init__(f"{field}: {text}")


class Secret:
    """Text that shows itself only when asked: not in ``repr``, ``str``, formats, pickles or copies."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text. Whoever calls this answers for where it goes."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


@dataclass(frozen=True, slots=True)
class HeaderAttachment:
    """In a header: ``prefix`` and the secret."""

    name: str = "Authorization"
    prefix: str = "Bearer "


@dataclass(frozen=True, slots=True)
class BasicAttachment:
    """As the password of HTTP's Basic (RFC 7617)."""

    username: str


@dataclass(frozen=True, slots=True)
class QueryAttachment:
    """As a parameter of the query."""

    parameter: str


Attachment = HeaderAttachment | BasicAttachment | QueryAttachment


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a credential may be used in a window of time; None: as much as may be."""

    requests: int | None = None
    bytes: int | None = None
    """Both ways, heads and bodies."""
    window_seconds: int = 86_400


@dataclass(frozen=True, slots=True)
class Credential:
    """A named secret. Making one checks it; raises InvalidCredentialError."""

    name: str
    value: Secret
    hosts: tuple[str, ...]
    """Exact names, canonical."""
    attachment: Attachment = HeaderAttachment()
    ports: tuple[int, ...] = (443,)
    path_prefixes: tuple[str, ...] = ()
    """Empty: every path."""
    methods: tuple[str, ...] = ()
    """Empty: every method."""
    plain_http: bool = False
    """Goes over http, too: the operator says that what is between is trusted."""
    budget: Budget | None = None
    env: str | None = None
    """An environment variable that gets :attr:`placeholder`, in sandboxes that have an environment."""
    short: bool = False
    """The operator insisted on a secret of fewer than ``SHORTEST`` characters."""

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise InvalidCredentialError("name", "1 to 64 of A-Z a-z 0-9 _ . -")
        _check_value(self.value.reveal(), short=self.short)
        if not self.hosts:
            raise InvalidCredentialError("host", "at least one is needed")
        for host in self.hosts:
            _check_host(host)
        try:
            rule = NetworkRule.parse(
                {
                    "host": self.hosts[0],
                    "ports": list(self.ports),
                    "methods": list(self.methods),
                    "path_prefixes": list(self.path_prefixes),
                }
            )
        except RuleError as error:
            part, text = error.problems[0]
            raise InvalidCredentialError(part, text) from None
        # In the form that requests are compared in.
        for part in ("ports", "methods", "path_prefixes"):
            object.__setattr__(self, part, getattr(rule, part))
        _check_attachment(self.attachment)
        if self.env is not None and _ENV.fullmatch(self.env) is None:
            raise InvalidCredentialError("env", "not the name of an environment variable")
        for limit in () if self.budget is None else (*_limits(self.budget), self.budget.window_seconds):
            if limit < 1:
                raise InvalidCredentialError("budget", "a limit is a whole number, at least 1")

    @property
    def scope(self) -> CredentialScope:
        """The requests that it may be attached to."""
        return CredentialScope(self.hosts, self.ports, self.methods, self.path_prefixes, self.plain_http)

    @property
    def placeholder(self) -> str:
        """What the sandbox sees in its place: for SDKs that insist on a key."""
        return f"placeholder-for-{self.name}"


@dataclass(frozen=True, slots=True)
class SandboxSecrets:
    """What one sandbox's sidecar knows: the credentials of its grant, and nothing of any other."""

    credentials: Mapping[str, Credential] = field(default_factory=dict)
    """By name."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Names of the grant without a usable credential, and why. What needs one fails (docs/security.md, 42)"""
    retired: tuple[tuple[str, str], ...] = ()
    """(name, value) of what was rotated or removed: not attached any more, but still a secret (76)."""

    def known(self) -> Iterator[tuple[str, str]]:
        """(name, value) of everything that must not show: for the leak detector."""
        for name, credential in self.credentials.items():
            yield name, credential.value.reveal()
        yield from self.retired

    def after(self, earlier: SandboxSecrets) -> SandboxSecrets:
        """These, with every value that ``earlier`` knew and these do not among the retired.

        So that a keeper that was started anew, and knows of no rotation, makes no sidecar forget one.
        """
        current = set(self.known())
        forgotten = [pair for pair in dict.fromkeys(earlier.known()) if pair not in current]
        return SandboxSecrets(self.credentials, self.broken, (*self.retired, *forgotten))

    def __repr__(self) -> str:
        """Nothing of what it holds, not even names."""
        return "SandboxSecrets(…)"


def _limits(budget: Budget) -> list[int]:
    return [limit for limit in (budget.requests, budget.bytes) if limit is not None]


def _check_value(text: str, *, short: bool) -> None:
    if not text:
        raise InvalidCredentialError("value", "is empty")
    if _CONTROL.search(text):
        raise InvalidCredentialError("value", "has a line end or another control character")
    if text != text.strip():
        raise InvalidCredentialError("value", "begins or ends with a blank")
    if len(text) > LONGEST:
        raise InvalidCredentialError("value", f"is longer than {LONGEST} characters")
    if len(text) < SHORTEST and not short:
        raise InvalidCredentialError("value", f"is shorter than {SHORTEST} characters, and so can be guessed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidCredentialError("value", "is not Unicode text") from None


def _check_host(host: str) -> None:
    try:
        good = canonical_host(host) == host
    except RuleError as error:
        raise InvalidCredentialError("host", error.problems[0][1]) from None
    if not good:
        raise InvalidCredentialError("host", "is not in its canonical form (lower case, no final dot)")


def _check_attachment(attachment: Attachment) -> None:
    match attachment:
        case HeaderAttachment(name, prefix):
            if _TOKEN.fullmatch(name) is None or canonical_name(name.encode()) in NEVER_SENT:
                raise InvalidCredentialError("header", "not the name of a header that requests carry")
            if _CONTROL.search(prefix) or not prefix.isascii() or prefix != prefix.lstrip():
                raise InvalidCredentialError("prefix", "printable ASCII, without a blank first")
        case BasicAttachment(username):
            if ":" in username or _CONTROL.search(username):
                raise InvalidCredentialError("basic", "a user name has no colon and no control character")
        case QueryAttachment(parameter):
            if _TOKEN.fullmatch(parameter) is None:
                raise InvalidCredentialError("query", "not a plain parameter name")
