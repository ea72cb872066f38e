"""The two folders of a container that callers may work in: ``/workspace`` and ``/tmp``.

What is done there is done by a files child (:mod:`clawbox.children.files`; docs/security.md, 81), whose root
is the folder and whose user is the container's. Here it is decided which folder a path is in, and that folder
is opened: the workspace as control keeps it, ``/tmp`` through the container's first process, for its tmpfs is
nowhere else.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.children.files.folder import FileLimits, Folder
from clawbox.children.kind import Place
from clawbox.containers.host.processes import ProcessGoneError, check_same
from clawbox.containers.mounts import TMP, WORKSPACE
from clawbox.containers.states import Operation, require
from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.uninterrupted import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from clawbox.children.files.folder import Forker
    from clawbox.children.files.messages import FileInfo
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.record import Container

MAX_PATH_BYTES: Final = 4096
"""Of an absolute path: Linux' PATH_MAX."""
LIMITS: Final = FileLimits(seconds=6 * 3600.0)
"""A file of 16 GiB at a megabyte a second; who is slow at either end is cut long before, by the edge."""

_AREAS: Final = (WORKSPACE.encode(), TMP.encode())
_OPEN: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ITSELF: Final = b"."


@dataclass(frozen=True, slots=True)
class ContainerPath:
    """An absolute path in a container, taken apart."""

    area: bytes
    """``/workspace`` or ``/tmp``."""
    below: bytes
    """Relative to the area; ``.`` is the area itself."""

    @classmethod
    def parse(cls, path: bytes, *, itself: bool) -> ContainerPath:
        """Read a path in its one spelling. ``itself``: whether it may be an area, not only below one.

        Raises INVALID_FIELD for ``path``.
        """
        if not path:
            raise _refused("must be set", "required")
        if len(path) > MAX_PATH_BYTES:
            raise _refused(f"is longer than {MAX_PATH_BYTES} bytes", "max_length")
        if b"\0" in path:
            raise _refused("has a NUL byte")
        if not path.startswith(b"/"):
            raise _refused("is not absolute")
        if any(name in {b"", b".", b".."} for name in path[1:].split(b"/")):
            raise _refused('has an empty name, "." or ".." in it')
        for area in _AREAS:
            if path == area:
                if not itself:
                    raise _refused(f"is {area.decode()} itself")
                return cls(area, _ITSELF)
            if path.startswith(area + b"/"):
                return cls(area, path[len(area) + 1 :])
        raise _refused(f"is not below {WORKSPACE} or {TMP}")

    def whole(self, below: bytes) -> bytes:
        """The absolute path of something in the same area."""
        return self.area if below == _ITSELF else self.area + b"/" + below


@dataclass(frozen=True, slots=True)
class Opened:
    """A path that can be worked at."""

    folder: Folder
    path: ContainerPath

    def told(self, info: FileInfo) -> FileInfo:
        """What the folder says, with the path as the container has it."""
        return msgspec.structs.replace(info, path=self.path.whole(info.path))


class ContainerFiles:
    """Opens the folders of containers, for one operation each."""

    def __init__(self, forker: Forker, limits: FileLimits = LIMITS) -> None:
        self._forker = forker
        self._limits = limits

    @contextlib.asynccontextmanager
    async def open(
        self,
        container: Container,
        quarters: Callable[[str], Quarters],
        path: ContainerPath,
        operation: Operation,
    ) -> AsyncIterator[Opened]:
        """The folder that ``path`` is in, for READ or WRITE; it is closed in the end.

        ``quarters`` is asked for what control holds of the container. Raises WRONG_STATE, FILE_DENIED for a
        write to a workspace that is mounted read-only, and NOT_SERVED where the runtime keeps ``/tmp`` to
        itself.
        """
        require(container.status, operation, container.container_id)
        in_workspace = path.area == WORKSPACE.encode()
        if operation is Operation.WRITE and in_workspace and container.identity.workspace_read_only:
            raise ClawboxError(Reason.FILE_DENIED, "{path} is mounted read-only", path=WORKSPACE)
        found = quarters(container.container_id)
        if in_workspace:
            root = await self._open_workspace(container, found)
        else:
            root = await self._open_tmp(container, found)
        try:
            place = Place(root, found.user.uid, found.user.gid)
            yield Opened(Folder(self._forker, place, self._limits, shown=path.whole), path)
        finally:
            os.close(root)

    async def _open_workspace(self, container: Container, quarters: Quarters) -> int:
        try:
            return await opened(quarters.workspace.open, os.close)
        except FileNotFoundError:
            raise _gone(container, WORKSPACE) from None

    async def _open_tmp(self, container: Container, quarters: Quarters) -> int:
        if not quarters.pid:
            raise _gone(container, TMP)
        try:
            # Both as they are now, and a descriptor of our own: it may end, and be let go, at any time.
            pid, pidfd = quarters.pid, os.dup(quarters.pidfd)
            return await opened(lambda: _open_tmp_and_let_go(pid, pidfd), os.close)
        except ProcessGoneError:
            raise _gone(container, TMP) from None
        except OSError as error:
            raise ClawboxError(
                Reason.NOT_SERVED,
                "{path} of this container cannot be worked in from outside ({problem})",
                path=TMP,
                problem=error.strerror,
            ) from error


def _open_tmp_and_let_go(pid: int, pidfd: int) -> int:
    try:
        return open_tmp(pid, pidfd)
    finally:
        os.close(pidfd)


def open_tmp(pid: int, pidfd: int) -> int:
    """A descriptor of the ``/tmp`` of a container's process. Blocking.

    Raises ProcessGoneError when it has ended, and OSError for anything but a tmpfs that this process has
    nowhere: what is at that path is the container's to say, so it must be what was mounted there for it (81).
    """
    try:
        tmp = _find_tmp(pid)
    except OSError:
        check_same(pid, pidfd)  # what is missing may be the process
        raise
    try:
        check_same(pid, pidfd)  # nobody else had its number meanwhile
    except BaseException:
        os.close(tmp)
        raise
    return tmp


def _find_tmp(pid: int) -> int:
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tmp = os.open(TMP[1:], _OPEN, dir_fd=root)
    finally:
        os.close(root)
    try:
        _check_tmpfs(pid, os.fstat(tmp).st_dev)
    except BaseException:
        os.close(tmp)
        raise
    return tmp


def _check_tmpfs(pid: int, device: int) -> None:
    number = f"{os.major(device)}:{os.minor(device)}"
    theirs = [
        mount
        for mount in _mounts(f"/proc/{pid}/mountinfo")
        if mount[2:5] == [number, "/", TMP] and mount[mount.index("-") + 1] == "tmpfs"
    ]
    ours = {mount[2] for mount in _mounts("/proc/self/mountinfo")}
    if not theirs or number in ours:
        raise OSError(0, "it is no tmpfs of the container's own")


def _mounts(path: str) -> list[list[str]]:
    """The fields of each mount (proc(5), mountinfo)."""
    return [line.split(" ") for line in Path(path).read_text("utf-8", "surrogateescape").splitlines()]


def _gone(container: Container, area: str) -> ClawboxError:
    return ClawboxError(
        Reason.WRONG_STATE,
        "the container {container_id} is {state}, and its {path} is gone",
        precondition=("STATE", container.container_id),
        container_id=container.container_id,
        state=container.status.state.name,
        path=area,
    )


def _refused(why: str, rule: str = "path") -> ClawboxError:
    return invalid_field("path", why, rule)
