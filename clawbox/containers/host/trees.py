"""Folders that a sandbox filled: emptied, measured and given to another user, whatever is in them.

By descriptors and single names, never by a path through them and never through a link, so that nothing
outside is reached however the tree is changed meanwhile. No depth uses up the stack or the descriptors of
this process, and every walk ends in time: what is left then is left as it was. All of it blocks.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    _Visit = Callable[[int, str, os.stat_result], None]

FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH: Final = 1000
"""Names that are read at once: a folder may have more than memory has room for."""
_LEAST_BYTES: Final = 512
"""What an entry counts for at least: an empty file uses the disk, too."""


class TreeError(Exception):
    """Something in a tree can be neither removed nor moved."""


class WalkError(Exception):
    """A tree was not walked to its end: that took too long."""


@dataclass(slots=True)
class _Level:
    """A folder on the way down."""

    name: str
    identity: tuple[int, int]
    below: list[str] = field(default_factory=list)
    """Names of folders in it that are still to be walked."""


def empty(folder: int, *, until: float) -> bool:
    """Remove everything in an open folder; False when ``until`` (:func:`time.monotonic`) came before the end.

    What is a folder is first moved up into ``folder`` itself and emptied there, so that every step is about
    two open folders and a name, in trees of any depth; calling it again goes on. Raises :class:`TreeError`
    for what cannot be removed (something is mounted on it, or it is immutable), when all else is.
    """
    problem: OSError | None = None
    while True:
        removed = 0
        problem = None
        for name, is_folder in _names(folder):
            if time.monotonic() >= until:
                return False
            try:
                if is_folder:
                    if not _remove_folder(folder, name, until=until):
                        return False
                else:
                    os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                problem = error
                continue
            removed += 1
        if not removed:
            break
    if problem is not None:
        raise TreeError(f"{problem.filename!r}: {problem.strerror}") from problem
    return True


def _remove_folder(top: int, name: str, *, until: float) -> bool:
    try:
        opened = os.open(name, FOLDER_FLAGS, dir_fd=top)
    except NotADirectoryError:
        os.unlink(name, dir_fd=top)
        return True
    try:
        if os.fstat(opened).st_dev != os.fstat(top).st_dev:
            raise OSError(errno.EBUSY, "another file system is mounted there", name)
        while True:
            batch = _names(opened)
            if not batch:
                break
            for inner, is_folder in batch:
                if time.monotonic() >= until:
                    return False
                if is_folder:
                    os.rename(inner, f".{uuid.uuid4().hex}", src_dir_fd=opened, dst_dir_fd=top)
                else:
                    os.unlink(inner, dir_fd=opened)
    finally:
        os.close(opened)
    os.rmdir(name, dir_fd=top)
    return True


def measure(folder: int, *, until: float) -> int:
    """Bytes of disk that an open folder and everything in it uses, as ``st_blocks`` says.

    A file with several names counts once, an empty one as 512 bytes. What is moved meanwhile may count not at
    all, or twice. Raises :class:`WalkError` when it takes too long.
    """
    found = os.fstat(folder)
    counted = [max(found.st_blocks * 512, _LEAST_BYTES)]
    seen: set[tuple[int, int]] = set()

    def count(_: int, __: str, facts: os.stat_result) -> None:
        if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
            identity = (facts.st_dev, facts.st_ino)
            if identity in seen:
                return
            seen.add(identity)
        counted.append(max(facts.st_blocks * 512, _LEAST_BYTES))
        if len(counted) > _BATCH:
            counted[:] = [sum(counted)]

    _walk(folder, count, until=until)
    return sum(counted)


def give_to(folder: int, uid: int, gid: int, *, until: float) -> None:
    """Make everything in an open folder, and last the folder itself, belong to a user.

    For one that nobody uses meanwhile. Raises :class:`WalkError`.
    """

    def give(parent: int, name: str, facts: os.stat_result) -> None:
        if (facts.st_uid, facts.st_gid) != (uid, gid):
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)

    _walk(folder, give, until=until)
    os.fchown(folder, uid, gid)


def _names(folder: int) -> list[tuple[str, bool]]:
    """The first names in an open folder, and which are folders' (not links to folders)."""
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, _BATCH)]


def _walk(top: int, visit: _Visit, *, until: float) -> None:
    """Call ``visit(parent, name, lstat)`` for everything below an open folder, on its file system.

    One folder is open at a time. The way back up is ``..``, and is gone on from only when it led to the
    folder that the walk came from; after that was moved the walk finds what is left of its way from the top.
    """
    device = os.fstat(top).st_dev
    current = os.dup(top)
    try:
        levels = [_enter(current, "", visit, until)]
        while True:
            if levels[-1].below:
                name = levels[-1].below.pop()
                following = _open_below(current, name, device)
                if following is None:
                    continue
                os.close(current)
                current = following
                levels.append(_enter(current, name, visit, until))
                continue
            levels.pop()
            if not levels:
                return
            following = os.open("..", FOLDER_FLAGS, dir_fd=current)
            os.close(current)
            current = following
            if _identity(os.fstat(current)) != levels[-1].identity:
                os.close(current)
                current = -1
                current = _find_way(top, levels)
    finally:
        if current >= 0:
            os.close(current)


def _find_way(top: int, levels: list[_Level]) -> int:
    """Open the deepest folder of a way that is still where it was, and forget what was below."""
    current = os.dup(top)
    for depth, level in enumerate(levels[1:], 1):
        following = _open_below(current, level.name, level.identity[0])
        if following is None or _identity(os.fstat(following)) != level.identity:
            if following is not None:
                os.close(following)
            del levels[depth:]
            break
        os.close(current)
        current = following
    return current


def _open_below(folder: int, name: str, device: int) -> int | None:
    """Open a folder in another; None: it is none (any more), or something else is mounted there."""
    try:
        opened = os.open(name, FOLDER_FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None
        raise
    if os.fstat(opened).st_dev != device:
        os.close(opened)
        return None
    return opened


def _enter(folder: int, name: str, visit: _Visit, until: float) -> _Level:
    found = os.fstat(folder)
    level = _Level(name, _identity(found))
    with os.scandir(folder) as entries:
        for entry in entries:
            if time.monotonic() >= until:
                raise WalkError("it took too long")
            try:
                facts = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
                if facts.st_dev != found.st_dev:
                    continue
                visit(folder, entry.name, facts)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(facts.st_mode):
                level.below.append(entry.name)
    return level


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino
