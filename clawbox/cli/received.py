"""Files that a container sends, put into a local folder that nothing it says can lead out of.

Names come from a sandbox, or from a server that lies for one. Each is one name of one entry: never a path,
never ``..``. Everything is opened relative to the descriptor of the folder above it without following links,
and files appear whole, by rename (rule 98; CVE-2019-11246 of kubectl and CVE-2018-15664 of Docker are what
happens elsewhere).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import TYPE_CHECKING, Self

from clawbox.cli.errors import CliError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_PATH = 4096


def entry_name(path: bytes, folder: bytes) -> bytes:
    """The name of an entry that was listed in ``folder``. Raises CliError when it is no plain name in it."""
    prefix = folder.rstrip(b"/") + b"/"
    name = path.removeprefix(prefix)
    if not path.startswith(prefix) or name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise CliError(
            f"refused: a file in {os.fsdecode(folder)!r} that calls itself {os.fsdecode(path)!r}",
            hint="Nothing was written for it",
            code=ExitCode.FAILED,
        )
    if len(path) > _LONGEST_PATH:
        raise CliError("refused: a path of more than 4,096 bytes", code=ExitCode.FAILED)
    return name


class ReceivedTree:
    """A local folder into which entries are put by the names that lead to them. Close it, or use ``with``."""

    def __init__(self, root: bytes) -> None:
        # The root is what the user named: links in it are the user's own.
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._modes: list[tuple[tuple[bytes, ...], int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    @contextlib.contextmanager
    def _folder(self, names: tuple[bytes, ...]) -> Iterator[int]:
        descriptor = os.dup(self._root)
        try:
            for name in names:
                below = os.open(name, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def make_folder(self, names: tuple[bytes, ...], mode: int) -> None:
        """Makes a folder, or takes the one that is there. Raises OSError, for a link in its place too."""
        with self._folder(names[:-1]) as above:
            try:
                os.mkdir(names[-1], 0o700, dir_fd=above)
            except FileExistsError:
                os.close(os.open(names[-1], _FOLDER, dir_fd=above))
                return
        self._modes.append((names, mode & 0o777))

    def write_file(self, names: tuple[bytes, ...], chunks: Iterable[bytes], mode: int) -> None:
        """Puts a file there when all its bytes have come; a link of that name is replaced, not followed.

        Raises OSError.
        """
        with self._folder(names[:-1]) as above:
            temporary = f".clawbox-{secrets.token_hex(8)}".encode()
            descriptor = os.open(temporary, _NEW_FILE, 0o600, dir_fd=above)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                    os.fchmod(file.fileno(), mode & 0o777)
                os.rename(temporary, names[-1], src_dir_fd=above, dst_dir_fd=above)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=above)
                raise

    def finish(self) -> None:
        """Gives the folders that were made their permission bits, now that everything is in them."""
        for names, mode in reversed(self._modes):
            with self._folder(names) as descriptor:
                os.fchmod(descriptor, mode)


def is_folder(path: bytes) -> bool:
    """Whether a path of the user's names a folder, links followed."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - paths are bytes
    except FileNotFoundError:
        return False
