"""Which paths are accepted: relative to the folder, as bytes, in the one spelling that each has."""

from __future__ import annotations

from typing import Final

MAX_PATH_BYTES: Final = 4095
"""PATH_MAX of Linux without the NUL at its end."""
MAX_NAME_BYTES: Final = 255
FOLDER_ITSELF: Final = b"."


class PathError(ValueError):
    """A path that is refused before anything is done with it; the text says why, and quotes nothing."""


def check_path(path: bytes, *, itself: bool = False) -> list[bytes]:
    """The names that ``path`` is made of; none for ``b"."``, which ``itself`` allows.

    Raises :class:`PathError`.
    """
    if not path:
        raise PathError("is empty")
    if len(path) > MAX_PATH_BYTES:
        raise PathError(f"is longer than {MAX_PATH_BYTES} bytes")
    if b"\0" in path:
        raise PathError("has a NUL byte")
    if path == FOLDER_ITSELF:
        if itself:
            return []
        raise PathError("is the folder itself")
    if path.startswith(b"/"):
        raise PathError("is absolute")
    names = path.split(b"/")
    for name in names:
        if name in {b"", b".", b".."}:
            raise PathError('has an empty name, "." or ".." in it')
        if len(name) > MAX_NAME_BYTES:
            raise PathError(f"has a name longer than {MAX_NAME_BYTES} bytes")
    return names
