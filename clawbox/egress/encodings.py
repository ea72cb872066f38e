r"""The spellings of a known secret: an expression that finds it raw and in every usual encoding (45).

A character counts as itself, percent-encoded up to four times over, as the escapes of JSON, JavaScript and
Python up to four backslashes deep, or as HTML writes it, in any mixture; so the raw text, ``%41``, ``%2541``
and ``\u0041`` are one expression. Base64 and base64url have one for each of the three places in a group of
three bytes where the secret may begin, whatever stands before and after it: HTTP's Basic is one of them. All
are searched without regard to case, since header and host names lose it.

Scanning is a net, not a boundary (docs/security.md, 77): what is reversed, wrapped over lines, encrypted or
encoded in a way that is not here passes.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from clawbox.egress.patterns import Kind, Pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 64
"""Characters of one expression. A longer secret is looked for in pieces, so that no match is longer than
:data:`LONGEST`, and a part of it is found too."""
LONGEST = PIECE * 36 + 2
"""Bytes of the longest match: four UTF-8 bytes to a character, each percent-encoded four times."""
_SHORTEST = 8
"""Characters below which an encoded secret is not looked for: three letters are in every picture."""

_PERCENT = "%(?:25){0,3}"
_BACKSLASH = r"\\{1,4}"
_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
_EDGE = "[a-z0-9+/_-]?"


def known_secret(name: str, value: str) -> tuple[Pattern, ...]:
    """What finds a secret, under the name of its credential; several patterns when it is long.

    Raises ValueError for an empty value and for one with a line end: no stream could be searched for it.
    """
    if not value or "\r" in value or "\n" in value:
        raise ValueError("a secret is one line, and not empty")
    return tuple(
        Pattern(name, expression(piece).encode("latin-1"), Kind.KNOWN, "the credential file")
        for piece in pieces(value)
    )


def pieces(value: str) -> Iterator[str]:
    """The value, or what of it is looked for at a time."""
    for start in range(0, len(value), PIECE):
        # The last one is as long as the others: a short rest would be found in innocent text.
        yield value[max(min(start, len(value) - PIECE), 0) :][:PIECE]


def expression(piece: str) -> str:
    """The RE2 for one piece, over bytes written as Latin-1."""
    data = piece.encode()
    forms = ["".join(map(_character, piece))]
    if len(data.hex()) >= _SHORTEST:
        forms.append(data.hex())
    forms += (_base64(form, edges) for form, edges in base64_forms(data))
    return "(?i:" + "|".join(dict.fromkeys(forms)) + ")"


def base64_forms(data: bytes) -> list[tuple[str, tuple[bool, bool]]]:
    """What ``data`` looks like inside base64 and base64url at each alignment.

    With each, whether it shares a character with what stands before and after it, which is left out here.
    """
    forms = []
    for before in range(3):
        bits = 8 * (before + len(data))
        first, last = -(-8 * before // 6), bits // 6
        encoded = base64.b64encode(bytes(before) + data)[first:last].decode()
        if len(encoded) < _SHORTEST:
            continue
        edges = (before > 0, bits % 6 > 0)
        forms += [(form, edges) for form in dict.fromkeys((encoded, _url_safe(encoded)))]
    return forms


def _url_safe(text: str) -> str:
    return text.replace("+", "-").replace("/", "_")


def _base64(form: str, edges: tuple[bool, bool]) -> str:
    # A neighbour holds up to four bits of the secret: it goes, too. Letters and digits are never escaped.
    spelled = "".join(char if char.isalnum() else _character(char) for char in form)
    return (_EDGE if edges[0] else "") + spelled + (_EDGE if edges[1] else "")


def _character(char: str) -> str:
    data = char.encode()
    ways = ["".join(map(_byte, data)), "".join(f"{_PERCENT}{byte:02x}" for byte in data)]
    units = char.encode("utf-16-be")
    ways.append("".join(f"{_BACKSLASH}u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)))
    if ord(char) < 0x100:
        ways.append(f"{_BACKSLASH}x{ord(char):02x}")
    if char in "\"'/":
        ways.append(_BACKSLASH + char)
    elif char == "\\":
        ways.append(r"\\{2,8}")
    elif char == " ":
        ways.append(r"\+")
    if char in _ENTITIES:
        ways.append(f"&(?:{_ENTITIES[char]}|#0{{0,3}}{ord(char)}|#x0{{0,3}}{ord(char):x});")
    return f"(?:{'|'.join(ways)})"


def _byte(byte: int) -> str:
    return chr(byte) if chr(byte).isascii() and chr(byte).isalnum() else f"\\x{byte:02x}"
