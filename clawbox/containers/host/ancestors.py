"""Looking at the folders above what is mounted into a container (docs/security.md, 78)."""

from __future__ import annotations

import os

from clawbox.containers.mounts import Facts, MountError, check_source, is_canonical


def look_at(source: str) -> list[Facts]:
    """What lstat(2) says of ``/`` and everything from there down to ``source``, itself last.

    Blocking. Raises MountError for a path that is not absolute and canonical, and where there is nothing.
    """
    if not is_canonical(source):
        raise MountError(f"{source!r} is no path to mount")
    facts, path = [], ""
    for part in source.rstrip("/").split("/"):
        path = f"{path.rstrip('/')}/{part}"
        try:
            found = os.lstat(path)
        except OSError as error:
            raise MountError(f"{path!r} cannot be looked at: {error.strerror}") from None
        facts.append(Facts(path, found.st_mode, found.st_uid))
    return facts


def check(source: str) -> None:
    """Check, now, that nobody but root and this server could put something else at ``source``.

    Blocking. Once before an engine is told of it, and once more before what it started goes on. Raises
    MountError.
    """
    check_source(source, look_at(source), trusted=frozenset({0, os.geteuid()}))
