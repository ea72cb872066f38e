"""The folders that containers see at /workspace: fresh ones that go with them, and kept ones with names.

Where they are on disk is in :mod:`clawbox.containers.host.workspace_folders`. Only root gets below the root
folder on the host, so one sandbox's uid is no right to another's files that have the same.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
import uuid
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from clawbox.containers.host import trees
from clawbox.containers.host.folders import prepare
from clawbox.containers.host.workspace_folders import FILES, TRASH, Facts, WorkspaceFolders
from clawbox.containers.mounts import MountError
from clawbox.errors import ClawboxError, Reason
from clawbox.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from types import TracebackType

    from clawbox.containers.users import User

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
    made: bool = field(default=False, compare=False)
    """Whether it was not there before it was acquired."""

    def open(self) -> int:
        """A descriptor of the folder, the caller's to close. Blocking. Raises OSError."""
        return os.open(self.path, trees.FOLDER_FLAGS)


class Workspaces:
    """All workspaces of one server; an async context manager, which deletes what is to be deleted.

    Entering raises MountError when others could change what is mounted (docs/security.md, 78), and when
    another server has the root folder: either would take the other's workspaces for abandoned ones.
    """

    def __init__(self, root: Path, max_bytes: int, *, max_kept: int) -> None:
        """``max_kept``: how many may be kept of each owner, so that nobody takes another's room."""
        self.root = root
        self.max_bytes = max_bytes
        """Most that one may hold."""
        self._folders = WorkspaceFolders(root, max_kept)
        self._trash = root / TRASH
        self._users: dict[tuple[str, str], set[str]] = {}
        """Who has which workspace, by owner and id: a container, and more only where state was lost."""
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
        no name, WRONG_STATE when another container has it, WORKSPACE_LIMIT when it would be kept and is one
        too many, and SANDBOX_UNAVAILABLE. Then nothing was made.
        """
        name = workspace_id or str(uuid.uuid4())
        facts = Facts(container_id, bool(workspace_id) if kept is None else kept, user.uid, user.gid)
        folder = self._folders.path(owner, name)
        self._take(owner, name, container_id)
        made = False
        with _on_disk("made ready"):
            try:
                made = not await asyncio.to_thread(folder.exists)
                work = asyncio.to_thread(self._folders.make_ready, owner, name, facts)
                facts = await uninterrupted(work)
            except BaseException:
                self._give_back(owner, name, container_id)
                if made:
                    await self.delete(owner, name)
                raise
        return Workspace(owner, name, folder / FILES, facts.kept, container_id, made=made)

    def hold(self, owner: str, workspace_id: str, container_id: str) -> Workspace:
        """The workspace that a container has since before this server, whether or not it is there.

        It has it, whoever else does: nobody acquires or deletes it until it is released. Raises INVALID_FIELD
        for what is no name.
        """
        workspace = self.locate(owner, workspace_id, container_id)
        self._users.setdefault((owner, workspace_id), set()).add(container_id)
        return workspace

    def locate(self, owner: str, workspace_id: str, container_id: str) -> Workspace:
        """Where a workspace is, for one who has it no more; whether or not it is there."""
        folder = self._folders.path(owner, workspace_id)
        return Workspace(owner, workspace_id, folder / FILES, kept=True, container_id=container_id)

    def release(self, workspace: Workspace) -> None:
        """The container does not have it any more; nothing happens when it has not."""
        self._give_back(workspace.owner, workspace.workspace_id, workspace.container_id)

    async def keep(self, owner: str, workspace_id: str) -> None:
        """A fresh one is meant to be there from now on; nothing happens when it is not there.

        Raises WORKSPACE_LIMIT when it is one too many, and SANDBOX_UNAVAILABLE.
        """
        with _on_disk("kept"):
            await uninterrupted(asyncio.to_thread(self._folders.keep, owner, workspace_id))

    async def require_room(self, owner: str, workspace_id: str) -> None:
        """Raise WORKSPACE_LIMIT when this one, or a fresh one for an empty name, could not be kept now.

        That is for who wants to know it beforehand: :meth:`acquire` and :meth:`keep` see to it. Raises
        INVALID_FIELD and SANDBOX_UNAVAILABLE, too.
        """
        with _on_disk("looked for"):
            await asyncio.to_thread(self._folders.require_room, owner, workspace_id or str(uuid.uuid4()))

    async def delete(self, owner: str, workspace_id: str) -> None:
        """Delete a workspace; nothing happens when it is not there.

        Nobody finds it any more when this returns; a large one may then still be deleted. Raises WRONG_STATE
        when a container has it, and OSError.
        """
        folder = self._folders.path(owner, workspace_id)
        token = f"{uuid.uuid4()}"
        self._take(owner, workspace_id, token)
        self._deleted[token] = done = asyncio.Event()
        try:
            try:
                await uninterrupted(asyncio.to_thread(_throw_away, folder, self._trash / token))
            finally:
                self._give_back(owner, workspace_id, token)
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
        """Delete the fresh ones whose container is none of ``known``: those that a crash left.

        Raises OSError when it cannot be seen which they are.
        """
        for folder in await asyncio.to_thread(self._folders.abandoned, frozenset(known)):
            try:
                await uninterrupted(asyncio.to_thread(_throw_away, folder, self._trash / str(uuid.uuid4())))
            except FileNotFoundError:
                continue  # its container was forgotten just now
            except OSError as error:
                # The next server tries again.
                _log.warning("an abandoned workspace cannot be deleted: %s", error)
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

    def _give_back(self, owner: str, workspace_id: str, user: str) -> None:
        users = self._users.get((owner, workspace_id), set())
        users.discard(user)
        if not users:
            self._users.pop((owner, workspace_id), None)

    def _take(self, owner: str, workspace_id: str, user: str) -> None:
        if (owner, workspace_id) in self._users:
            raise ClawboxError(
                Reason.WRONG_STATE,
                "the workspace {workspace_id} is in use by another container",
                precondition=("workspace", workspace_id),
                workspace_id=workspace_id,
            )
        self._users[owner, workspace_id] = {user}

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


@contextmanager
def _on_disk(what: str) -> Iterator[None]:
    """Raise SANDBOX_UNAVAILABLE where the disk does not let a workspace be ``what``."""
    try:
        yield
    except (OSError, trees.WalkError) as error:
        _log.exception("a workspace cannot be %s", what)
        raise ClawboxError(
            Reason.SANDBOX_UNAVAILABLE, f"the container's workspace cannot be {what}"
        ) from error


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
