"""Checks an audit log offline: that nothing was changed, taken out or put in.

The chain has no key: whoever can write the folder can make a new chain from any row on. Signed heads
(:mod:`clawbox.audit.heads`) show that up to the last of them, and comparing with a head that was noted
elsewhere (``expected_head``) shows it up to there, and rows that are missing at the end, too.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox.audit.files import CURRENT, closed_files
from clawbox.audit.heads import KIND, Head, public_key_of
from clawbox.audit.rows import FIRST_PREV, BadLineError, decode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from clawbox.audit.rows import AuditRow

HEAD_WITHIN_ROWS = 100_000
"""A signed head stands at most so many rows after the row that it is of."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """Where a log stops being what was written."""

    file: str
    line: int
    """From 1."""
    sequence: int
    """Of the row that should stand there."""
    problem: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about a log. Rows after a bad one are not looked at."""

    rows: int
    """Good rows."""
    first_sequence: int
    """0 when there are no rows."""
    last_sequence: int
    head: str
    """``SEQUENCE:HASH`` of the last good row, to be noted elsewhere; empty when there are no rows."""
    pruned: bool
    """Whether older rows were removed for their age, or by somebody: a file at the beginning is missing."""
    gaps: tuple[int, ...]
    """Sequences of the rows that tell of lost rows."""
    bad: BadRow | None
    expected_head: str = "absent"
    """``found``, ``not found`` (the log was cut short or rewritten), ``pruned`` (too old to tell), or
    ``absent`` when none was given."""

    signatures: str = "absent"
    """``found``, ``not found`` (no head is signed with the key, so anybody may have written all of it), or
    ``absent`` when no key was given."""
    signed_sequence: int = 0
    """Whoever has not the key cannot have made or changed the rows up to this one; 0 where none is signed."""

    @property
    def ok(self) -> bool:
        """Whether every row is good, and neither an expected head nor every signature is missing."""
        return self.bad is None and "not found" not in {self.expected_head, self.signatures}


def verify(folder: Path, expected_head: str | None = None, *, public_key: bytes | None = None) -> Verdict:
    """Check every row that is kept. Does not take the lock: a log that is written to can be checked.

    ``expected_head`` is a ``head`` of before. ``public_key``, 32 bytes, is what heads are signed with: each
    one must be, and be of the row that it names. Raises ValueError when one of them is not that, and OSError.
    """
    expected = _parse_head(expected_head) if expected_head is not None else None
    heads = _Heads(public_key_of(public_key)) if public_key is not None else None
    rows = first = last = 0
    digest = FIRST_PREV
    gaps: list[int] = []
    bad: BadRow | None = None
    found = False
    for file, number, line in _lines(folder):
        wanted = last + 1 if rows else 0
        if not line.endswith(b"\n"):
            if file == CURRENT:
                break  # the last row is being written, or a crash tore it: the next start sets it aside
            bad = BadRow(file, number, wanted, "the row is torn")
            break
        try:
            row, its_digest = decode(line[:-1])
        except BadLineError as error:
            bad = BadRow(file, number, wanted, str(error))
            break
        if rows and row.sequence != wanted:
            bad = BadRow(file, number, wanted, f"rows {wanted} to {row.sequence - 1} are missing")
            if row.sequence < wanted:
                bad = BadRow(file, number, wanted, f"row {row.sequence} stands where row {wanted} should")
            break
        if row.prev != digest and (rows or row.sequence == 1):
            bad = BadRow(file, number, row.sequence, "it does not follow from the row before")
            break
        first = first or row.sequence
        rows, last, digest = rows + 1, row.sequence, its_digest
        found = found or (last, digest) == expected
        if heads is not None and (problem := heads.check(row, digest, first)):
            bad = BadRow(file, number, row.sequence, problem)
            break
        if row.kind == "audit_gap":
            gaps.append(last)
    state = "absent"
    if expected is not None:
        state = "found" if found else "pruned" if expected[0] < first else "not found"
    return Verdict(
        rows=rows,
        first_sequence=first,
        last_sequence=last,
        head=f"{last}:{digest}" if rows else "",
        pruned=first > 1,
        gaps=tuple(gaps),
        bad=bad,
        expected_head=state,
        signatures="absent" if heads is None else heads.found(rows),
        signed_sequence=heads.signed if heads is not None else 0,
    )


class _Heads:
    """Checks the signed heads of a log whose rows come in order."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self._recent: deque[str] = deque(maxlen=HEAD_WITHIN_ROWS)
        self.signed = 0
        """Sequence of the last row that is known to be signed."""

    def found(self, rows: int) -> str:
        """As :attr:`Verdict.signatures` says it, of so many rows."""
        return "found" if self.signed or not rows else "not found"

    def check(self, row: AuditRow, digest: str, first: int) -> str:
        """What is wrong with a row as a head; empty where nothing is, or it is none. ``first``: of all."""
        problem = self._check_head(row, first) if row.kind == KIND else ""
        self._recent.append(digest)
        return problem

    def _check_head(self, row: AuditRow, first: int) -> str:
        head = Head.of(row)
        if head is None or not head.sequence < row.sequence:
            return "it is no signed head"
        if not head.is_signed_with(self._key):
            return "its signature is not this key's"
        back = row.sequence - head.sequence
        if head.sequence < first:
            # Of a row that is not kept: that says nothing of this log, however good it is.
            return ""
        if back > len(self._recent):
            return f"it is of row {head.sequence}, too far before"
        if self._recent[-back] != head.hash:
            return f"row {head.sequence} is not the one that was signed"
        self.signed = head.sequence
        return ""


def _lines(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    done = -1
    while True:
        with contextlib.ExitStack() as stack:
            # Opened before the others are listed: a file that gets its final name meanwhile is not missed.
            current = None
            with contextlib.suppress(FileNotFoundError):  # it is being replaced, or there is none
                current = stack.enter_context((folder / CURRENT).open("rb"))
            paths = [(first, path) for first, path in closed_files(folder) if first > done]
            if not paths:
                for number, line in enumerate(current or (), start=1):
                    yield CURRENT, number, line
                return
        for first, path in paths:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    yield path.name, number, line
            done = first


def _parse_head(head: str) -> tuple[int, str]:
    sequence, _, digest = head.partition(":")
    if not sequence.isdecimal() or len(digest) != 64:
        raise ValueError("a head is SEQUENCE:HASH, with 64 hexadecimal digits")
    return int(sequence), digest.lower()
