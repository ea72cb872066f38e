"""One thing that a sandbox may connect to, as a set: parsing, inclusion and intersection.

A rule is the set of requests (host, port, method, path, how TLS is carried) that it allows. Nothing here
decides who gets which rules (``clawbox.policy``) and nothing connects (``clawbox.egress``). Hosts are kept in
the one form that a request is compared in: lower case, punycode, no final dot, canonical IP literals.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

DEFAULT_PORTS = (80, 443)
"""What a rule that names no port means, as in the Rust clawbox."""
ANY_HOST = "*"
MAX_RULES = 256
"""Rules in one list; what a manifest, a request or a token may name."""
_MAX_ITEMS = 64
_MAX_PREFIX = 1024

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
# RFC 3986 pchar, without ";" (parameters are one more way to spell a path) and with upper-case escapes.
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-F]{2})*)+")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_KEYS = ("host", "ports", "methods", "path_prefixes", "tls_mode", "on_shape")


T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)


class TlsMode(enum.Enum):
    """How TLS connections to a host are carried."""

    INTERCEPT = "intercept"
    """The sidecar ends TLS, so that it can apply path rules, attach credentials and look for leaks."""
    TUNNEL = "tunnel"
    """Bytes pass through unread."""


class ShapeAction(enum.Enum):
    """What happens when a string that looks like a credential leaves a sandbox; strictest first."""

    BLOCK = "block"
    REDACT = "redact"
    REPORT = "report"


_STRICTNESS = {ShapeAction.BLOCK: 2, ShapeAction.REDACT: 1, ShapeAction.REPORT: 0}


class RuleError(ValueError):
    """A rule that is not one.

    ``problems`` are pairs of the part (``host``, ``ports[1]``, or empty for the whole) and what is wrong.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{part}: {text}" if part else text for part, text in problems))


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """What may be reached. Made by :meth:`parse`; the fields are canonical, sorted and without repeats."""

    host: str
    """An exact name, ``*.suffix`` (every name below it, never the suffix), an IP literal, or ``*``."""
    ports: tuple[int, ...] = DEFAULT_PORTS
    methods: tuple[str, ...] = ()
    """Upper case; empty: every method."""
    path_prefixes: tuple[str, ...] = ()
    """See :func:`path_within`; empty: every path."""
    tls_mode: TlsMode = TlsMode.INTERCEPT
    on_shape: ShapeAction | None = None
    """None: whatever the layer above says, and the server's ``egress.on_shape`` at the top."""

    @classmethod
    def parse(cls, value: object, *, any_host: bool = False) -> NetworkRule:
        """Reads a rule from a string or a mapping.

        A string is a host: ports 80 and 443, any method. A mapping has the keys ``host``, ``ports``,
        ``methods``, ``path_prefixes``, ``tls_mode`` and ``on_shape``.

        ``any_host`` accepts a bare ``*``: only for an operator who opted in by name.
        Raises RuleError with every problem of the rule.
        """
        if isinstance(value, NetworkRule):
            return value
        if isinstance(value, str):
            value = {"host": value}
        if not isinstance(value, Mapping):
            raise RuleError([("", f"a rule is a host or an object, not {type(value).__name__}")])
        return _parse_mapping(value, any_host=any_host)

    def to_json(self) -> str | dict[str, object]:
        """The shortest form that :meth:`parse` reads back as this rule."""
        full: dict[str, object] = {"host": self.host}
        if self.ports != DEFAULT_PORTS:
            full["ports"] = list(self.ports)
        if self.methods:
            full["methods"] = list(self.methods)
        if self.path_prefixes:
            full["path_prefixes"] = list(self.path_prefixes)
        if self.tls_mode is not TlsMode.INTERCEPT:
            full["tls_mode"] = self.tls_mode.value
        if self.on_shape is not None:
            full["on_shape"] = self.on_shape.value
        return self.host if len(full) == 1 else full

    def __str__(self) -> str:
        """How an error names the rule: ``GET,POST api.example.com:443/v1``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        ports = "" if self.ports == DEFAULT_PORTS else ":" + ",".join(map(str, self.ports))
        text = f"{','.join(self.methods)} {host}{ports}{','.join(self.path_prefixes)}".lstrip()
        if self.tls_mode is TlsMode.TUNNEL:
            text += " (tunnel)"
        if self.on_shape is not None:
            text += f" (on_shape={self.on_shape.value})"
        return text


def path_within(prefix: str, path: str) -> bool:
    """Whether a canonical path is at or below a prefix.

    Whole segments are compared: ``/repos/me`` holds ``/repos/me`` and ``/repos/me/x``, not ``/repos/me-too``.
    A prefix that ends with ``/`` holds only what is below it.
    """
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


def host_within(pattern: str, host: str) -> bool:
    """Whether every name that ``host`` (a name or itself a pattern) stands for is one of ``pattern``'s."""
    if pattern in (ANY_HOST, host):
        return True
    if host == ANY_HOST or not pattern.startswith("*."):
        return False
    return host.removeprefix("*").endswith(pattern[1:])


def covers(outer: NetworkRule | Iterable[NetworkRule], inner: NetworkRule) -> bool:
    """Whether every request that ``inner`` allows is allowed by ``outer``, a rule or the union of several.

    Exact for unions too: names below a suffix, methods and paths below a prefix are infinitely many, so a
    finite union holds them all only when one of its rules does; ports, listed methods and prefixes are
    looked at one by one. An intercepted connection is less than a tunnelled one. An ``on_shape`` left out
    has no opinion; one that is named must not be laxer than what the outer rule names.
    """
    rules = (outer,) if isinstance(outer, NetworkRule) else outer
    candidates = [
        rule
        for rule in rules
        if host_within(rule.host, inner.host)
        and (inner.tls_mode is TlsMode.INTERCEPT or rule.tls_mode is TlsMode.TUNNEL)
        and _shape_allows(rule.on_shape, inner.on_shape)
    ]
    return all(
        any(
            port in rule.ports
            and (not rule.methods or method in rule.methods)
            and _prefixes_hold(rule.path_prefixes, prefix)
            for rule in candidates
        )
        for port in inner.ports
        for method in inner.methods or (None,)
        for prefix in inner.path_prefixes or (None,)
    )


def intersect(one: NetworkRule, other: NetworkRule) -> NetworkRule | None:
    """The rule that allows exactly what both allow, with the stricter treatment; None if nothing."""
    if host_within(one.host, other.host):
        host = other.host
    elif host_within(other.host, one.host):
        host = one.host
    else:
        return None
    ports = tuple(sorted(set(one.ports) & set(other.ports)))
    methods = tuple(sorted(set(one.methods) & set(other.methods))) or one.methods or other.methods
    if one.methods and other.methods and not set(one.methods) & set(other.methods):
        return None
    prefixes = _intersect_prefixes(one.path_prefixes, other.path_prefixes)
    if not ports or prefixes is None:
        return None
    shapes = [shape for shape in (one.on_shape, other.on_shape) if shape is not None]
    return NetworkRule(
        host=host,
        ports=ports,
        methods=methods,
        path_prefixes=prefixes,
        tls_mode=one.tls_mode if one.tls_mode is other.tls_mode else TlsMode.INTERCEPT,
        on_shape=max(shapes, key=_STRICTNESS.__getitem__, default=None),
    )


@functools.lru_cache(maxsize=1024)
def intersect_all(one: tuple[NetworkRule, ...], other: tuple[NetworkRule, ...]) -> tuple[NetworkRule, ...]:
    """The rules that allow exactly what both lists allow, without repeats, in the order of ``one``."""
    found = (intersect(mine, theirs) for mine in one for theirs in other)
    return tuple(dict.fromkeys(rule for rule in found if rule is not None))


def with_shape(rules: tuple[NetworkRule, ...], on_shape: ShapeAction) -> tuple[NetworkRule, ...]:
    """The rules with ``on_shape`` filled in where they leave it out: what the top layer means."""
    return tuple(rule if rule.on_shape else replace(rule, on_shape=on_shape) for rule in rules)


def stricter_shape(actions: Iterable[ShapeAction]) -> ShapeAction:
    """The strictest of one or more treatments."""
    return max(actions, key=_STRICTNESS.__getitem__)


def _shape_allows(outer: ShapeAction | None, inner: ShapeAction | None) -> bool:
    return outer is None or inner is None or _STRICTNESS[inner] >= _STRICTNESS[outer]


def _prefixes_hold(outer: tuple[str, ...], prefix: str | None) -> bool:
    if not outer:
        return True
    return prefix is not None and any(path_within(held, prefix) for held in outer)


def _intersect_prefixes(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...] | None:
    if not one or not other:
        return one or other
    both = {mine for mine in one if _prefixes_hold(other, mine)}
    both |= {theirs for theirs in other if _prefixes_hold(one, theirs)}
    return _least_prefixes(both) or None


def _least_prefixes(prefixes: Iterable[str]) -> tuple[str, ...]:
    every = set(prefixes)
    return tuple(sorted(p for p in every if not any(q != p and path_within(q, p) for q in every)))


def _parse_mapping(value: Mapping[object, object], *, any_host: bool) -> NetworkRule:
    problems: list[tuple[str, str]] = [
        ("", f"unknown key {str(key)[:64]!r}; known are {', '.join(_KEYS)}")
        for key in value
        if key not in _KEYS
    ]
    host = _part(problems, "host", lambda: _parse_host(value.get("host"), any_host=any_host), "")
    ports = tuple(
        _part(problems, f"ports[{index}]", functools.partial(_parse_port, item), 1)
        for index, item in _items(problems, "ports", value.get("ports"))
    )
    methods = tuple(
        _part(problems, f"methods[{index}]", functools.partial(_parse_method, item), "")
        for index, item in _items(problems, "methods", value.get("methods"))
    )
    prefixes = tuple(
        _part(problems, f"path_prefixes[{index}]", functools.partial(_parse_prefix, item), "/")
        for index, item in _items(problems, "path_prefixes", value.get("path_prefixes"))
    )
    tls_mode = _part(problems, "tls_mode", lambda: _parse_choice(TlsMode, value.get("tls_mode")), None)
    on_shape = _part(problems, "on_shape", lambda: _parse_choice(ShapeAction, value.get("on_shape")), None)
    if tls_mode is TlsMode.TUNNEL and (methods or prefixes):
        problems.append(
            ("tls_mode", "a tunnel is not read, so methods and path_prefixes cannot be applied to it")
        )
    if problems:
        raise RuleError(problems)
    return NetworkRule(
        host=host,
        ports=tuple(sorted(set(ports))) or DEFAULT_PORTS,
        methods=tuple(sorted(set(methods))),
        # "/" holds every path, which is what no prefix means.
        path_prefixes=() if "/" in prefixes else _least_prefixes(prefixes),
        tls_mode=tls_mode or TlsMode.INTERCEPT,
        on_shape=on_shape,
    )


def _part(problems: list[tuple[str, str]], part: str, parse: Callable[[], T], otherwise: T) -> T:
    try:
        return parse()
    except RuleError as error:
        problems.extend((part + inner, text) for inner, text in error.problems)
    return otherwise


def _items(problems: list[tuple[str, str]], part: str, value: object) -> list[tuple[int, object]]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or len(value) > _MAX_ITEMS:
        problems.append((part, f"not a list of at most {_MAX_ITEMS}"))
        return []
    return list(enumerate(value))


def _refuse(text: str) -> RuleError:
    return RuleError([("", text)])


def canonical_host(name: str) -> str:
    """The one form of a host: a lower-case ASCII name without its final dot, or a canonical IP literal.

    IPv6 literals have no brackets here. What the C library would read as an IPv4 address although it is not
    in the usual form (decimal, octal, hexadecimal, short) is no host. Raises RuleError.
    """
    if len(name) > 254:
        raise _refuse("longer than a host name can be")
    if not name.isascii():
        raise _refuse(f"{_shown(name)} is not ASCII; write international names in punycode (xn--…)")
    host = name.lower()
    if ":" not in host:  # a final dot is a name's, never an IPv6 literal's
        host = host.removesuffix(".")
    literal = _ip_literal(host)
    if literal is not None:
        return literal
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refuse(f"{_shown(name)} is not a host name or IP address (no scheme, port or path)")
    # What ends in a number is an IPv4 address to the C library, however it is spelled (WHATWG URL, 3.5).
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        raise _refuse(f"{_shown(name)} is not a canonical IPv4 address")
    return host


def _parse_host(value: object, *, any_host: bool) -> str:
    if not isinstance(value, str) or not value:
        raise _refuse("a host is required, as a string")
    if value == ANY_HOST:
        if any_host:
            return value
        raise _refuse("a bare * would allow every host; name hosts, or *.suffix")
    name = value.removeprefix("*.")
    host = canonical_host(name)
    if name == value:
        return host
    if _ip_literal(host) is not None:
        raise _refuse(f"{_shown(value)}: an IP address has no names below it")
    return f"*.{host}"


def _ip_literal(name: str) -> str | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise _refuse("an address with a zone is not accepted")
    return str(address)


def _parse_port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise _refuse(f"{_shown(value)} is not a port in 1..65535")
    return value


def _parse_method(value: object) -> str:
    if not isinstance(value, str) or not _METHOD.fullmatch(value):
        raise _refuse(f"{_shown(value)} is not an HTTP method in upper case")
    if value in ("CONNECT", "TRACE", "TRACK"):
        raise _refuse(f"{value} is never passed on")
    return value


def _parse_prefix(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_PREFIX or not _PATH.fullmatch(value):
        raise _refuse(
            f"{_shown(value)} is not a path that starts with / (no query, no ;, escapes in upper case)"
        )
    segments = value.split("/")[1:]
    if "" in segments[:-1] or any(segment in (".", "..") for segment in segments):
        raise _refuse(f"{_shown(value)} is not canonical: it has an empty, . or .. segment")
    for escape in re.findall(r"%([0-9A-F]{2})", value):
        byte = int(escape, 16)
        if byte < 0x20 or byte == 0x7F or byte in _UNRESERVED or byte in b"/\\;%":
            raise _refuse(f"{_shown(value)} is not canonical: %{escape} has no place in it")
    return value


def _parse_choice(kind: type[E], value: object) -> E | None:
    if value is None:
        return None
    if isinstance(value, kind):
        return value
    try:
        return kind(value)
    except ValueError:
        raise _refuse(
            f"{_shown(value)} is not one of {', '.join(str(item.value) for item in kind)}"
        ) from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
