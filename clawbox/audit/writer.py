"""The one writer of an audit log's folder: its lock, the file that lines are appended to, and room for them.

Every line is one ``write``. While the disk is full, lines go into blocks that the file has behind its end,
and when those are full, into a reserve that is removed for them (docs/security.md, 99).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from clawbox.audit.files import (
    CURRENT,
    LOCK,
    RESERVE,
    closed_files,
    closed_name,
    first_sequence,
    last_row,
    set_reserve_aside,
    set_torn_aside,
)
from clawbox.audit.room import Room
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from pathlib import Path

    from clawbox.audit.rows import AuditRow

_log = structlog.stdlib.get_logger("clawbox.audit")


class End(NamedTuple):
    """Where an earlier server left off."""

    last: tuple[AuditRow, str] | None
    """The last good row and its hash."""
    torn: dict[str, Any] | None
    """What is to be told of bytes behind it, which are set aside."""


class LogWriter:
    """Appends lines in ``folder``, which it has to itself from :meth:`open` until :meth:`close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current = str(folder / CURRENT)
        self._lock_fd = self._fd = -1
        self._first = 1
        self._full: list[int] = []  # descriptors of full files, to be stored and closed
        self.size = 0
        """Bytes in the file that is appended to."""
        self.room = Room()
        """Blocks of the disk behind its end."""
        self.has_reserve = False

    def open(self) -> End:
        """Lock the folder, and take the file up behind its last good row.

        Raises AUDIT_UNAVAILABLE when another server writes there, when others than the owner may write
        there, when the folder cannot be used, or when no good row is near the end.
        """
        try:
            self._lock()
            self._fd = self._open_current()
            end = self._find_end()
            self.room.keep(self._fd, self.size)
            if (first := first_sequence(self._folder / CURRENT)) is not None:
                self._first = first
        except OSError as error:
            self.close()
            raise _unavailable(self._folder, error.strerror or str(error)) from error
        except BaseException:
            self.close()
            raise
        return end

    def close(self) -> None:
        """Give everything back; nothing happens the second time."""
        for fd in (*self._full, self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._full = []
        self._fd = self._lock_fd = -1

    def write(self, line: bytes, sequence: int) -> None:
        """Append the whole line of this row, from the reserve if need be. Raises OSError."""
        try:
            if os.write(self._fd, line) != len(line):
                os.ftruncate(self._fd, self.size)
                self.room.begin()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.has_reserve:
                raise
            self._use_reserve()
            self.write(line, sequence)
            return
        if self.size == 0:
            self._first = sequence
        self.size += len(line)
        self.room.keep(self._fd, self.size)

    def make_reserve(self) -> None:
        """Have a reserve, if there is none. Raises OSError."""
        if not self.has_reserve:
            set_reserve_aside(self._folder)
            self.has_reserve = True

    def rotate(self) -> None:
        """Begin the next file. Raises OSError; then :meth:`reopen` finds one."""
        current = self._folder / CURRENT
        current.rename(self._folder / closed_name(self._first))
        full, self._fd = self._fd, self._open_current()
        self.size = 0
        self._full.append(full)
        self.room.begin()
        self.room.keep(self._fd, 0)
        with contextlib.suppress(OSError):
            self.room.give_back(full)
        if self.room.problem:  # the two together were too much
            self.room.begin()
            self.room.keep(self._fd, 0)

    def check_in_place(self) -> None:
        """Raise OSError unless the file is still where it is looked for."""
        mine = os.fstat(self._fd)
        try:
            found = os.stat(self._current)  # noqa: PTH116 - asked before every run: a Path's takes three times as long
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (mine.st_dev, mine.st_ino):
            raise OSError(errno.ESTALE, "the file was removed or replaced")

    def reopen(self) -> None:
        """Take what is there now, a new file if need be. Raises OSError."""
        fd = self._open_current()
        new, old = os.fstat(fd), os.fstat(self._fd)
        os.close(self._fd)
        self._fd = fd
        self.room.begin()
        if (new.st_dev, new.st_ino) != (old.st_dev, old.st_ino):
            self.size = new.st_size
        elif new.st_size > self.size:
            os.ftruncate(fd, self.size)  # the beginning of a row that could not be finished

    def unstored(self) -> list[int]:
        """Descriptors of what was written since this was last asked, for :func:`clawbox.audit.files.store`.

        They are the caller's to close. Raises OSError.
        """
        # A copy: the file may be full and replaced while it is stored.
        current = os.dup(self._fd)
        full, self._full = self._full, []
        return [*full, current]

    def _lock(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = self._folder.stat().st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _unavailable(self._folder, "others than its owner can write there (chmod go-w)")
        self._lock_fd = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _unavailable(
                self._folder, "a server that is running writes there: stop it, or set logging.audit_dir"
            ) from None

    def _open_current(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._folder / CURRENT, flags, 0o600)

    def _find_end(self) -> End:
        """The last good row; bytes after it are set aside and described."""
        self.size = os.fstat(self._fd).st_size
        last, end = last_row(self._fd, self.size)
        if last is None:
            last = self._last_of_full_files()
        if end == self.size:
            return End(last, None)
        rest = os.pread(self._fd, self.size - end, end)
        aside = set_torn_aside(self._folder, 0 if last is None else last[0].sequence, rest)
        os.ftruncate(self._fd, end)
        self.size = end
        _log.warning("the end of the audit log was torn and is set aside", file=str(aside), bytes=len(rest))
        return End(last, {"cause": "torn by a crash", "bytes": len(rest), "file": aside.name})

    def _last_of_full_files(self) -> tuple[AuditRow, str] | None:
        for _, path in reversed(closed_files(self._folder)):
            with path.open("rb") as file:
                last, _ = last_row(file.fileno(), os.fstat(file.fileno()).st_size)
            if last is not None:
                return last
        return None

    def _use_reserve(self) -> None:
        """Remove it, so that there is room: what runs already is recorded. Raises OSError."""
        (self._folder / RESERVE).unlink()
        self.has_reserve = False
        _log.error("the disk is full: the audit log uses its reserve", folder=str(self._folder))


def _unavailable(folder: Path, problem: str) -> ClawboxError:
    return ClawboxError(
        Reason.AUDIT_UNAVAILABLE,
        "the audit log in {folder} cannot be written: {problem}",
        folder=folder,
        problem=problem,
    )
