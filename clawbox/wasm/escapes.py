r"""Backslash escapes, resolved so that none can hide a secret from the output scan, and the way back.

Those of JSON, and ``\xNN`` and ``\'`` of programming languages: what a tool prints may be either.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from clawbox.egress.patterns import Match

_ESCAPE = re.compile(rb"""\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[nrtbf"'\\/])""")
_NAMED_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
# First the escaped backslash, so that every other one begins an escape; no pattern has a backslash or NUL.
_QUICK_ESCAPES = (
    (b"\\\\", b"\0"),
    *((b"\\" + letter, plain) for letter, plain in _NAMED_ESCAPES.items()),
    *((b"\\" + char, char) for char in (b'"', b"'", b"/")),
)
_ASCII_ESCAPE = re.compile(rb"\\(?:u00|x)[0-7][0-9a-fA-F]")


class BackMap:
    """Positions in a text whose escapes were resolved, as positions in the text as it was spelled."""

    def __init__(self) -> None:
        self.plain_starts: list[int] = []
        self.plain_ends: list[int] = []
        self.raw_starts: list[int] = []
        self.raw_ends: list[int] = []

    def start(self, position: int) -> int:
        """Where the byte at ``position`` begins as it was spelled."""
        index = bisect_right(self.plain_starts, position) - 1
        if index < 0:
            return position
        if position < self.plain_ends[index]:
            return self.raw_starts[index]
        return self.raw_ends[index] + position - self.plain_ends[index]

    def match(self, match: Match) -> Match:
        """The match where it was spelled."""
        # The end is where the last byte's own spelling ends.
        last = match.end - 1
        index = bisect_right(self.plain_starts, last) - 1
        within = index >= 0 and last < self.plain_ends[index]
        end = self.raw_ends[index] if within else self.start(last) + 1
        return Match(self.start(match.start), end, match.pattern)


def unescape_quickly(data: bytes) -> bytes:
    """The text with its escapes resolved as far as patterns can see: enough to know whether there is a match.

    A text of nothing but escapes must not hold up the loop, as the other way would.
    """
    for escape, plain in _QUICK_ESCAPES:
        data = data.replace(escape, plain)
    if b"\\u00" in data or b"\\x" in data:
        data = _ASCII_ESCAPE.sub(lambda escape: bytes((int(escape[0][-2:], 16),)), data)
    return data


def unescape(data: bytes) -> tuple[bytes, BackMap]:
    """The text with its escapes resolved, and the way back to how it was spelled."""
    back = BackMap()
    parts: list[bytes] = []
    kept = length = 0
    for escape in _ESCAPE.finditer(data):
        start, end = escape.span()
        body = data[start + 1 : end]
        if len(body) > 1:
            plain = chr(int(body[1:], 16)).encode(errors="replace")
        else:
            plain = _NAMED_ESCAPES.get(body, body)
        parts += (data[kept:start], plain)
        length += start - kept
        back.plain_starts.append(length)
        length += len(plain)
        back.plain_ends.append(length)
        back.raw_starts.append(start)
        back.raw_ends.append(end)
        kept = end
    parts.append(data[kept:])
    return b"".join(parts), back
