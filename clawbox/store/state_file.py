"""The file of an SQLite state: private, whole, and one server's at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Have the state file to oneself; it and its folder are made where they are missing.

    The lock is one of the open file (flock(2)), on a file of its own beside the state: SQLite's own locks are
    the process's, and would let two servers in one process through. Raises STATE_UNAVAILABLE.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise unusable(path, "others than its owner can write to its folder (chmod go-w)")
            lock = _open_private(path.with_name(f"{path.name}.lock"))
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise unusable(path, "a server that is running has it: stop it, or set state.url") from None
            # SQLite gives its other files the mode and owner of this one.
            os.close(_open_private(path))
        except OSError as error:
            raise unusable(path, error.strerror or str(error)) from error
        yield


def unusable(path: object, problem: str) -> ClawboxError:
    """The error for a state that cannot be used at all; nothing of it was changed."""
    return ClawboxError(
        Reason.STATE_UNAVAILABLE,
        "the state in {place} cannot be used: {problem}",
        place=path,
        problem=problem,
    )


def _open_private(path: Path) -> int:
    """Open or make a file that is this user's alone; raises STATE_UNAVAILABLE and OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    if problem := _fault(os.fstat(descriptor)):
        os.close(descriptor)
        raise unusable(path, problem)
    return descriptor


def _fault(found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file"
    if found.st_uid != os.geteuid():
        return "it is another user's"
    if found.st_mode & _OTHERS:
        return "others than its owner may open it (chmod 600)"
    return ""
