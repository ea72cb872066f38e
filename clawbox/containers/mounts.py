"""What is mounted into a container, and from where. Pure: who calls looks at the file system.

Two rules keep one sandbox from choosing what the next one mounts (docs/security.md, 78): nobody but the
server can write any folder above a source, and no source lies within another.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Final

from clawbox.errors import invalid_field

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WORKSPACE: Final = "/workspace"
TMP: Final = "/tmp"  # noqa: S108 - the container's, not the server's
_MAX_PATH: Final = 4095
_KERNEL: Final = ("/proc", "/sys", "/dev")
_CANONICAL: Final = re.compile(r"/(?:[^/\0]+(?:/[^/\0]+)*)?")


class MountError(Exception):
    """A mount that would not be safe: the server's state folder is not as it must be."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the host's that a container sees at ``target``."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What lstat(2) says of one path."""

    path: str
    mode: int
    uid: int


def is_canonical(path: str) -> bool:
    """Whether a path is absolute and has no empty, ``.`` or ``..`` part, no NUL, and a length that fits."""
    return (
        _CANONICAL.fullmatch(path) is not None
        and len(path.encode("utf-8", "surrogatepass")) <= _MAX_PATH
        and not {".", ".."} & set(path.split("/"))
    )


def is_within(path: str, folder: str) -> bool:
    """Whether a canonical path is a folder or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def overlap(one: str, other: str) -> bool:
    """Whether one of two canonical paths is at, above or below the other."""
    return is_within(one, other) or is_within(other, one)


def is_working_dir(path: str) -> bool:
    """Whether a program may be started there: canonical, and not in /proc, /sys or /dev (CVE-2024-21626)."""
    return is_canonical(path) and not any(is_within(path, folder) for folder in _KERNEL)


def check_working_dir(path: str, *, field: str = "working_dir") -> str:
    """The path, when a program may be started there. Raises INVALID_FIELD."""
    if not is_working_dir(path):
        raise invalid_field(
            field, "must be an absolute path without . and .., and outside /proc, /sys and /dev", "path"
        )
    return path


def is_template_folder(path: str) -> bool:
    """Whether an operator may have programs start there, or be at home: it becomes a field of passwd(5)."""
    return is_working_dir(path) and ":" not in path and path.isprintable()


def check_mounts(mounts: Sequence[Mount]) -> None:
    """Check that sources are apart from each other and that no target hides another. Raises MountError."""
    for mount in mounts:
        for path in (mount.source, mount.target):
            if not is_canonical(path) or path == "/":
                raise MountError(f"{path!r} is no path to mount")
    for one, other in combinations(mounts, 2):
        if overlap(one.source, other.source):
            raise MountError(f"{one.source!r} and {other.source!r} lie within each other")
        if overlap(one.target, other.target):
            raise MountError(f"{one.target!r} and {other.target!r} hide each other")


def check_source(source: str, facts: Iterable[Facts], *, trusted: frozenset[int]) -> None:
    """Check all folders from ``/`` down to a source's own, and that the source is no link.

    ``facts`` are those of each, the source last; ``trusted`` are the uids that are not a sandbox's: root's
    and the server's. A folder that others can write is accepted only where its sticky bit keeps them from
    moving what is below. Raises MountError.
    """
    chain = list(facts)
    parts = source.split("/")[1:]
    expected = ["/", *("/" + "/".join(parts[: count + 1]) for count in range(len(parts)))]
    if not is_canonical(source) or [fact.path for fact in chain] != expected:
        raise MountError(f"{source!r} was not looked at from / down")
    for folder, below in pairwise(chain):
        if not stat.S_ISDIR(folder.mode):
            raise MountError(f"{folder.path!r}, above {source!r}, is not a folder")
        if folder.uid not in trusted:
            raise MountError(f"{folder.path!r}, above {source!r}, belongs to uid {folder.uid}")
        kept = folder.mode & stat.S_ISVTX and below.uid in trusted
        if folder.mode & (stat.S_IWGRP | stat.S_IWOTH) and not kept:
            raise MountError(f"{folder.path!r}, above {source!r}, can be written by others")
    if not (stat.S_ISDIR(chain[-1].mode) or stat.S_ISREG(chain[-1].mode)):
        raise MountError(f"{source!r} is neither a folder nor a file")
