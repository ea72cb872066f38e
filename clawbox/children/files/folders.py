"""Listing and removing: iterative, so that no tree is too deep, and counted, so that none has no end."""

from __future__ import annotations

import errno
import heapq
import os
import stat
from typing import TYPE_CHECKING

from clawbox.children.files.beneath import (
    FileProblem,
    closing,
    describe_entry,
    identity,
    look,
    open_above,
    open_beneath,
    open_parent_of,
)
from clawbox.children.files.messages import Problem, Type
from clawbox.children.files.names import MAX_PATH_BYTES, check_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clawbox.children.files.messages import FileInfo, List, Remove

_READING = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK


class Budget:
    """How many entries may still be looked at."""

    def __init__(self, most: int) -> None:
        self._left = most

    def spend(self) -> None:
        """One more. Raises :class:`FileProblem`."""
        if not self._left:
            raise FileProblem(Problem.TOO_MANY)
        self._left -= 1


def list_folder(folder: int, request: List, tell: Callable[[FileInfo], None]) -> bool:
    """``tell`` what is in a folder, at most ``limit`` entries; returns whether there are more.

    Names come in byte order, one level with as much memory as the limit asks for, however many there are. A
    recursive listing tells each folder before what is in it, follows no link, and leaves out what lies so
    deep that its path could not be used.
    """
    check_path(request.path, itself=True)
    budget = Budget(request.most_entries)
    told = 0
    with closing(open_beneath(folder, request.path, _READING)) as top:
        waiting = [b""]
        while waiting:
            below = waiting.pop()
            try:
                opened = open_beneath(top, below or b".", _READING, links=False)
            except OSError as error:
                if below and error.errno in {
                    errno.ENOENT,
                    errno.ENOTDIR,
                    errno.ELOOP,
                    errno.EXDEV,
                    errno.EACCES,
                }:
                    continue  # it went away, or nothing of it is to be seen
                raise
            with closing(opened) as current:
                wanted = request.limit - told + 1
                after = b"" if request.recursive else request.after
                names = heapq.nsmallest(wanted, (n for n in _names(current, budget) if n > after))
                folders = []
                for name in names:
                    path = b"/".join((below, name)) if below else name
                    if len(path) > MAX_PATH_BYTES:
                        continue
                    info = describe_entry(current, name, path)
                    if info is None:
                        continue
                    if told == request.limit:
                        return True
                    tell(info)
                    told += 1
                    if request.recursive and info.type is Type.DIRECTORY:
                        folders.append(path)
                waiting += reversed(folders)
    return False


def remove(folder: int, request: Remove) -> int:
    """Remove what a path names, never what a link points to; returns how many names are gone."""
    names = check_path(request.path)
    with closing(open_above(folder, names)) as above:
        found = look(above, names[-1])
        if found is None:
            raise FileProblem(Problem.NOT_FOUND)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(names[-1], dir_fd=above)
            return 1
        if not request.recursive:
            os.rmdir(names[-1], dir_fd=above)
            return 1
        return _Removal(Budget(request.most_entries)).remove_tree(above, names[-1])


class _Removal:
    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._removed = 0

    def remove_tree(self, above: int, name: bytes) -> int:
        """Goes down into one folder after the other, and up again by ``..``, with one descriptor.

        A folder that was moved meanwhile has another one above it: that is noticed, and ends it.
        """
        way: list[tuple[bytes, tuple[int, int]]] = []
        current = _open_subfolder(above, name)
        try:
            while True:
                below = self._clear(current)
                if below is not None:
                    subfolder = _open_subfolder(current, below)
                    way.append((below, identity(os.fstat(current))))
                elif not way:
                    break
                else:
                    below, expected = way.pop()
                    subfolder = open_parent_of(current)
                    if identity(os.fstat(subfolder)) != expected:
                        os.close(subfolder)
                        raise FileProblem(Problem.CHANGED)
                    # Not empty again, or gone, if somebody is at work there: the next look at it tells.
                    self._remove_folder(subfolder, below)
                os.close(current)
                current = subfolder
        finally:
            os.close(current)
        os.rmdir(name, dir_fd=above)
        return self._removed + 1

    def _clear(self, folder: int) -> bytes | None:
        """Remove all that can be removed at once; returns the name of a folder that is not empty."""
        again = True
        while again:
            again = False
            # Reading goes on where names are removed, and may then pass over some.
            for name, is_folder in _entries(folder, self._budget):
                again = True
                if not is_folder:
                    try:
                        os.unlink(name, dir_fd=folder)
                    except FileNotFoundError:
                        continue
                    self._removed += 1
                elif not self._remove_folder(folder, name):
                    return name
        return None

    def _remove_folder(self, folder: int, name: bytes) -> bool:
        """Whether it is gone."""
        try:
            os.rmdir(name, dir_fd=folder)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            return False
        self._removed += 1
        return True


def _open_subfolder(folder: int, name: bytes) -> int:
    return open_beneath(folder, name, _READING, links=False)


def _names(folder: int, budget: Budget) -> Iterator[bytes]:
    return (name for name, _ in _entries(folder, budget))


def _entries(folder: int, budget: Budget) -> Iterator[tuple[bytes, bool]]:
    """The names in a folder, from its beginning, and whether each is a folder itself."""
    with os.scandir(folder) as entries:
        for entry in entries:
            budget.spend()
            yield os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)
