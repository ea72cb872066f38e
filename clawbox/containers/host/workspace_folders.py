"""Workspaces on disk: a folder each, what is known of it, and how many an owner keeps. All of it blocks.

::

    OWNER/ID/files    what is mounted, the sandbox's own, 0700
    OWNER/ID/facts    whose it was last; outside of what is mounted
    trash/…           what is being deleted, by whichever server finds it

OWNER is a hash, so that neither an owner's name nor that of a workspace can lead to another's. What else
somebody puts there is left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
import time
import uuid
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.containers.host import trees
from clawbox.containers.host.folders import named
from clawbox.errors import ClawboxError, Reason, invalid_field

if TYPE_CHECKING:
    from pathlib import Path

FILES: Final = "files"
TRASH: Final = "trash"
_FACTS: Final = "facts"
_OWNER: Final = re.compile(r"[0-9a-f]{64}")
_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_GIVE_SECONDS: Final = 60.0


def check_id(workspace_id: str) -> None:
    """Raise INVALID_FIELD for what is no name of a workspace. Pure."""
    if _ID.fullmatch(workspace_id) is None:
        raise invalid_field("workspace.workspace_id", f"must match {_ID.pattern}", "pattern")


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a workspace."""

    container_id: str
    """Who had it last."""
    kept: bool
    uid: int = -1
    """To whom everything in it belongs; -1: that is not sure."""
    gid: int = -1


class WorkspaceFolders:
    """Those of one server, below ``root``; of each owner no more than ``max_kept`` are kept."""

    def __init__(self, root: Path, max_kept: int) -> None:
        self._root = root
        self._max_kept = max_kept
        self._counting = threading.Lock()
        """Held from when an owner's are counted until one more is there."""

    def path(self, owner: str, workspace_id: str) -> Path:
        """Where that workspace is, or would be. Raises INVALID_FIELD for what is no name."""
        check_id(workspace_id)
        return self._root / hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest() / workspace_id

    def make_ready(self, owner: str, workspace_id: str, facts: Facts) -> Facts:
        """Make it when it is not there, and everything in it the user's; what is known of it then.

        Raises WORKSPACE_LIMIT, and then nothing was made; OSError and WalkError.
        """
        folder = self.path(owner, workspace_id)
        with self._counting:
            if facts.kept:
                self.require_room(owner, workspace_id)
            elif _is_kept(folder):
                # To go with this container, that is; a Spawn that fails must not have lost it.
                facts = msgspec.structs.replace(facts, kept=True)
            for path in (folder.parent, folder):
                path.mkdir(0o700, exist_ok=True)
                if stat.S_IMODE(path.lstat().st_mode) != 0o700:
                    path.chmod(0o700)
            before = read_facts(folder)
            settled = before is not None and (before.uid, before.gid) == (facts.uid, facts.gid)
            # As long as not all is given to the user, nobody is said to have it; so is it after a crash.
            _write_facts(folder, facts if settled else msgspec.structs.replace(facts, uid=-1, gid=-1))
        _give(folder, facts, settled=settled)
        return facts

    def keep(self, owner: str, workspace_id: str) -> None:
        """Have a fresh one stay; nothing happens when it is not there. Raises WORKSPACE_LIMIT, OSError."""
        folder = self.path(owner, workspace_id)
        with self._counting:
            found = read_facts(folder)
            if found is not None and not found.kept:
                self.require_room(owner, workspace_id)
                _write_facts(folder, msgspec.structs.replace(found, kept=True))

    def require_room(self, owner: str, workspace_id: str) -> None:
        """Raise WORKSPACE_LIMIT when as many are kept as may be, and this is none of them. Raises OSError."""
        folder = self.path(owner, workspace_id)
        if _is_kept(folder):
            return
        try:
            kept = sum(map(_is_kept, folder.parent.iterdir()))
        except FileNotFoundError:
            return
        if kept >= self._max_kept:
            raise ClawboxError(
                Reason.WORKSPACE_LIMIT,
                "{principal} keeps {workspaces} workspaces; the server allows no more: use one of them by its"
                " name, or delete one (Remove a container that has it, with delete_workspace)",
                workspaces=kept,
                principal=owner,
            )

    def abandoned(self, known: frozenset[str]) -> list[Path]:
        """The fresh ones whose container is none of ``known``. Raises OSError."""
        found = []
        for owner in named(self._root, _OWNER):
            for folder in named(owner, _ID):
                facts = read_facts(folder)
                fresh = facts is None and not (folder / FILES).exists()
                if fresh or (facts is not None and not facts.kept and facts.container_id not in known):
                    found.append(folder)
        return found


def _give(folder: Path, facts: Facts, *, settled: bool) -> None:
    """Make everything in it the user's; ``settled``: what was there is."""
    files = folder / FILES
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


def _is_kept(folder: Path) -> bool:
    """Whether it is there, and meant to be when no container has it; so is one whose facts are lost."""
    facts = read_facts(folder)
    return (folder / FILES).exists() if facts is None else facts.kept


def read_facts(folder: Path) -> Facts | None:
    """What is known of the workspace there; None: nothing."""
    try:
        return msgspec.json.decode((folder / _FACTS).read_bytes(), type=Facts)
    except (OSError, msgspec.MsgspecError):
        return None


def _write_facts(folder: Path, facts: Facts) -> None:
    temporary = folder / f".{uuid.uuid4().hex}"
    with temporary.open("xb") as file:
        file.write(msgspec.json.encode(facts))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / _FACTS)
