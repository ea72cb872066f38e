"""The folders that containers see at /workspace: fresh ones that go with them, and kept ones with names.

::

    OWNER/ID/files    what is mounted, the sandbox's own, 0700
    OWNER/ID/facts    whose it was last; outside of what is mounted
    trash/…           what is being deleted, by whichever server finds it

OWNER is a hash, so that neither an owner's name nor that of a workspace can lead to another's. Only root gets
below the root folder on the host, so one sandbox's uid is no right to another's files that have the same.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import stat
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import msgspec

from clawbox.containers.host import trees
from clawbox.containers.host.folders import prepare
from clawbox.containers.mounts import MountError
from clawbox.containers.uninterrupted import uninterrupted
from clawbox.errors import ClawboxError, Reason, invalid_field

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path
    from types import TracebackType

    from clawbox.containers.users import User

_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_FILES: Final = "files"
_FACTS: Final = "facts"
_TRASH: Final = "trash"
_GIVE_SECONDS: Final = 60.0
_MEASURE_SECONDS: Final = 20.0
_DELETE_SECONDS: Final = 10.0
"""How long a caller waits for a deletion; it goes on after that."""
_SLICE_SECONDS: Final = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A folder that one container has."""

    owner: str
    workspace_id: str
    path: Path
    """What is mounted."""
    kept: bool
    """Whether it is meant to be there after the container."""
    container_id: str

    def open(self) -> int:
        """A descriptor of the folder, the caller's to close. Blocking. Raises OSError."""
        return os.open(self.path, trees.FOLDER_FLAGS)


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a workspace."""

    container_id: str
    """Who had it last."""
    kept: bool
    uid: int = -1
    """To whom everything in it belongs; -1: that is not sure."""
    gid: int = -1


class Workspaces:
    """All workspaces of one server; an async context manager, which deletes what is to be deleted.

    Entering raises MountError when others could change what is mounted (docs/security.md, 78), and when
    another server has the root folder: either would take the other's workspaces for abandoned ones.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        """Most that one may hold."""
        self._trash = root / _TRASH
        self._users: dict[tuple[str, str], str] = {}
        """Which container has which workspace, by owner and id."""
        self._held = AsyncExitStack()
        self._lock = -1
        self._thrown = asyncio.Event()
        self._deleted: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        self._held.callback(os.close, self._lock)
        group = await self._held.enter_async_context(asyncio.TaskGroup())
        sweeper = group.create_task(self._sweep(), name="delete workspaces")
        self._held.callback(sweeper.cancel)
        self._thrown.set()  # what an earlier server left
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()

    async def acquire(
        self, owner: str, workspace_id: str, *, container_id: str, user: User, kept: bool | None = None
    ) -> Workspace:
        """The workspace of that name, or a fresh one for an empty name, for one container alone.

        Made when it is not there; everything in it belongs to ``user`` from now on. ``kept``: whether it is
        meant to be there after the container; None: one that has a name is. Raises INVALID_FIELD for what is
        no name, WRONG_STATE when another container has it, and SANDBOX_UNAVAILABLE.
        """
        name = workspace_id or str(uuid.uuid4())
        facts = _Facts(container_id, bool(workspace_id) if kept is None else kept, user.uid, user.gid)
        folder = self._folder(owner, name)
        self._take(owner, name, container_id)
        workspace = Workspace(owner, name, folder / _FILES, facts.kept, container_id)
        try:
            await uninterrupted(asyncio.to_thread(_make_ready, folder, facts))
        except BaseException as error:
            self.release(workspace)
            if not workspace_id:
                await self.delete(owner, name)
            if isinstance(error, (OSError, trees.WalkError)):
                _log.exception("a workspace cannot be made ready")
                raise ClawboxError(
                    Reason.SANDBOX_UNAVAILABLE, "the container's workspace cannot be made ready"
                ) from error
            raise
        return workspace

    async def adopt(self, owner: str, workspace_id: str, *, container_id: str) -> Workspace:
        """The workspace that a container has which runs already.

        Raises WRONG_STATE when another container has it, and FileNotFoundError when it is not there.
        """
        folder = self._folder(owner, workspace_id)
        found = await asyncio.to_thread(_read_facts, folder)
        if not await asyncio.to_thread((folder / _FILES).is_dir):
            raise FileNotFoundError(workspace_id)
        self._take(owner, workspace_id, container_id)
        return Workspace(owner, workspace_id, folder / _FILES, found is None or found.kept, container_id)

    def locate(self, owner: str, workspace_id: str, container_id: str) -> Workspace:
        """Where a workspace is, for one who has it no more; whether or not it is there."""
        folder = self._folder(owner, workspace_id)
        return Workspace(owner, workspace_id, folder / _FILES, kept=True, container_id=container_id)

    def release(self, workspace: Workspace) -> None:
        """The container does not have it any more; nothing happens when it has not."""
        key = (workspace.owner, workspace.workspace_id)
        if self._users.get(key) == workspace.container_id:
            del self._users[key]

    async def keep(self, owner: str, workspace_id: str) -> None:
        """A fresh one is meant to be there from now on; nothing happens when it is not there."""
        await uninterrupted(asyncio.to_thread(_keep, self._folder(owner, workspace_id)))

    async def delete(self, owner: str, workspace_id: str) -> None:
        """Delete a workspace; nothing happens when it is not there.

        Nobody finds it any more when this returns; a large one may then still be deleted. Raises WRONG_STATE
        when a container has it, and OSError.
        """
        folder = self._folder(owner, workspace_id)
        token = f"{uuid.uuid4()}"
        self._take(owner, workspace_id, token)
        self._deleted[token] = done = asyncio.Event()
        try:
            try:
                await uninterrupted(asyncio.to_thread(_throw_away, folder, self._trash / token))
            finally:
                del self._users[owner, workspace_id]
            self._thrown.set()
            async with asyncio.timeout(_DELETE_SECONDS):
                await done.wait()
        except FileNotFoundError:
            return
        except TimeoutError:
            _log.info("a workspace is so large that it is deleted in the background")
        finally:
            del self._deleted[token]

    async def delete_abandoned(self, known: Collection[str]) -> None:
        """Delete the fresh ones whose container is none of ``known``: those that a crash left."""
        for folder in await asyncio.to_thread(self._abandoned, frozenset(known)):
            await uninterrupted(asyncio.to_thread(_throw_away, folder, self._trash / str(uuid.uuid4())))
        self._thrown.set()

    async def measure(self, workspace: Workspace) -> int:
        """Bytes of disk that it uses, also while its container runs.

        One that is so large that this takes too long counts as more than it may hold. Raises OSError.
        """
        return await uninterrupted(asyncio.to_thread(self._measure, workspace))

    def _measure(self, workspace: Workspace) -> int:
        folder = workspace.open()
        try:
            return trees.measure(folder, until=time.monotonic() + _MEASURE_SECONDS)
        except trees.WalkError:
            return self.max_bytes + 1
        finally:
            os.close(folder)

    def _folder(self, owner: str, workspace_id: str) -> Path:
        if _ID.fullmatch(workspace_id) is None:
            raise invalid_field("workspace.workspace_id", f"must match {_ID.pattern}", "pattern")
        return self.root / hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest() / workspace_id

    def _take(self, owner: str, workspace_id: str, user: str) -> None:
        if (owner, workspace_id) in self._users:
            raise ClawboxError(
                Reason.WRONG_STATE,
                "the workspace {workspace_id} is in use by another container",
                precondition=("workspace", workspace_id),
                workspace_id=workspace_id,
            )
        self._users[owner, workspace_id] = user

    def _open(self) -> None:
        prepare(self.root)
        self._lock = os.open(self.root, trees.FOLDER_FLAGS)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            prepare(self._trash)
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise MountError(
                    f"{self.root} has the workspaces of another server that runs: each needs a "
                    "containers.workspace_root of its own"
                ) from None
            raise

    def _abandoned(self, known: frozenset[str]) -> list[Path]:
        found = []
        for owner in self.root.iterdir():
            if owner.name == _TRASH:
                continue
            for folder in owner.iterdir():
                facts = _read_facts(folder)
                fresh = facts is None and not (folder / _FILES).exists()
                if fresh or (facts is not None and not facts.kept and facts.container_id not in known):
                    found.append(folder)
        return found

    async def _sweep(self) -> None:
        """Delete what is in the trash, a little of each at a time."""
        stuck: set[str] = set()
        while True:
            await self._thrown.wait()
            self._thrown.clear()
            while names := await asyncio.to_thread(_in_trash, self._trash, stuck):
                for name in names:
                    try:
                        if await uninterrupted(asyncio.to_thread(_delete_slice, self._trash / name)):
                            self._has_gone(name)
                    except (OSError, trees.TreeError) as error:
                        # The next server tries again.
                        _log.warning("a workspace cannot be deleted whole: %s", error)
                        stuck.add(name)
                        self._has_gone(name)

    def _has_gone(self, name: str) -> None:
        if name in self._deleted:
            self._deleted[name].set()


def _make_ready(folder: Path, facts: _Facts) -> None:
    """Make the folder when it is not there, and everything in it the user's."""
    for path in (folder.parent, folder):
        path.mkdir(0o700, exist_ok=True)
        if stat.S_IMODE(path.lstat().st_mode) != 0o700:
            path.chmod(0o700)
    before = _read_facts(folder)
    settled = before is not None and (before.uid, before.gid) == (facts.uid, facts.gid)
    # As long as not all is given to the user, nobody is said to have it; so is it after a crash.
    _write_facts(folder, facts if settled else msgspec.structs.replace(facts, uid=-1, gid=-1))
    files = folder / _FILES
    made = False
    try:
        files.mkdir(0o700)
        made = True
    except FileExistsError:
        pass
    opened = os.open(files, trees.FOLDER_FLAGS)
    try:
        if made or not settled:
            trees.give_to(opened, facts.uid, facts.gid, until=time.monotonic() + _GIVE_SECONDS)
        os.fchmod(opened, 0o700)
    finally:
        os.close(opened)
    if not settled:
        _write_facts(folder, facts)


def _keep(folder: Path) -> None:
    found = _read_facts(folder)
    if found is not None and not found.kept:
        _write_facts(folder, msgspec.structs.replace(found, kept=True))


def _read_facts(folder: Path) -> _Facts | None:
    try:
        return msgspec.json.decode((folder / _FACTS).read_bytes(), type=_Facts)
    except (OSError, msgspec.MsgspecError):
        return None


def _write_facts(folder: Path, facts: _Facts) -> None:
    temporary = folder / f".{uuid.uuid4().hex}"
    with temporary.open("xb") as file:
        file.write(msgspec.json.encode(facts))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / _FACTS)


def _throw_away(folder: Path, place: Path) -> None:
    folder.rename(place)


def _in_trash(trash: Path, stuck: set[str]) -> list[str]:
    try:
        return [entry.name for entry in trash.iterdir() if entry.name not in stuck]
    except OSError as error:
        _log.warning("what is left of workspaces cannot be looked at: %s", error)
        return []


def _delete_slice(folder: Path) -> bool:
    """Delete for a while; whether all of it is gone."""
    try:
        opened = os.open(folder, trees.FOLDER_FLAGS)
    except FileNotFoundError:
        return True
    try:
        if not trees.empty(opened, until=time.monotonic() + _SLICE_SECONDS):
            return False
    finally:
        os.close(opened)
    folder.rmdir()
    return True
