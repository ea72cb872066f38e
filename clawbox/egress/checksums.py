"""Checksums with which issuers end their credentials, so that a look-alike can be told from one."""

from __future__ import annotations

import base64
import binascii
import zlib

_BASE62 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BECH32 = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def github_checksum(token: bytes) -> bool:
    """GitHub's and npm's: the last six characters are the CRC-32 of those after the prefix, in base 62."""
    secret = token.rpartition(b"_")[2]
    number, digits = zlib.crc32(secret[:-6]), bytearray()
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits.insert(0, _BASE62[digit])
    return bytes(digits) == secret[-6:]


def grafana_checksum(token: bytes) -> bool:
    """Grafana's: eight hexadecimal digits, the CRC-32 of everything before the last ``_``, low byte first."""
    body, _, checksum = token.rpartition(b"_")
    return zlib.crc32(body).to_bytes(4, "little").hex().encode() == checksum


def bech32_checksum(key: bytes) -> bool:
    """BIP 173, with which age ends its keys."""
    prefix, _, data = key.lower().rpartition(b"1")
    values = [*(char >> 5 for char in prefix), 0, *(char & 31 for char in prefix)]
    values += [_BECH32.index(char) for char in data]
    polymod = 1
    for value in values:
        top = polymod >> 25
        polymod = (polymod & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            polymod ^= generator if top >> bit & 1 else 0
    return polymod == 1


def begins_with_a_snowflake(token: bytes) -> bool:
    """Discord's: the part before the first dot is the base64 of the bot's id, decimal digits."""
    part = token.partition(b".")[0]
    try:
        return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)).isdigit()
    except binascii.Error:
        return False
