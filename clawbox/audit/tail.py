"""The end of an audit log, read from its folder: the last rows, then those that are written."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from clawbox.audit.files import CURRENT, HistoryReader, closed_files
from clawbox.audit.rows import BadLineError, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clawbox.audit.rows import AuditRow

_AT_ONCE = 256


def last_rows(folder: Path, count: int, wanted: Callable[[AuditRow], bool]) -> tuple[list[AuditRow], int]:
    """The last ``count`` rows that are wanted, oldest first, and the sequence of the log's last row.

    Files are read from the newest back, and no further than needed. Lines that are no rows are passed over:
    to name them is ``verify``'s. Raises OSError.
    """
    found: deque[AuditRow] = deque()
    last = 0
    for rows in _files_backwards(folder):
        last = last or rows[-1].sequence
        for row in reversed(rows):
            if len(found) >= count:
                return list(found), last
            if wanted(row) and (not found or row.sequence < found[0].sequence):
                found.appendleft(row)
    return list(found), last


def rows_after(folder: Path, sequence: int, wait: Callable[[], bool]) -> Iterator[AuditRow]:
    """Rows after ``sequence``, across the log's files. At the end ``wait`` says whether to look again."""
    reader = HistoryReader(folder, sequence)
    try:
        while True:
            rows = reader.read(_AT_ONCE)
            yield from rows
            if not rows and not wait():
                return
    finally:
        reader.close()


def _files_backwards(folder: Path) -> Iterator[list[AuditRow]]:
    # The file that is written to comes before the others are listed: one that is closed meanwhile is read
    # twice, not never.
    current = list(_rows(folder / CURRENT))
    if current:
        yield current
    for _, path in reversed(closed_files(folder)):
        if rows := list(_rows(path)):
            yield rows


def _rows(path: Path) -> Iterator[AuditRow]:
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    yield decode(line.removesuffix(b"\n"))[0]
                except BadLineError:
                    continue
    except FileNotFoundError:
        return  # not begun yet, or removed for its age
