"""One row of the audit log, as a value and as a line.

A line is a JSON object whose last member is ``hash``: the SHA-256 of the line's own bytes without that
member. So there is no second way to write a row, and to check one no JSON library must agree with another.
The member before it, ``prev``, is the hash of the row before: nothing can be taken out, put in or changed
without changing every hash that follows.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec

FIRST_PREV = "0" * 64
"""``prev`` of the very first row."""
MAX_FIELD_BYTES = 1024
"""A longer value is cut (docs/security.md, 75): what strangers say must not fill the disk."""

_HASH = b',"hash":"'
_TAIL = len(_HASH) + 64 + 2
_CUT = "…"
_MAX_FIELDS = 32


class AuditRow(msgspec.Struct, frozen=True):
    """One row; see ``AuditRow`` in system.proto."""

    sequence: int
    time: str
    """RFC 3339, UTC, microseconds."""
    kind: str
    principal: str
    request_id: str
    decision: str
    fields: dict[str, Any]
    prev: str
    """``hash`` of the row before, 64 hexadecimal digits; zeros for the first."""


class BadLineError(ValueError):
    """A line that is no row, or whose hash does not fit."""


def make_row(
    sequence: int,
    prev: str,
    *,
    kind: str,
    principal: str,
    request_id: str,
    decision: str,
    fields: dict[str, Any],
) -> AuditRow:
    """A row of now, its values cut to size."""
    return AuditRow(
        sequence=sequence,
        time=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        kind=_cut_text(kind),
        principal=_cut_text(principal),
        request_id=_cut_text(request_id),
        decision=_cut_text(decision),
        fields={key: _cut(value) for key, value in list(fields.items())[:_MAX_FIELDS]},
        prev=prev,
    )


def encode(row: AuditRow) -> tuple[bytes, str]:
    """The row's line, line feed included, and its hash."""
    body = msgspec.json.encode(row)
    digest = hashlib.sha256(body).hexdigest()
    return b'%b%b%b"}\n' % (body[:-1], _HASH, digest.encode()), digest


def decode(line: bytes) -> tuple[AuditRow, str]:
    """The row of a line (without line feed) and its hash. Raises BadLineError that says what is wrong."""
    if len(line) <= _TAIL or not line.endswith(b'"}') or line[-_TAIL : -_TAIL + len(_HASH)] != _HASH:
        raise BadLineError("it does not end with a hash")
    digest = line[-66:-2].decode(errors="replace")
    if hashlib.sha256(line[:-_TAIL] + b"}").hexdigest() != digest:
        raise BadLineError("its hash does not fit its content")
    try:
        return msgspec.json.decode(line, type=AuditRow), digest
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLineError(f"it is no audit row: {error}") from None


def _cut(value: object) -> object:
    match value:
        case None | bool() | float():
            return value
        case int():
            return value if abs(value) < 1 << 63 else _cut_text(str(value))
        case str():
            return _cut_text(value)
        case bytes():
            return _cut_text(value.decode(errors="replace"))
    text = msgspec.json.encode(value, enc_hook=str)
    return msgspec.json.decode(text) if len(text) <= MAX_FIELD_BYTES else _cut_text(text.decode())


def _cut_text(text: str) -> str:
    if len(text) <= MAX_FIELD_BYTES // 4 and text.isascii():
        return text
    data = text.encode(errors="replace")
    if len(data) <= MAX_FIELD_BYTES:
        return data.decode()
    return data[: MAX_FIELD_BYTES - len(_CUT.encode())].decode(errors="ignore") + _CUT
