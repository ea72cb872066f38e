"""Who registered or uploaded each tool, and whether others may see it. The folder knows the rest.

A small JSON file beside the tools, written whole and by rename. A tool that is not in it was put into the
folder by the operator: it is the operator's, and everyone's to run. A record outlives its tool's file, unless
the tool was deleted over the API: what comes back by that name must not be everyone's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import structlog

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger("clawbox.wasm.owners")


class Ownership(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose a tool is. An empty owner is the operator."""

    owner: str = ""
    published: bool = True


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tools: dict[str, Ownership]
    unlisted_published: bool = True


@dataclass(slots=True)
class _State:
    tools: dict[str, Ownership]
    unlisted: Ownership


class Owners:
    """The record of owners. What writes it touches the disk: call it off the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._state = _State({}, Ownership())

    def open(self) -> None:
        """Read the file; raises OSError.

        One that is damaged is put aside, and every tool is then for administrators alone, until one of them
        publishes it: whose it was is no longer known.
        """
        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            file = _File({})
        except msgspec.MsgspecError as error:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            log.error("owners_damaged", path=str(self._path), kept=str(aside), why=str(error))  # noqa: TRY400
            self._path.rename(aside)
            file = _File({}, unlisted_published=False)
            self._state = _State({}, Ownership(published=False))
            self._save()
        self._state = _State(dict(file.tools), Ownership(published=file.unlisted_published))

    def get(self, name: str, *, builtin: bool = False) -> Ownership:
        """Whose the tool is; what ships with clawbox is the operator's unless it is recorded otherwise."""
        return self._state.tools.get(name, Ownership() if builtin else self._state.unlisted)

    def set(self, name: str, ownership: Ownership) -> None:
        """Record whose the tool is; raises OSError, and then nothing has changed."""
        self._change({**self._state.tools, name: ownership})

    def forget(self, name: str) -> None:
        """The tool was deleted; raises OSError, and then nothing has changed."""
        self._change({other: whose for other, whose in self._state.tools.items() if other != name})

    def _change(self, tools: dict[str, Ownership]) -> None:
        with self._lock:
            before = self._state
            if tools == before.tools:
                return
            self._state = _State(tools, before.unlisted)
            try:
                self._save()
            except OSError:
                self._state = before
                raise

    def _save(self) -> None:
        contents = msgspec.json.encode(
            _File(self._state.tools, unlisted_published=self._state.unlisted.published)
        )
        temporary = self._path.with_name(f".owners-{secrets.token_hex(8)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
