"""The folder of an audit log: which files there are, how long they stay, and how one row is found.

``audit.jsonl`` is written to; files that are full are called ``audit-FIRST.jsonl`` after their first row's
sequence. Files called ``audit-torn-…`` hold bytes that a crash left behind a last whole row.
"""

from __future__ import annotations

import os
import re
import time
from typing import IO, TYPE_CHECKING

from clawbox.audit.rows import AuditRow, BadLineError, decode
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CURRENT = "audit.jsonl"
LOCK = "audit.lock"
RESERVE = "audit.reserve"

MIN_AGE_S = 24 * 3600.0
"""A full file is kept at least this long, however many there are: a flood must not wash the traces away
(docs/security.md, 75)."""
RESERVE_BYTES = 1 << 20

_TAIL_BYTES = 256 << 10  # longer than any row
_CLOSED = re.compile(r"audit-(\d{20})\.jsonl")


def closed_name(first_sequence: int) -> str:
    """What a full file is called."""
    return f"audit-{first_sequence:020d}.jsonl"


def closed_files(folder: Path) -> list[tuple[int, Path]]:
    """Full files with the sequence of their first row, oldest first."""
    return sorted(
        (int(name[1]), path)
        for path in folder.iterdir()
        if (name := _CLOSED.fullmatch(path.name)) is not None
    )


def first_sequence(path: Path) -> int | None:
    """The sequence of a file's first row; None when it has no whole row or does not exist."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        return decode(line.rstrip(b"\n"))[0].sequence
    except (FileNotFoundError, BadLineError):
        return None


def last_row(fd: int, size: int) -> tuple[tuple[AuditRow, str] | None, int]:
    """The last good row of a file with its hash, and where it ends.

    Raises AUDIT_UNAVAILABLE when there are bytes but no good row near the end: no crash does that.
    """
    start = max(0, size - _TAIL_BYTES)
    data = os.pread(fd, size - start, start)
    end = len(data)
    while (end := data.rfind(b"\n", 0, end)) >= 0:
        begin = data.rfind(b"\n", 0, end) + 1
        try:
            row, digest = decode(data[begin:end])
        except BadLineError:
            continue
        return (row, digest), start + end + 1
    if start:
        raise ClawboxError(
            Reason.AUDIT_UNAVAILABLE,
            "the end of the audit log holds no whole row; verify it, and move it away",
        )
    return None, 0


def set_reserve_aside(folder: Path) -> None:
    """Have the disk keep room for rows when it is full (docs/security.md, 99). Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(folder / RESERVE, flags, 0o600)
    try:
        os.posix_fallocate(fd, 0, RESERVE_BYTES)
    except OSError:
        (folder / RESERVE).unlink()
        raise
    finally:
        os.close(fd)


def set_torn_aside(folder: Path, after_sequence: int, data: bytes) -> Path:
    """Keep the remains of a row in a file of its own, which is returned. Raises OSError."""
    number = 0
    while (aside := folder / f"audit-torn-{after_sequence:020d}-{number}.bin").exists():
        number += 1
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    return aside


def store(fds: Sequence[int]) -> None:
    """Have the kernel store what was written to these descriptors, and close them. Raises OSError."""
    try:
        for fd in fds:
            os.fdatasync(fd)
    finally:
        for fd in fds:
            os.close(fd)


def remove_old(folder: Path, keep_files: int) -> None:
    """Remove full files that are both more than ``keep_files`` and old enough. Raises OSError."""
    for _, path in closed_files(folder)[:-keep_files]:
        if time.time() - path.stat().st_mtime < MIN_AGE_S:
            break
        path.unlink()


class HistoryReader:
    """Reads the rows after a sequence number in order, as far as they are kept. Not safe for two threads."""

    def __init__(self, folder: Path, after: int) -> None:
        self._folder = folder
        self.position = after
        """Sequence of the last row that was read."""
        self._file: IO[bytes] | None = None
        self._first = -1

    def read(self, limit: int) -> list[AuditRow]:
        """The next rows, at most so many; none when there are no more for now."""
        rows: list[AuditRow] = []
        while len(rows) < limit and (line := self._next_line()):
            try:
                row, _ = decode(line[:-1])
            except BadLineError:
                continue  # verify() is there to tell; a watcher gets what can be read
            if row.sequence > self.position:
                self.position = row.sequence
                rows.append(row)
        return rows

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_line(self) -> bytes:
        """The next whole line, of whichever file; empty when there is none for now."""
        while True:
            if line := self._line():
                return line
            following = self._following()
            if following is None:
                return b""
            # Nothing is added to a file once another follows it. What was, since this one's end was seen, is
            # read first.
            if line := self._line():
                return line
            self._open(*following)

    def _line(self) -> bytes:
        """The next whole line of the file that is open; empty when there is none."""
        if self._file is None:
            return b""
        place = self._file.tell()
        line = self._file.readline()
        if line.endswith(b"\n"):
            return line
        self._file.seek(place)  # the rest of the row may come
        return b""

    def _following(self) -> tuple[int, Path] | None:
        """The file with the next row, or the first one after the file that is open."""
        files = closed_files(self._folder)
        current = self._folder / CURRENT
        if (first := first_sequence(current)) is not None:
            files.append((first, current))
        files = [(first, path) for first, path in files if first > self._first]
        if not files:
            return None
        index = 0
        if self._first < 0:
            index = max(0, sum(first <= self.position + 1 for first, _ in files) - 1)
        return files[index]

    def _open(self, first: int, path: Path) -> None:
        """Go over to a file, unless it got its other name meanwhile, or was removed for its age."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        self.close()
        self._file, self._first = file, first
