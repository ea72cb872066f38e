"""Header fields in their order, and which of them never pass a proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Field: TypeAlias = tuple[bytes, bytes]
"""Name and value of one header line."""

# RFC 9110 7.6.1 and what proxies besides have come to treat so; TE is not passed on, since trailers are
# forwarded whether or not they were asked for.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Property 70: what would make the upstream act on another method, path or client than was decided on.
_REWRITERS: Final = frozenset(
    {
        b"forwarded",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-url",
        b"x-rewrite-url",
    }
)
NEVER_SENT: Final = HOP_BY_HOP | _REWRITERS | {b"host", b"content-length"}
"""Request headers that are dropped; Host and Content-Length are written anew."""
NEVER_RETURNED: Final = HOP_BY_HOP | {b"content-length", b"alt-svc"}
"""Response headers that are dropped. Alt-Svc would send the client where there is no way."""
# RFC 9110 6.5.1: what must not be changed after the head was acted on. Property 49 needs the rest scanned.
_NOT_IN_TRAILERS: Final = (
    NEVER_SENT
    | NEVER_RETURNED
    | {
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"location",
        b"range",
        b"set-cookie",
        b"www-authenticate",
    }
)
# X-Clawbox-… are the sidecar's own, which neither side can send (property 57).
_DROPPED_PREFIXES: Final = (b"x-forwarded-", b"x-clawbox-")


def canonical_name(name: bytes) -> bytes:
    """A name as servers compare it: in lower case, and ``_`` as ``-``, which CGI cannot tell apart (39)."""
    return name.lower().replace(b"_", b"-")


class Headers:
    """Header fields as they came: (name, value) pairs in order. Immutable."""

    __slots__ = ("_items", "_names")

    def __init__(self, items: Iterable[Field] = ()) -> None:
        self._items = tuple(items)
        self._names = [name.lower() for name, _ in self._items]

    def __iter__(self) -> Iterator[Field]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: bytes) -> bool:
        return name in self._names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        """Names alone: values may be secrets."""
        return f"Headers({b', '.join(name for name, _ in self._items).decode('ascii')})"

    def values(self, name: bytes) -> list[bytes]:
        """The values of every field of that name (in lower case), in order."""
        if name not in self._names:
            return []
        return [value for at, (_, value) in zip(self._names, self._items, strict=True) if at == name]

    def tokens(self, name: bytes) -> frozenset[bytes]:
        """The elements, in lower case, of comma-separated fields of that name."""
        if name not in self._names:
            return frozenset()
        listed = b",".join(self.values(name)).lower().split(b",")
        return frozenset(token.strip(b" \t") for token in listed) - {b""}

    def without(self, names: frozenset[bytes]) -> list[Field]:
        """The fields that may pass: none of ``names``, none that Connection names, none of the sidecar's own.

        ``names`` are canonical names, and so are compared.
        """
        connection = self.tokens(b"connection")
        if connection:
            names = names.union(map(canonical_name, connection))
        mine = self._names
        if b"_" in b"".join(mine):
            mine = [name.replace(b"_", b"-") for name in mine]
        return [
            item
            for name, item in zip(mine, self._items, strict=True)
            if name not in names and not name.startswith(_DROPPED_PREFIXES)
        ]


EMPTY: Final = Headers()


def passable_trailers(trailers: Headers) -> list[Field]:
    """The trailer fields that are passed on."""
    return trailers.without(_NOT_IN_TRAILERS)
