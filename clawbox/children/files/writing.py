"""Making files and folders: a file is there wholly, or everything is as it was."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final, Self

from clawbox.children import linux
from clawbox.children.files.beneath import (
    PERMISSIONS,
    FileProblem,
    check_regular,
    closing,
    describe,
    describe_entry,
    look,
    open_above,
    open_beneath,
    open_regular,
)
from clawbox.children.files.messages import Commit, How, Problem
from clawbox.children.files.names import check_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from clawbox.children.files.messages import Chunk, FileInfo, MakeDirectory, Write

_FILE_MODE: Final = 0o644
_FOLDER_MODE: Final = 0o755
_NO_UNNAMED_FILES: Final = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT))


def write(folder: int, request: Write, receive: Callable[[], Chunk | Commit]) -> FileInfo:
    """Write a file with what is received until Commit. Raises :class:`FileProblem` and OSError."""
    names = check_path(request.path)
    if request.make_parents and len(names) > 1:
        _make_folders(folder, names[:-1])
    with closing(open_above(folder, names)) as above:
        name = names[-1]
        existing = look(above, name)
        if existing is not None:
            if request.how is How.CREATE:
                raise FileProblem(Problem.EXISTS)
            check_regular(existing)
            if request.how is How.APPEND:
                return _append(above, name, request, receive)
        mode = existing.st_mode if existing is not None and request.mode is None else request.mode
        with _Draft(above, request.draft) as draft:
            _fill(draft.descriptor, request, receive, already=0)
            os.fchmod(draft.descriptor, (_FILE_MODE if mode is None else mode) & PERMISSIONS)
            draft.publish(name, replace=request.how is not How.CREATE)
            return describe(request.path, os.fstat(draft.descriptor))


def make_directory(folder: int, request: MakeDirectory) -> FileInfo:
    """Make a folder. Raises :class:`FileProblem` and OSError."""
    names = check_path(request.path)
    if request.make_parents and len(names) > 1:
        _make_folders(folder, names[:-1])
    with closing(open_above(folder, names)) as above:
        try:
            os.mkdir(names[-1], request.mode & PERMISSIONS, dir_fd=above)
        except FileExistsError:
            if not request.make_parents:
                raise
        info = describe_entry(above, names[-1], request.path)
        if info is None:
            raise FileProblem(Problem.CHANGED)
    if request.make_parents:  # it may have been there, as something else or as a link to a folder inside
        os.close(open_beneath(folder, request.path, os.O_PATH | os.O_DIRECTORY))
    return info


def _make_folders(folder: int, names: list[bytes]) -> None:
    """Each is looked up from the top, so that links that stay inside are followed like everywhere."""
    above = os.dup(folder)
    try:
        for count, name in enumerate(names, 1):
            path = b"/".join(names[:count])
            try:
                below = open_beneath(folder, path, os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, _FOLDER_MODE, dir_fd=above)
                below = open_beneath(folder, path, os.O_PATH | os.O_DIRECTORY)
            os.close(above)
            above = below
    finally:
        os.close(above)


def _append(above: int, name: bytes, request: Write, receive: Callable[[], Chunk | Commit]) -> FileInfo:
    with closing(open_regular(above, name, os.O_WRONLY | os.O_APPEND)) as file:
        already = os.fstat(file).st_size
        _fill(file, request, receive, already=already)
        if request.mode is not None:
            os.fchmod(file, request.mode & PERMISSIONS)
        return describe(request.path, os.fstat(file))


def _fill(file: int, request: Write, receive: Callable[[], Chunk | Commit], *, already: int) -> None:
    written = 0
    while not isinstance(message := receive(), Commit):
        written += len(message.data)
        if request.size is not None and written > request.size:
            raise FileProblem(Problem.WRONG_SIZE)
        if already + written > request.most_bytes:
            raise FileProblem(Problem.TOO_LARGE)
        view = memoryview(message.data)
        while view:
            view = view[os.write(file, view) :]
    if request.size is not None and written != request.size:
        raise FileProblem(Problem.WRONG_SIZE)


class _Draft:
    """A file that nobody sees until it is published.

    Where the file system and the kernel (6.10) can, it has no name at all until then, so that nothing is left
    of it however this process ends; elsewhere it has one that leaving removes.
    """

    def __init__(self, above: int, name: bytes) -> None:
        self._above = above
        self._name = name
        self._named = False
        self.descriptor = self._open_unnamed()
        if self.descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self.descriptor = open_beneath(above, name, flags, 0o600, links=False)
            self._named = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
        if self._named:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._above)

    def publish(self, name: bytes, *, replace: bool) -> None:
        """Have it be there under ``name``. Raises FileExistsError when that is taken and not replaced."""
        if not self._named:
            try:
                linux.link_open_file(self.descriptor, self._above, name)
            except FileExistsError:
                if not replace:
                    raise
            else:
                return
            linux.link_open_file(self.descriptor, self._above, self._name)
            self._named = True
        if replace:
            os.rename(self._name, name, src_dir_fd=self._above, dst_dir_fd=self._above)
            self._named = False
        else:
            os.link(self._name, name, src_dir_fd=self._above, dst_dir_fd=self._above, follow_symlinks=False)

    def _open_unnamed(self) -> int:
        """Minus one where a file without a name cannot be had, or could not be given one later."""
        try:
            descriptor = open_beneath(self._above, b".", os.O_TMPFILE | os.O_WRONLY, 0o600)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
            return -1
        try:
            linux.link_open_file(descriptor, self._above, b".")
        except FileExistsError:
            return descriptor  # as far as the name, which is refused in any case, nothing was wrong
        except OSError:
            os.close(descriptor)
            return -1
        raise AssertionError("unreachable: nothing can be named '.'")
