"""The Unix socket on which a sandbox finds its sidecar.

Its folder is the one that a sandbox gets to see, and holds nothing that belongs to the sandbox: root's, 0555,
with the socket, 0666. The folder above is 0700, so that on this machine nobody else reaches the socket by its
path; who is let in is the token's matter in any case.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

BACKLOG: Final = 128
"""Connections that wait in the kernel to be accepted."""

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class UnsafeFolderError(Exception):
    """The folder above is not this process's alone; the text says what is wrong."""


class UnixListener:
    """Listens at ``path`` from the time it is made until it is closed, whoever accepts.

    ``path.parent`` is made if need be, and removed at the end unless others put something there;
    ``path.parent.parent`` is made 0700 if it is not there. What an earlier process left at ``path`` is
    replaced if it is a socket. Raises :class:`UnsafeFolderError` when the folder above is another user's or
    open to others, and OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        above, folder = path.parent.parent, path.parent
        above.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = above.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise UnsafeFolderError(f"{above} must be a folder of this process's user, with mode 0700")
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = os.open(folder, _FOLDER_FLAGS)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listen()
        except BaseException:
            self.socket.close()
            os.close(self._folder)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more, and remove the socket and its folder; nothing happens the second time."""
        if self._folder < 0:
            return
        self.socket.close()
        with contextlib.suppress(OSError):
            os.fchmod(self._folder, 0o700)
            os.unlink(self.path.name, dir_fd=self._folder)
        os.close(self._folder)
        self._folder = -1
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def _listen(self) -> None:
        os.fchmod(self._folder, 0o700)
        self._remove_stale()
        # By the folder's descriptor: a name has at most 107 bytes (unix(7)), a path may be longer.
        self.socket.bind(f"/proc/self/fd/{self._folder}/{self.path.name}")
        try:
            os.chmod(self.path.name, 0o666, dir_fd=self._folder)  # noqa: S103 - the token decides
            os.fchmod(self._folder, 0o555)
            self.socket.listen(BACKLOG)
            self.socket.setblocking(False)  # noqa: FBT003
        except BaseException:
            os.unlink(self.path.name, dir_fd=self._folder)
            raise

    def _remove_stale(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False)
            if stat.S_ISSOCK(found.st_mode):
                os.unlink(self.path.name, dir_fd=self._folder)
