"""Opening below a folder, so that nothing in it leads elsewhere (openat2(2); docs/security.md, 81)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from clawbox.children import linux
from clawbox.children.files.messages import FileInfo, Problem, Type

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_XDEV: Final = 0x01
_NO_MAGICLINKS: Final = 0x02
_NO_SYMLINKS: Final = 0x04
_BENEATH: Final = 0x08
_RESOLVE: Final = _BENEATH | _NO_MAGICLINKS | _NO_XDEV

_TRIES: Final = 100
"""How often something is looked up again that somebody is moving at that moment."""

PERMISSIONS: Final = 0o777

_TYPES: Final = {
    stat.S_IFREG: Type.REGULAR,
    stat.S_IFDIR: Type.DIRECTORY,
    stat.S_IFLNK: Type.SYMLINK,
}


class FileProblem(Exception):  # noqa: N818 - what is found, as Problem says it
    """Something cannot be done, for a reason that is no error number's."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.value)


def open_beneath(folder: int, path: bytes, flags: int, mode: int = 0, *, links: bool = True) -> int:
    """A descriptor, close-on-exec. Symbolic links that stay inside are followed unless ``links`` is false.

    Raises OSError: EXDEV for what leads outside or into another file system, ELOOP for a link where none is
    followed.
    """
    resolve = _RESOLVE if links else _RESOLVE | _NO_SYMLINKS
    for _ in range(_TRIES):
        # EAGAIN: something was renamed while a link's ".." was resolved, so nobody can say where it leads.
        with contextlib.suppress(BlockingIOError):
            return linux.openat2(folder, path, flags | os.O_CLOEXEC, mode, resolve)
    raise FileProblem(Problem.CHANGED)


def open_above(folder: int, names: list[bytes]) -> int:
    """The folder that the last of ``names`` is in; to be named through, not read."""
    return open_beneath(folder, b"/".join(names[:-1]) or b".", os.O_PATH | os.O_DIRECTORY)


def open_parent_of(subfolder: int) -> int:
    """The folder above one that was reached by going down; whoever asks checks that it is the one."""
    resolve = _NO_SYMLINKS | _NO_MAGICLINKS | _NO_XDEV
    return linux.openat2(subfolder, b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, resolve)


def open_regular(folder: int, path: bytes, flags: int) -> int:
    """Open a regular file and nothing else: opening a FIFO could wait, and opening a device do something.

    It is looked at without being opened (O_PATH) and then opened; if it is another one by then, again.
    """
    for _ in range(_TRIES):
        with closing(open_beneath(folder, path, os.O_PATH)) as seen:
            found = os.fstat(seen)
            check_regular(found)
            # It does not wait even if it is a FIFO by now, or somebody has a lease on it.
            opened = open_beneath(folder, path, flags | os.O_NONBLOCK | os.O_NOCTTY)
            if identity(os.fstat(opened)) == identity(found):
                return opened
            os.close(opened)
    raise FileProblem(Problem.CHANGED)


def check_regular(found: os.stat_result) -> None:
    """Raise :class:`FileProblem` for anything but a regular file."""
    if stat.S_ISDIR(found.st_mode):
        raise FileProblem(Problem.IS_A_FOLDER)
    if not stat.S_ISREG(found.st_mode):
        raise FileProblem(Problem.NOT_REGULAR)


def look(folder: int, name: bytes) -> os.stat_result | None:
    """What a name in a folder is, without following it; None when there is nothing."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def identity(found: os.stat_result) -> tuple[int, int]:
    """Which file it is."""
    return found.st_dev, found.st_ino


def describe(path: bytes, found: os.stat_result, link_target: bytes = b"") -> FileInfo:
    """What control is told of it."""
    return FileInfo(
        path=path,
        type=_TYPES.get(stat.S_IFMT(found.st_mode), Type.OTHER),
        size=found.st_size,
        mode=found.st_mode & PERMISSIONS,
        modified_ns=found.st_mtime_ns,
        uid=found.st_uid,
        gid=found.st_gid,
        link_target=link_target,
    )


def describe_entry(folder: int, name: bytes, path: bytes) -> FileInfo | None:
    """What control is told of a name in a folder; None when it is gone."""
    found = look(folder, name)
    if found is None:
        return None
    target = b""
    if stat.S_ISLNK(found.st_mode):
        try:
            target = os.readlink(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOENT}:  # it is none any more
                raise
            return None
    return describe(path, found, target)


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close it in the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)
