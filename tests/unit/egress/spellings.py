"""How a secret may be written, made by the libraries that programs use, not by the code under test."""

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

SECRETS = {
    "token": "tok_9fK2xQ7vLm3RzW8sYb5N",
    "spaces": "brave-EXAMPLE-0002 with space and ünï",
    "specials": "p\"a\\ss/w+o=r%d&<x>'~_-.",
    "digits": "4929123456781234",
    "astral": "correct-horse-😀-battery",
    "long": "Z9x8C7v6B5n4M3a2S1d0F" * 12,
}


def every_byte(data: bytes, form: bytes) -> bytes:
    return b"".join(form % byte for byte in data)


def inside(encode, before, after):
    """A secret in the middle of something that is encoded as a whole."""
    return lambda secret: encode(before + secret.encode() + after)


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "raw": str.encode,
    "percent": lambda secret: quote(secret, safe="").encode(),
    "form": lambda secret: quote_plus(secret, safe="").encode(),
    "percent all": lambda secret: every_byte(secret.encode(), b"%%%02X"),
    "percent all, lower case": lambda secret: every_byte(secret.encode(), b"%%%02x"),
    "double percent": lambda secret: quote(quote(secret, safe=""), safe="").encode(),
    "double percent all": lambda secret: every_byte(secret.encode(), b"%%25%02X"),
    "hex": lambda secret: secret.encode().hex().encode(),
    "HEX": lambda secret: secret.encode().hex().upper().encode(),
    "json": lambda secret: json.dumps(secret)[1:-1].encode(),
    "json, not ASCII": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1].encode(),
    "json in json": lambda secret: json.dumps(json.dumps(secret)[1:-1])[1:-1].encode(),
    "json, slash": lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/").encode(),
    "json all": lambda secret: b"".join(b"\\u%02x%02x" % pair for pair in pairs(secret.encode("utf-16-be"))),
    "html": lambda secret: html.escape(secret).encode(),
}
AROUND = dict.fromkeys(ENCODINGS, 0)
"""How many bytes that are not the secret are encoded with it."""


def _add(name, encode, before, after):
    ENCODINGS[name] = inside(encode, before, after)
    AROUND[name] = len(before) + len(after)


for _offset in range(3):
    for _name, _encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
        for _after in (b"", b"\xff\xfe"):
            _add(f"{_name} at {_offset}, {len(_after)} after", _encode, b"\xfb\xef"[:_offset], _after)
_add("base64, no padding", lambda data: base64.urlsafe_b64encode(data).rstrip(b"="), b"", b"")
_add("basic, as password", base64.b64encode, b"user:", b"")
_add("basic, as user", base64.b64encode, b"", b":x-oauth-basic")


def left_over(name, cleaned):
    """What of an encoded secret is still there besides what stood around it, in characters, at least."""
    rest = cleaned.replace(b"[REDACTED]", b"").rstrip(b"=")
    return max(len(rest) - -(-AROUND[name] * 4 // 3), 0)


def pairs(data):
    return zip(data[::2], data[1::2], strict=True)
