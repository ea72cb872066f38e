"""Where a request goes: one strict parse, whose result is all that the rest of the sidecar ever looks at.

Rules, name look-up, SNI, Host and credentials use the :class:`Target` made here and never the text again
(property 1); the request that goes upstream is written from it, so what was decided is what is sent.
The grammar is RFC 9112 section 3.2 and RFC 3986, less all that two programs have been seen to read
differently. Every function raises RefusedError and nothing else.
"""

from __future__ import annotations

import enum
import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import msgspec

from clawbox.egress.refusal import Denial, RefusedError, shown
from clawbox.network_rules import RuleError, canonical_host

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TARGET: Final = 16 << 10
"""Characters of a request target, or of the ``url`` of ``POST /proxy``."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""What clients call the sidecar itself."""
_MAX_DECODINGS = 4
_BLANKS = "".join(map(chr, range(0x21)))

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#\\]*)(.*)", re.DOTALL)
# The host is checked by canonical_host; this only cuts. [] hold IPv6 literals alone.
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:@\[\]%\\/?#\x00-\x20\x7f]+))(?::([^:@]*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NOT_VISIBLE = re.compile(r"[\x00-\x20\x7f]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
# The path that needs no second look: RFC 3986 pchar without ";", no escape, no dot or empty segment.
_PLAIN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]++)*+/?")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNSAFE_IN_PATH = re.compile(r'["<>^`{|}\[\]]')
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# A lead byte that only a longer spelling than needed has: %C0%AE was "." to many (CVE-2000-0884 for one).
_OVERLONG = re.compile(rb"[\xc0\xc1]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]")


class Form(enum.Enum):
    """How the target was written."""

    ABSOLUTE = "absolute"
    """``GET https://host/path``: to a proxy, or in a tunnel."""
    CONNECT = "connect"
    """``CONNECT host:port``: the tunnel itself."""
    ORIGIN = "origin"
    """``GET /path`` inside a tunnel."""
    LOCAL = "local"
    """``GET /https://host/path`` to the sidecar itself."""
    CALL = "call"
    """The ``url`` of ``POST /proxy`` or of a host call."""


class Target(msgspec.Struct, frozen=True):
    """Where one request goes."""

    scheme: str
    """``http`` or ``https``; ``https`` for CONNECT, until the first bytes in the tunnel say otherwise."""
    host: str
    """As ``network_rules.canonical_host`` writes it; IPv6 without brackets."""
    port: int
    path: str
    """Canonical: ``/`` first, no dot segments, unreserved characters as they are, escapes in upper case.
    Empty for CONNECT alone."""
    query: str | None
    """What follows the first ``?``, as it came; None without a ``?``."""
    form: Form

    @property
    def authority(self) -> str:
        """The value of the Host header: the port is named where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if DEFAULT_PORTS[self.scheme] == self.port else f"{host}:{self.port}"

    @property
    def request_target(self) -> str:
        """What follows the method in the request that goes upstream (origin-form)."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def url(self) -> str:
        """The whole target without its query, whose values are nobody else's business."""
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """A request to the sidecar itself, ``/proxy`` for one."""

    path: str


def parse_request_target(method: str, text: str) -> Target | LocalTarget:
    """The target of a request on one of the sidecar's own listeners.

    CONNECT takes ``host:port`` alone; other methods an absolute URL, ``/https://host/path``, or the same as
    ``http://localhost/https://host/path``; every other path is the sidecar's own. ``*`` is refused.
    """
    _check_text(text)
    if method == "CONNECT":
        return _connect(text)
    if text.startswith("/"):
        return _local(text)
    target = _url(text, Form.ABSOLUTE)
    if target.scheme == "http" and target.host in LOCAL_HOSTS:
        rest = re.sub(r"\A[^/]*//[^/?]*", "", text)
        if rest.startswith(("/http://", "/https://")):
            return _local(rest)
    return target


def parse_tunnel_target(text: str, tunnel: Target, scheme: str) -> Target:
    """The target of a request inside the tunnel that CONNECT opened: a path, or the same place in full (72).

    ``scheme`` is ``https`` where TLS was ended here and ``http`` where none was begun.
    """
    _check_text(text)
    if text.startswith("/"):
        path, query = _path_and_query(text)
        return Target(scheme, tunnel.host, tunnel.port, path, query, Form.ORIGIN)
    target = _url(text, Form.ABSOLUTE)
    if (target.scheme, target.host, target.port) != (scheme, tunnel.host, tunnel.port):
        raise RefusedError(Denial.TUNNEL_DIFFERS)
    return target


def parse_url(text: str) -> Target:
    """The ``url`` of ``POST /proxy`` and of a host call; in path and query, what is not ASCII is escaped."""
    _check_text(text)
    return _url(text, Form.CALL)


def check_host(values: Sequence[str], target: Target | LocalTarget, *, version: int = 1) -> None:
    """Whether the Host header says the same as the target (properties 26 and 27); it is then not used again.

    ``values`` are those of every Host header, ``version`` the minor HTTP version. The one request that may
    come without is CONNECT on HTTP/1.0 (Python before 3.12 sends that), and in CONNECT's the port may be
    left out, since the target always has it.
    """
    connect = isinstance(target, Target) and target.form is Form.CONNECT
    if not values:
        if connect and version == 0:
            return
        raise RefusedError(Denial.HOST_MISSING)
    if len(values) > 1:
        raise RefusedError(Denial.HOST_REPEATED)
    host, port = _authority(values[0])
    if isinstance(target, LocalTarget) or target.form is Form.LOCAL:
        if host not in LOCAL_HOSTS:
            raise RefusedError(Denial.HOST_DIFFERS, "requests to the sidecar itself need Host: localhost")
        return
    default = target.port if connect else DEFAULT_PORTS[target.scheme]
    if (host, port or default) != (target.host, target.port):
        raise RefusedError(Denial.HOST_DIFFERS)


def _check_text(text: str) -> None:
    if not text or len(text) > MAX_TARGET:
        raise RefusedError(Denial.MALFORMED_TARGET, f"{len(text)} characters")
    if _NOT_VISIBLE.search(text):
        raise RefusedError(Denial.MALFORMED_TARGET, "it has a space or control character")
    if "#" in text or "\\" in text:
        raise RefusedError(Denial.MALFORMED_TARGET, "it has a fragment or a backslash")


def _connect(text: str) -> Target:
    host, port = _authority(text)
    if port is None:
        raise RefusedError(Denial.BAD_PORT, "CONNECT needs host:port")
    return Target("https", host, port, "", None, Form.CONNECT)


def _local(text: str) -> Target | LocalTarget:
    inner = text[1:]
    if not inner.startswith(("http://", "https://")):
        return LocalTarget(text.partition("?")[0])
    return _url(inner, Form.LOCAL)


def _url(text: str, form: Form) -> Target:
    cut = _URL.fullmatch(text)
    if cut is None:
        raise RefusedError(Denial.MALFORMED_TARGET)
    scheme = cut[1].lower()
    if scheme not in DEFAULT_PORTS:
        raise RefusedError(Denial.SCHEME, shown(scheme))
    host, port = _authority(cut[2])
    path, query = _path_and_query(cut[3])
    return Target(scheme, host, port or DEFAULT_PORTS[scheme], path, query, form)


def _authority(text: str) -> tuple[str, int | None]:
    if "@" in text:
        raise RefusedError(Denial.USERINFO)
    return _host_and_port(text)


@functools.lru_cache(maxsize=512)
def _host_and_port(text: str) -> tuple[str, int | None]:
    cut = _AUTHORITY.fullmatch(text)
    if cut is None:
        raise RefusedError(Denial.BAD_HOST, shown(text))
    literal, name, port = cut.groups()
    try:
        host = canonical_host(literal or name)
    except RuleError:
        raise RefusedError(Denial.BAD_HOST, shown(text)) from None
    if literal is not None and ":" not in host:
        raise RefusedError(Denial.BAD_HOST, "brackets hold IPv6 addresses alone")
    if port is None:
        return host, None
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise RefusedError(Denial.BAD_PORT, shown(port))
    return host, int(port)


def _path_and_query(text: str) -> tuple[str, str | None]:
    path, mark, query = text.partition("?")
    if path and path[0] != "/":
        raise RefusedError(Denial.MALFORMED_TARGET)
    return canonical_path(path), _escaped(query) if mark else None


def canonical_path(path: str) -> str:
    """The path as rules see it and as it is sent (property 41). ``path`` is empty or begins with ``/``.

    Dot segments are resolved where that is unambiguous. Where some server would find a dot segment that
    another would not (``%2e%2e%2f``, ``..;x``, ``%252e``, overlong or full-width dots, or dots beside ``//``,
    ``;`` or ``%2F``, which servers merge, cut or decode before or after), the path is refused. What remains
    can climb for no server, so that a literal prefix is a prefix however the rest is read; ``%2F``, ``;``
    and ``//`` themselves are kept, because package registries and forges use them.
    """
    if _PLAIN_PATH.fullmatch(path):
        return path or "/"
    if _BAD_ESCAPE.search(path):
        raise RefusedError(Denial.BAD_PATH, "it has a % without two hex digits")
    canonical = _ESCAPE.sub(_canonical_escape, _UNSAFE_IN_PATH.sub(_escape, _escaped(path)))
    segments = canonical.split("/")[1:]
    dots = sum(segment in (".", "..") for segment in segments)
    lax = _as_the_laxest_server(canonical)
    if dots != sum(segment in (".", "..") for segment in lax):
        raise RefusedError(Denial.BAD_PATH, "it has a dot segment in disguise")
    if not dots:
        return canonical
    if len(lax) != len(segments) or ";" in canonical or "%3B" in canonical or "" in segments[:-1]:
        raise RefusedError(Denial.BAD_PATH, "it has dot segments beside //, ; or an escaped separator")
    return _without_dots(segments)


def _without_dots(segments: list[str]) -> str:
    """RFC 3986 section 5.2.4, but a path that climbs above the root is refused."""
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            if not kept:
                raise RefusedError(Denial.BAD_PATH, "it climbs above the root")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _as_the_laxest_server(path: str) -> list[str]:
    """Segments as a server sees them that decodes again and again, cuts parameters and folds characters."""
    data = path.encode("ascii")
    for _ in range(_MAX_DECODINGS):
        decoded = unquote_to_bytes(data)
        if decoded == data:
            break
        data = decoded
    else:
        raise RefusedError(Denial.BAD_PATH, "it is escaped again and again")
    if _OVERLONG.search(data):
        raise RefusedError(Denial.BAD_PATH, "it has overlong UTF-8")
    text = unicodedata.normalize("NFKC", data.decode("utf-8", "replace")).replace("\\", "/")
    # Some servers drop blanks at the end of a segment; "..." is no dot segment to any server known.
    return [segment.partition(";")[0].strip(_BLANKS) for segment in text.split("/")[1:]]


def _canonical_escape(escape: re.Match[str]) -> str:
    code = int(escape[1], 16)
    if code < 0x20 or code == 0x7F:
        raise RefusedError(Denial.BAD_PATH, "it has an escaped control byte")
    character = chr(code)
    return character if character in _UNRESERVED else escape[0].upper()


def _escaped(text: str) -> str:
    return text if text.isascii() else _NOT_ASCII.sub(_escape, text)


def _escape(run: re.Match[str]) -> str:
    # Lone surrogates come from JSON only, and stand for no character.
    return "".join(f"%{byte:02X}" for byte in run[0].encode("utf-8", "replace"))
