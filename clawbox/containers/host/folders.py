"""The folders with what a container gets from this server besides its workspace (docs/security.md, 88).

``ID/`` is for root alone. In it are ``run/``, which the container sees at /run/clawbox, and its ``passwd``
and ``group``. What is in ``run`` any user can read, as the container's own does; on the host none but root
gets there. None of it belongs to a sandbox, and every mode is set, whatever the umask.

All of it blocks, for less than a millisecond on a disk that is not busy.
"""

from __future__ import annotations

import os
import re
import stat
import uuid
from typing import TYPE_CHECKING, Final

from clawbox.containers.gate import GATE_PATH, GO_PATH, HOLD_PATH, gate_binary, hold_binary
from clawbox.containers.host import ancestors, trees
from clawbox.containers.host.fifo import Fifo
from clawbox.containers.mounts import MountError
from clawbox.containers.spec import HostFolders
from clawbox.containers.users import group_file, passwd_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from clawbox.containers.users import User

RUN: Final = "run"
SOCKET: Final = "proxy.sock"
"""In the run folder: where the sandbox's way out listens."""
_GATE, _HOLD, GO = (path.rsplit("/", 1)[1] for path in (GATE_PATH, HOLD_PATH, GO_PATH))
_OWN: Final = frozenset({_GATE, _HOLD, GO, SOCKET})
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_EXEC: Final = re.compile(r"exec-[A-Za-z0-9-]{1,64}")
_FOREVER: Final = float("inf")


class StateFolder:
    """The folder ``containers/`` of a server's state."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> None:
        """Make the folder when it is not there, and check that containers' files can be in it.

        Raises MountError: someone else could change what is mounted (docs/security.md, 78), or programs in it
        cannot be executed (noexec), which the gate must be.
        """
        prepare(self.root)
        if os.statvfs(self.root).f_flag & os.ST_NOEXEC:
            raise MountError(
                f"{self.root} is on a file system that is mounted noexec: no container would start"
            )

    def container(self, container_id: str) -> ContainerFolder:
        """The folder of one container, whether or not it is there. Raises ValueError for what is no id."""
        if _ID.fullmatch(container_id) is None:
            raise ValueError(f"{container_id!r} is not the id of a container")
        return ContainerFolder(self.root / container_id)

    def ids(self) -> list[str]:
        """Of whom there are folders, half-made ones too."""
        return sorted(path.name for path in named(self.root, _ID))


class ContainerFolder:
    """One container's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / RUN
        """Bound at /run/clawbox, read-only."""
        self.gate = self.run / _GATE
        """As the host sees it."""
        self.passwd = path / "passwd"
        self.group = path / "group"
        self.socket = self.run / SOCKET
        """Where the sidecar is to listen: made later, with mode 0666, by who serves it."""

    def make(self, user: User, home: str, machine: str) -> None:
        """Make it: gate, hold and ``go``, and who ``user`` is; ``machine`` as uname(2) names it.

        Raises FileExistsError when it is there, ValueError for a machine that has no gate, and OSError. What
        was made until then is left, for :meth:`remove`.
        """
        gate, hold = gate_binary(machine), hold_binary(machine)
        self.path.mkdir(0o700)
        outer = os.open(self.path, trees.FOLDER_FLAGS)
        try:
            os.fchmod(outer, 0o700)
            _make_file(outer, self.passwd.name, passwd_file(user, home).encode(), 0o444)
            _make_file(outer, self.group.name, group_file(user).encode(), 0o444)
            os.mkdir(RUN, 0o700, dir_fd=outer)
            run = os.open(RUN, trees.FOLDER_FLAGS, dir_fd=outer)
            try:
                _make_file(run, _GATE, gate, 0o555)
                _make_file(run, _HOLD, hold, 0o555)
                _make_fifo(run, GO)
                os.fchmod(run, 0o555)
            finally:
                os.close(run)
        finally:
            os.close(outer)

    def mounts(self, workspace: Path) -> HostFolders:
        """What is mounted of it, with its workspace."""
        return HostFolders(
            run=str(self.run), passwd=str(self.passwd), group=str(self.group), workspace=str(workspace)
        )

    def write(self, files: Mapping[str, bytes]) -> None:
        """Put files (mode 0444) into the run folder, each at once in place of one of the same name.

        A container that runs sees them, too. Raises ValueError for a name with a meaning here, and OSError.
        """
        for name in files:
            if _NAME.fullmatch(name) is None or name in _OWN or _EXEC.fullmatch(name):
                raise ValueError(f"{name!r} cannot be a file of the run folder")
        run = os.open(self.run, trees.FOLDER_FLAGS)
        try:
            for name, data in files.items():
                temporary = f".{uuid.uuid4().hex}"
                _make_file(run, temporary, data, 0o444)
                os.rename(temporary, name, src_dir_fd=run, dst_dir_fd=run)
        finally:
            os.close(run)

    def fifo(self, name: str = GO) -> Fifo:
        """Open the FIFO before a gate comes to it. Raises OSError."""
        return Fifo.hold(self.run / _fifo_name(name))

    def reattach(self, name: str = GO) -> Fifo | None:
        """Open the FIFO of a gate that has waited through a restart of this server; None: none waits.

        Raises OSError, as when there is no such FIFO.
        """
        return Fifo.reattach(self.run / _fifo_name(name))

    def make_fifo(self, name: str) -> Fifo:
        """Make and open the FIFO of one exec, ``exec-…``. Raises FileExistsError, ValueError, OSError."""
        _fifo_name(name)
        if name == GO:
            raise FileExistsError(name)
        run = os.open(self.run, trees.FOLDER_FLAGS)
        try:
            _make_fifo(run, name)
        finally:
            os.close(run)
        return Fifo.hold(self.run / name)

    def remove_fifo(self, name: str) -> None:
        """Remove the FIFO of an exec; nothing happens when there is none."""
        if _EXEC.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the FIFO of an exec")
        (self.run / name).unlink(missing_ok=True)

    def exec_fifos(self) -> list[str]:
        """The names of the FIFOs of execs, such as an earlier server left."""
        return sorted(entry.name for entry in self.run.iterdir() if _EXEC.fullmatch(entry.name))

    @property
    def exists(self) -> bool:
        """Whether there is something of it, half-made or whole."""
        return os.path.lexists(self.path)

    def remove(self) -> None:
        """Remove it with everything in it; nothing happens when it is not there.

        Raises OSError and TreeError when something of it cannot be removed.
        """
        try:
            folder = os.open(self.path, trees.FOLDER_FLAGS)
        except FileNotFoundError:
            return
        try:
            trees.empty(folder, until=_FOREVER)
        finally:
            os.close(folder)
        self.path.rmdir()


def named(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """The folders in ``folder`` that have such names; whatever else is there is not ours. Raises OSError."""
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [folder / name for name in found if names.fullmatch(name)]


def prepare(root: Path) -> None:
    """Make a folder for root alone when it is not there, and check it and all above. Raises MountError."""
    try:
        try:
            root.mkdir(0o700)
        except FileExistsError:
            pass
        else:
            root.chmod(0o700)
        found = root.lstat()
    except OSError as error:
        raise MountError(f"{root} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise MountError(f"{root} is not a folder of this server's")
    if stat.S_IMODE(found.st_mode) != 0o700:
        raise MountError(f"{root} has mode {stat.S_IMODE(found.st_mode):04o} and must have 0700")
    ancestors.check(str(root))


def _fifo_name(name: str) -> str:
    if name != GO and _EXEC.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not the name of a FIFO")
    return name


def _make_file(folder: int, name: str, data: bytes, mode: int) -> None:
    descriptor = os.open(
        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400, dir_fd=folder
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)


def _make_fifo(folder: int, name: str) -> None:
    os.mkfifo(name, 0o444, dir_fd=folder)
    # Not through a link: nobody but root can put one into this folder.
    os.chmod(name, 0o444, dir_fd=folder)
