"""What a container has mounted, looked at from outside while only its gate runs (docs/security.md, 79)."""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from clawbox.children import linux
from clawbox.containers.host import ancestors
from clawbox.containers.host.processes import PROC
from clawbox.containers.mounts import Mount, MountError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
_MOUNT_ID: Final = re.compile(r"^mnt_id:\s+([0-9]+)$", re.MULTILINE)
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_OWN: Final = frozenset({"proc", "sysfs", "tmpfs", "devpts", "mqueue"})
"""Kinds of file systems of which a container has new ones."""
_SHARED: Final = frozenset({"cgroup", "cgroup2"})
"""Those of which it sees its own part of the host's."""
_ENGINES: Final = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/sbin/docker-init"})
"""Where an engine mounts files of its own, as it names them: links of the image lead on from there."""


@dataclass(frozen=True, slots=True)
class _MountPoint:
    """A line of mountinfo (proc(5))."""

    mount_id: int
    device: str
    target: str
    kind: str
    shared: bool
    """Whether mounts made here appear elsewhere, or those made elsewhere here."""


class OpenedMounts:
    """A container's mounts, opened before the engine was told of them and kept open until it is checked.

    Being open they keep their inodes, so that equal numbers later are the same files. A context manager.
    """

    def __init__(self, opened: dict[Mount, int]) -> None:
        self._opened = opened

    @classmethod
    def open(cls, mounts: Iterable[Mount]) -> Self:
        """Open every source, not through a link, and check all above it. Blocking. Raises MountError."""
        opened: dict[Mount, int] = {}
        try:
            for mount in mounts:
                ancestors.check(mount.source)
                opened[mount] = os.open(mount.source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (OSError, MountError) as error:
            cls(opened).close()
            if isinstance(error, OSError):
                raise MountError(f"{error.filename!r} cannot be mounted: {error.strerror}") from error
            raise
        return cls(opened)

    def close(self) -> None:
        """Close them all."""
        for descriptor in self._opened.values():
            os.close(descriptor)
        self._opened.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def differences(self, pid: int) -> Iterator[str]:
        """What is mounted otherwise than said, as the process ``pid`` sees it; nothing: all is as it must be.

        A root that can be written, a target with another file than was opened, or writable against what was
        said, one that shares mounts with the host, and any other mount of something that the host has, too.
        Blocking. Raises OSError, as when the process is gone.
        """
        points = _mount_points(pid)
        hosts = {point.device for point in _mount_points("self").values()}
        ours = set()
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not os.fstatvfs(root).f_flag & os.ST_RDONLY:
                yield "its root file system can be written"
            for mount, descriptor in self._opened.items():
                try:
                    seen = _open_in(root, mount.target)
                except OSError as error:
                    yield f"{mount.target} cannot be looked at: {error.strerror}"
                    continue
                try:
                    mount_id = _mount_id(seen)
                    ours.add(mount_id)
                    if not os.path.sameopenfile(seen, descriptor):
                        yield f"{mount.target} is another file than was opened"
                    if mount.read_only and not os.fstatvfs(seen).f_flag & os.ST_RDONLY:
                        yield f"{mount.target} can be written"
                    point = points.get(mount_id)
                    if point is None or point.target == "/":
                        yield f"{mount.target} is not a mount of its own"
                    elif point.shared:
                        yield f"{mount.target} shares mounts with the host"
                finally:
                    os.close(seen)
            ours |= _engines_own(root, points)
        finally:
            os.close(root)
        for point in points.values():
            known = point.mount_id in ours or point.target == "/"
            new = point.kind in _OWN and point.device not in hosts
            if not (known or new or point.kind in _SHARED):
                yield f"{point.target} is mounted too"


def _open_in(root: int, target: str) -> int:
    """Open a path as a process whose root is ``root`` would: links of the image do not lead out of it."""
    return linux.openat2(
        root,
        os.fsencode(target),
        os.O_PATH | os.O_CLOEXEC,
        0,
        _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS,
    )


def _engines_own(root: int, points: Mapping[int, _MountPoint]) -> set[int]:
    """Mounts of the engine's files, wherever they are: most images have /sbin as a link to /usr/sbin.

    A file that is mounted by itself, and no folder in which an image's links find one of these names.
    """
    found = set()
    for target in _ENGINES:
        with suppress(OSError), _opened(root, target) as seen:
            point = points.get(_mount_id(seen))
            if point is None or not stat.S_ISREG(os.fstat(seen).st_mode):
                continue
            with _opened(root, point.target) as mounted:
                if os.path.sameopenfile(seen, mounted):
                    found.add(point.mount_id)
    return found


@contextmanager
def _opened(root: int, target: str) -> Iterator[int]:
    descriptor = _open_in(root, target)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _mount_id(descriptor: int) -> int:
    found = _MOUNT_ID.search((PROC / f"self/fdinfo/{descriptor}").read_text("ascii"))
    return int(found[1]) if found else -1


def _mount_points(pid: int | str) -> dict[int, _MountPoint]:
    points = {}
    with (PROC / f"{pid}/mountinfo").open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            end = fields.index("-")
            target = _ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[4])
            with suppress(ValueError):
                point = _MountPoint(
                    int(fields[0]), fields[2], target, fields[end + 1], shared=bool(fields[6:end])
                )
                points[point.mount_id] = point
    return points
