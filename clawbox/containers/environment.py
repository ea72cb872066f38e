"""The variables of a container's programs: which a request may set, and what they all are. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from clawbox.egress.environment import sandbox_environment
from clawbox.errors import FieldViolation, invalid_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_VARIABLES: Final = 256
MAX_VALUE_BYTES: Final = 32_768
MAX_TOTAL_BYTES: Final = 131_072
"""Of all names and values of one request, each with two bytes more, as the kernel counts them."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_OURS: Final = "CLAWBOX_"

# Programs are told their way out and whom to trust by these; the sandbox's own are set, and no others.
_WAY_OUT: Final = frozenset(
    sandbox_environment(folder="/", token="", socket="/", proxy="http://127.0.0.1:1", sandbox="")
)
_PROXY: Final = frozenset(
    ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy", "node_use_env_proxy")
)
"""In lower case: programs read them in either."""
_TRUST: Final = (_WAY_OUT | {"SSL_CERT_DIR", "NODE_TLS_REJECT_UNAUTHORIZED"}) - {
    name for name in _WAY_OUT if name.lower() in _PROXY or name.startswith(_OURS)
}
# What a loader, a shell or an interpreter runs or reads before the program itself (docs/security.md, 85).
_LOADERS: Final = frozenset(
    ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "BASH_ENV", "ENV", "PYTHONSTARTUP", "NODE_OPTIONS")
)


def is_reserved(name: str) -> bool:
    """Whether a request may not set a variable, whatever its value."""
    return _is_emptied(name) or name in _TRUST


def check_environment(given: Mapping[str, str], *, field: str = "env") -> None:
    """Check what a request sets: INVALID_FIELD with a violation for each variable that it may not.

    A name is a letter or ``_``, then at most 127 letters, digits and ``_``; a value has no NUL.
    """
    violations = list(_violations(given, field))
    if violations:
        raise invalid_fields(violations)


def container_environment(
    *, image: Iterable[str], home: str, request: Mapping[str, str], way_out: Mapping[str, str]
) -> tuple[str, ...]:
    """All that the engine is told, ``NAME=value``, sorted by name; the later layer wins.

    ``image`` is what the image sets, ``NAME=value``. The engine would add it by itself, so what is reserved
    is overridden: by the sandbox's own value, else by an empty one. Authorities that an image brings stay
    where there is no way out that needs others. Raises what :func:`check_environment` raises.
    """
    check_environment(request)
    found = {name: "" for name in (entry.partition("=")[0] for entry in image) if _is_emptied(name)}
    found |= {"HOME": home, **request, **way_out}
    return tuple(f"{name}={found[name]}" for name in sorted(found))


def _is_emptied(name: str) -> bool:
    return name.upper().startswith(_OURS) or name.lower() in _PROXY or name in _LOADERS


def _violations(given: Mapping[str, str], field: str) -> Iterator[FieldViolation]:
    if len(given) > MAX_VARIABLES:
        yield FieldViolation(field, f"has more than {MAX_VARIABLES} variables", "max_items")
        return
    total = 0
    for name in sorted(given):
        value = given[name]
        size = len(value.encode("utf-8", "surrogatepass"))
        total += len(name.encode("utf-8", "surrogatepass")) + size + 2
        at = f"{field}[{ascii(name[:64])[1:-1]}]"
        if not _NAME.fullmatch(name):
            yield FieldViolation(at, "is not a name: letters, digits and _, at most 128", "pattern")
        elif is_reserved(name):
            yield FieldViolation(at, "is reserved: clawbox sets it, or it changes what is run", "reserved")
        elif "\0" in value:
            yield FieldViolation(at, "has a NUL in its value", "pattern")
        elif size > MAX_VALUE_BYTES:
            yield FieldViolation(at, f"is longer than {MAX_VALUE_BYTES} bytes", "max_length")
    if total > MAX_TOTAL_BYTES:
        yield FieldViolation(field, f"is larger than {MAX_TOTAL_BYTES} bytes", "max_length")
