"""A strict reader of JSON text that tells where it goes wrong, keeps every digit, and needs no recursion.

Parsing JSON into objects loses what matters here: digits of long numbers, the first of two equal keys, where
a string stood. This module reads the text itself (RFC 8259, nothing more: no NaN, no byte order mark), token
by token, within limits on depth and number of values (docs/security.md, 95), and can put other strings in
the place of some while every other byte stays as it was.
"""

from __future__ import annotations

import re
from json import loads
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_DEPTH = 64
"""Levels: ``1`` has none, ``[1]`` has one."""
MAX_NODES = 100_000
"""Values: the whole, each element of an array, each member of an object."""

_NO_LIMIT = 1 << 62

# Possessive: a text that fails does so at once, without memory for ways back.
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
_TOKEN = re.compile(
    rb"[ \t\n\r]*+(?:([\[\]{},:])|(%b)|(%b|true|false|null)|\Z)" % (_STRING, _NUMBER),
)
_PUNCTUATION, _TEXT, _SCALAR = 1, 2, 3
_SPACE = re.compile(rb"[ \t\n\r]*")
_STRINGS = re.compile(_STRING)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class NotJsonError(ValueError):
    """The text is not JSON: ``problem`` at byte ``position``."""

    def __init__(self, position: int, problem: str) -> None:
        self.position = position
        self.problem = problem
        super().__init__(f"{problem} at byte {position}")


class JsonTooBigError(ValueError):
    """The text, JSON as far as it was read, has more than ``limit`` ``what`` (``levels`` or ``values``)."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.what = what
        super().__init__(f"more than {limit:,} {what}")


class StringToken(NamedTuple):
    """One string of a JSON text, ``text[start:end]`` with its quotes.

    ``path`` holds the keys and indexes from the root to the value, or, for a key, to the member that it
    names. It is only good until the next token is asked for.
    """

    start: int
    end: int
    is_key: bool
    path: Sequence[str | int]


def check(text: bytes, *, max_depth: int = MAX_DEPTH, max_nodes: int = MAX_NODES) -> None:
    """Check JSON that somebody sent: well formed, within the limits, and with one meaning.

    One meaning: two equal keys in an object are refused, since the schema would see one of them and the tool
    the other, and so is an escape that is half of a surrogate pair. Raises NotJsonError or JsonTooBigError.
    """
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise NotJsonError(error.start, "bytes that are not UTF-8") from None
    escapes = b"\\u" in text
    for token in strings(text, max_depth=max_depth, max_nodes=max_nodes, unique_keys=True):
        if escapes and _LONE_SURROGATE.search(decode(text[token.start : token.end])):
            raise NotJsonError(token.start, "a string with half of a surrogate pair")


def is_json(text: bytes) -> bool:
    """Whether bytes that are UTF-8 are one JSON value, however deep.

    Lone surrogates in escapes are accepted, as RFC 8259 does: programs write them.
    """
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        # The C parser is stricter than RFC 8259 in two points: lone surrogates, and levels beyond its stack.
        if text[:1] not in b'[{" \t\r\n' or not (
            b"\\u" in text or text.count(b"[") + text.count(b"{") > MAX_DEPTH
        ):
            return False
        try:
            for _ in strings(text):
                pass
        except NotJsonError:
            return False
    return True


def within(text: bytes, *, max_depth: int = MAX_DEPTH, max_nodes: int = MAX_NODES) -> bool:
    """Whether JSON text keeps the limits."""
    openings = text.count(b"[") + text.count(b"{")
    # Every value but the first has an opening bracket or a comma before it: bounds that are quick to know.
    if openings <= max_depth and openings + text.count(b",") < max_nodes:
        return True
    try:
        for _ in strings(text, max_depth=max_depth, max_nodes=max_nodes):
            pass
    except JsonTooBigError:
        return False
    return True


def decode(token: bytes) -> str:
    """What a string token with its quotes says; may hold lone surrogates when its escapes do."""
    if b"\\" not in token:
        return token[1:-1].decode(errors="replace")
    return str(loads(token))


def encode(text: str) -> bytes:
    """A string token with its quotes: ASCII controls, quotes and backslashes escaped, the rest as UTF-8."""
    return encode_basestring(replace_surrogates(text)).encode()


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, so that it can be written as UTF-8."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def all_strings(text: bytes) -> bytes:
    r"""Every string and key of valid JSON, unescaped and in order, each followed by a line feed.

    A quick look at what a text says, without knowing where. Lone surrogates become ``?``.
    """
    tokens = _STRINGS.findall(text)
    if b"\\" not in text:
        return b"\n".join([token[1:-1] for token in tokens])
    try:
        return "\n".join(msgspec.json.decode(b"[%b]" % b",".join(tokens), type=list[str])).encode()
    except msgspec.DecodeError:
        return "\n".join(map(decode, tokens)).encode(errors="replace")


def pointer(path: Sequence[str | int]) -> str:
    """The path as a JSON pointer (RFC 6901)."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)


def strings(
    text: bytes, *, max_depth: int = _NO_LIMIT, max_nodes: int = _NO_LIMIT, unique_keys: bool = False
) -> Iterator[StringToken]:
    """Read a whole JSON text and yield its strings and keys in order.

    The text is known to be JSON when the iterator ends. Raises NotJsonError, JsonTooBigError.
    """
    read = _TOKEN.match
    position = nodes = 0
    path: list[str | int] = []
    keys: list[set[str] | None] = []  # for each open container: the keys so far, None for an array
    wanted = "a value"
    while True:
        token = read(text, position)
        if token is None:
            raise _not_json(text, position, wanted)
        group = token.lastindex
        position = token.end()
        if group is None:
            if wanted != "the end":
                raise NotJsonError(position, f"the end, where {wanted} should be")
            return
        start = token.start(group)
        if group == _PUNCTUATION:
            mark = text[start]
            if mark in b"[{":
                if wanted not in ("a value", "a value or ]"):
                    raise _not_json(text, start, wanted)
                nodes += 1
                if len(keys) >= max_depth:
                    raise JsonTooBigError(max_depth, "levels")
                if mark == ord("["):
                    keys.append(None)
                    path.append(0)
                    wanted = "a value or ]"
                else:
                    keys.append(set())
                    path.append("")
                    wanted = "a key or }"
            elif mark in b"]}":
                if not keys or wanted not in ("a value or ]", "a key or }", ", or the container's end"):
                    raise _not_json(text, start, wanted)
                if (keys[-1] is None) != (mark == ord("]")):
                    raise _not_json(text, start, wanted)
                keys.pop()
                path.pop()
                wanted = ", or the container's end" if keys else "the end"
            elif mark == ord(","):
                if wanted != ", or the container's end":
                    raise _not_json(text, start, wanted)
                if keys[-1] is None:
                    index = path[-1]
                    assert isinstance(index, int)
                    path[-1] = index + 1
                    wanted = "a value"
                else:
                    wanted = "a key"
            elif wanted == "a colon":
                wanted = "a value"
            else:
                raise _not_json(text, start, wanted)
            if nodes > max_nodes:
                raise JsonTooBigError(max_nodes, "values")
            continue
        if wanted in ("a value", "a value or ]"):
            nodes += 1
            if nodes > max_nodes:
                raise JsonTooBigError(max_nodes, "values")
            if group == _TEXT:
                yield StringToken(start, position, is_key=False, path=path)
            wanted = ", or the container's end" if keys else "the end"
        elif group == _TEXT and wanted in ("a key", "a key or }"):
            key = decode(text[start:position])
            seen = keys[-1]
            assert seen is not None
            if unique_keys:
                if key in seen:
                    raise NotJsonError(start, "a key that its object has already")
                seen.add(key)
            path[-1] = key
            yield StringToken(start, position, is_key=True, path=path)
            wanted = "a colon"
        else:
            raise _not_json(text, start, wanted)


def rewrite(text: bytes, replace: Callable[[StringToken, str], str | None]) -> bytes:
    """Valid JSON with some of its strings replaced and every other byte as it was.

    ``replace`` gets each string and key with what it says, and returns what it should say; None keeps it.
    """
    parts: list[bytes] = []
    kept = 0
    for token in strings(text):
        new = replace(token, decode(text[token.start : token.end]))
        if new is not None:
            parts += (text[kept : token.start], encode(new))
            kept = token.end
    parts.append(text[kept:])
    return b"".join(parts)


def _not_json(text: bytes, position: int, wanted: str) -> NotJsonError:
    space = _SPACE.match(text, position)
    start = space.end() if space else position
    if start >= len(text):
        return NotJsonError(start, f"the end, where {wanted} should be")
    if text[start] == ord('"') and _TOKEN.match(text, start) is None:
        return NotJsonError(
            start, "a string that is not closed, or holds a control character or an unknown escape"
        )
    return NotJsonError(start, f"something else, where {wanted} should be")
