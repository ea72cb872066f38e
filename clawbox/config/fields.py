"""The types of settings: what a value may be, and how it is read.

Each type carries an :class:`Accepts`, the words with which an error and the reference say what is accepted.
Numbers and booleans are strict: ``port = "9800"`` in a file is an error (the environment, which has only
text, is converted before it gets here).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from clawbox.network_rules import NetworkRule, RuleError

if TYPE_CHECKING:
    from collections.abc import Sequence

Scope = Literal[
    "sandbox:read",
    "sandbox:execute",
    "sandbox:write",
    "containers:read",
    "containers:write",
    "agents:read",
    "agents:write",
    "system:read",
    "audit:read",
    "*",
]
"""What a token may do; ``*`` is the administrator's, and includes the others."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

_RULE_WORDS = (
    'a host such as "api.example.com" or "*.example.com", or a table with host and any of ports, methods, '
    "path_prefixes, tls_mode, on_shape"
)

_LARGEST = 2**53
"""Far above any sensible setting, and exact in every language's numbers."""

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*", re.ASCII)


class Settings(BaseModel):
    """What all sections share: frozen, no unknown keys, defaults checked like values."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


@dataclass(frozen=True, slots=True)
class Accepts:
    """What a setting accepts, to be read after "accepted: "."""

    text: str


@dataclass(frozen=True, slots=True)
class Masked:
    """Marks a setting whose value is never printed, although its type is not ``SecretStr``."""


def _expand(path: Path, info: ValidationInfo) -> Path:
    """Make a path absolute: ``~`` is a home folder, the rest is relative to the folder of the settings file.

    The folder comes as ``context["folder"]``; a section that code makes itself takes the working directory.
    """
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError("the home folder of ~ is not known") from None
    if "\0" in str(path):
        raise ValueError("a path holds no NUL")
    folder = info.context.get("folder") if isinstance(info.context, dict) else None
    return (folder / path if folder is not None else path).absolute()


def _nothing(value: object) -> object:
    """TOML has no null: the empty string says "none"."""
    return None if value == "" else value


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("a path is not empty")
    return value


def _is_token(value: SecretStr) -> SecretStr:
    if not is_token(value.get_secret_value()):
        raise ValueError("not a bearer token")
    return value


def _is_network(value: str) -> str:
    ipaddress.ip_network(value)
    return value


def _rule(value: object) -> NetworkRule:
    """A bare ``*`` is accepted: whoever writes the settings is the operator, and has opted in by name."""
    try:
        return NetworkRule.parse(value, any_host=True)
    except RuleError as error:
        raise refuse(
            [Fault(part, f"a fault: {text}", _RULE_WORDS) for part, text in error.problems]
        ) from None


class Fault(NamedTuple):
    """What is wrong with a value, by a rule of our own. Keys are relative to the model that has the rule."""

    key: str
    found: str
    accepted: str
    reads: tuple[str, ...] = ()
    """The other keys that the rule looks at: when one of those is wrong itself, the rule says nothing."""


def refuse(faults: Sequence[Fault]) -> PydanticCustomError:
    """The error that a model's rule raises."""
    text = "; ".join(f"{fault.key}: found {fault.found}; accepted: {fault.accepted}" for fault in faults)
    return PydanticCustomError("clawbox_rule", "{text}", {"text": text, "faults": tuple(faults)})


def is_token(text: str) -> bool:
    """Whether a bearer token can have this form: the ``b64token`` of RFC 6750, section 2.1."""
    return _TOKEN.fullmatch(text) is not None


FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_expand), Accepts("a path")]
"""An absolute path after loading."""

OptionalPath = Annotated[
    Annotated[Path, AfterValidator(_expand)] | None,
    BeforeValidator(_nothing),
    Accepts('a path, or "" for none'),
]
"""An absolute path after loading, or None."""

OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_nothing), Accepts('text, or "" for none')]

Token = Annotated[
    Annotated[SecretStr, AfterValidator(_is_token)] | None,
    BeforeValidator(_nothing),
    Accepts('letters, digits and -._~+/ with = at the end only (RFC 6750), or "" to read the token file'),
]

Flag = Annotated[bool, Field(strict=True), Accepts("true or false")]

Port = Annotated[int, Field(strict=True, ge=0, le=65535), Accepts("0 (any free port) to 65535")]
"""A TCP port to listen on. 0 lets the kernel choose one, for tests and demonstrations."""

Count = Annotated[int, Field(strict=True, ge=1, le=_LARGEST), Accepts("a whole number, at least 1")]
CountOrZero = Annotated[int, Field(strict=True, ge=0, le=_LARGEST), Accepts("a whole number, at least 0")]
Milliseconds = Annotated[
    int, Field(strict=True, ge=1, le=_LARGEST), Accepts("milliseconds, a whole number, at least 1")
]
MillisecondsOrZero = Annotated[
    int, Field(strict=True, ge=0, le=_LARGEST), Accepts("milliseconds, a whole number, at least 0")
]
Bytes = Annotated[int, Field(strict=True, ge=1, le=_LARGEST), Accepts("bytes, a whole number, at least 1")]
Megabytes = Annotated[int, Field(strict=True, ge=1, le=2**32), Accepts("MiB, a whole number, at least 1")]

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}\z"),
    Accepts("1 to 64 of A-Z a-z 0-9 _ . -"),
]

Sha256 = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{64}\z"),
    Masked(),
    Accepts("the SHA-256 of the token, 64 hexadecimal digits in lower case"),
]
"""Masked in errors: someone may have put the token itself there."""

Text = Annotated[str, Accepts("text")]

Network = Annotated[
    str, AfterValidator(_is_network), Accepts("a network such as 10.1.0.0/16 or 2001:db8::/32")
]

Rule = Annotated[
    NetworkRule,
    PlainValidator(_rule),
    PlainSerializer(NetworkRule.to_json),
    Accepts(_RULE_WORDS),
]

HostAddress = Annotated[
    str,
    StringConstraints(min_length=1, pattern=r"^[^\s\[\]/]+\z"),
    Accepts("an IP address without brackets, or a host name"),
]
