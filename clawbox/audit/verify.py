"""Checks an audit log offline: that nothing was changed, taken out or put in.

The chain has no key: whoever can write the folder can make a new chain from any row on. Comparing with a head
that was noted elsewhere (``expected_head``) finds that too.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox.audit.files import CURRENT, closed_files
from clawbox.audit.rows import FIRST_PREV, BadLineError, decode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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

    @property
    def ok(self) -> bool:
        """Whether every row is good and the expected head, if any, is not missing."""
        return self.bad is None and self.expected_head != "not found"


def verify(folder: Path, expected_head: str | None = None) -> Verdict:
    """Check every row that is kept. Does not take the lock: a log that is written to can be checked.

    ``expected_head`` is a ``head`` of before. Raises ValueError when it is not one, and OSError.
    """
    expected = _parse_head(expected_head) if expected_head is not None else None
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
    )


def _lines(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    done = -1
    while True:
        with contextlib.ExitStack() as stack:
            # Opened before the others are listed: a file that gets its final name meanwhile is not missed.
            current = None
            if (folder / CURRENT).exists():
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
