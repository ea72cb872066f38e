"""The tool folder on disk: what is in it, read carefully, and written whole or not at all.

``NAME.wasm`` and ``NAME.json`` are tools and manifests; everything of the server's own is under ``.clawbox``,
which no scan looks into. Everything here blocks: call it off the event loop.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from clawbox.wasm.manifest import MAX_BYTES as MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
PRIVATE_FOLDER = ".clawbox"


class ToolFileError(Exception):
    """A file that cannot be a tool; the text says why."""


class FileChangedError(Exception):
    """The file is being written: look again later."""


@dataclass(frozen=True, slots=True)
class FileMark:
    """What tells one version of a file from the next."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """A tool as the folders show it. Equal sightings are the same version."""

    module: FileMark | None
    manifest: FileMark | None
    builtin: bool
    """The module is one that ships with clawbox."""
    builtin_manifest: bool

    @property
    def changed_ns(self) -> int:
        """When the newest of the files last changed, by the kernel's clock."""
        return max((mark.changed_ns for mark in (self.module, self.manifest) if mark), default=0)


@dataclass(frozen=True, slots=True)
class ToolFiles:
    """The contents of a tool's files."""

    module: bytes
    manifest: bytes | None


class ToolFolder:
    """The operator's folder, and behind it the read-only one that ships, whose names the first can take."""

    def __init__(self, folder: Path, builtin: Path | None, max_tool_bytes: int) -> None:
        self._folder = folder
        self._builtin = builtin
        self._max_tool_bytes = max_tool_bytes
        self._private = folder / PRIVATE_FOLDER
        self._staging = self._private / "staging"

    @property
    def path(self) -> Path:
        """The operator's folder."""
        return self._folder

    @property
    def owners_path(self) -> Path:
        """Where the record of owners is kept."""
        return self._private / "owners.json"

    def prepare(self) -> None:
        """Make the folders, and remove what a server that died left half done; raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for private in (self._private, self._staging):
            private.mkdir(mode=0o700, exist_ok=True)
            private.chmod(0o700)
        for left in self._staging.iterdir():
            with contextlib.suppress(OSError):
                left.unlink()

    def scan(self) -> tuple[dict[str, Sighting], dict[str, str]]:
        """Every tool by name, and every odd file's name with what is wrong with it."""
        names: set[str] = set()
        odd: dict[str, str] = {}
        for folder in (self._folder, self._builtin):
            if folder is None:
                continue
            try:
                entries = sorted(path.name for path in folder.iterdir())
            except FileNotFoundError:
                continue
            for entry in entries:
                stem, dot, suffix = entry.rpartition(".")
                if entry.startswith(".") or not dot or suffix not in {"wasm", "json"}:
                    continue
                if NAME.fullmatch(stem):
                    names.add(stem)
                else:
                    shown = os.fsencode(stem).decode("utf-8", "backslashreplace")[:64]
                    odd[shown] = "a tool's name has 1 to 64 letters, digits, - and _"
        tools = {}
        for name in sorted(names):
            sighting = self.sight(name)
            if sighting.module is not None:
                tools[name] = sighting
            elif sighting.manifest is not None:
                odd[name] = f"there is a {name}.json, but no {name}.wasm"
        return tools, odd

    def sight(self, name: str) -> Sighting:
        """The tool's files as they are now."""
        module, builtin = _mark(self._folder / f"{name}.wasm"), False
        if module is None and self._builtin is not None:
            module = _mark(self._builtin / f"{name}.wasm")
            builtin = module is not None
        manifest, builtin_manifest = _mark(self._folder / f"{name}.json"), False
        if manifest is None and builtin and self._builtin is not None:
            manifest = _mark(self._builtin / f"{name}.json")
            builtin_manifest = manifest is not None
        return Sighting(module, manifest, builtin, builtin_manifest)

    def read(self, name: str, sighting: Sighting) -> ToolFiles:
        """The contents of exactly what was sighted.

        Raises ToolFileError when it cannot be a tool, and FileChangedError when it is another version by now.
        """
        module_folder, manifest_folder = self._folder, self._folder
        if self._builtin is not None:
            module_folder = self._builtin if sighting.builtin else module_folder
            manifest_folder = self._builtin if sighting.builtin_manifest else manifest_folder
        if sighting.module is None:
            raise FileChangedError
        limit = None if sighting.builtin else self._max_tool_bytes
        module = _read(module_folder / f"{name}.wasm", sighting.module, limit)
        manifest = None
        if sighting.manifest is not None:
            manifest = _read(manifest_folder / f"{name}.json", sighting.manifest, MAX_MANIFEST_BYTES)
        return ToolFiles(module, manifest)

    def stage(self) -> StagedFile:
        """A new file that nobody sees yet; raises OSError."""
        return StagedFile(self._staging / secrets.token_hex(16))

    def put(self, name: str, module: StagedFile | None, manifest: bytes | None) -> None:
        """Put a module and its manifest in place; ``module`` None: the manifest alone.

        ``manifest`` None: there shall be none. Raises OSError, and then the folder is as before. Should the
        machine stop half-way, the new manifest (or none) stands beside the old module.
        """
        manifest_path = self._folder / f"{name}.json"
        before = (
            manifest_path.read_bytes() if manifest_path.is_file() and not manifest_path.is_symlink() else None
        )
        self._put_manifest(manifest_path, manifest)
        if module is not None:
            try:
                module.move_to(self._folder / f"{name}.wasm")
            except OSError:
                self._put_manifest(manifest_path, before)
                raise
        self._sync()

    def remove(self, name: str) -> None:
        """Remove a tool's files; raises OSError."""
        # The module first: a module without its manifest would be another tool.
        for suffix in ("wasm", "json"):
            (self._folder / f"{name}.{suffix}").unlink(missing_ok=True)
        self._sync()

    def _put_manifest(self, path: Path, contents: bytes | None) -> None:
        if contents is None:
            path.unlink(missing_ok=True)
            return
        with self.stage() as staged:
            staged.write(contents)
            staged.move_to(path)

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class StagedFile:
    """A file that is being written. A context manager: what was not moved into place is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it, unless it was moved."""
        self.discard()

    def write(self, data: bytes) -> None:
        """Append; raises OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def read(self) -> bytes:
        """All that was written; raises OSError."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            return file.read()

    def move_to(self, target: Path) -> None:
        """Make it durable and put it in place of ``target``; raises OSError."""
        os.fchmod(self._descriptor, 0o644)
        os.fsync(self._descriptor)
        self._path.rename(target)

    def discard(self) -> None:
        """Close it, and remove it unless it was moved. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._path.unlink(missing_ok=True)


def _mark(path: Path) -> FileMark | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return FileMark(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _mark_of(found: os.stat_result) -> FileMark:
    return FileMark(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _read(path: Path, expected: FileMark, limit: int | None) -> bytes:
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
            raise ToolFileError(f"{path.name} is {what}; put the file itself there")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileChangedError from None
    except OSError as error:
        raise ToolFileError(f"{path.name} cannot be opened: {error.strerror}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if limit is not None and found.st_size > limit:
            raise ToolFileError(f"{path.name} has {found.st_size} bytes, more than the {limit} allowed")
        if _mark_of(found) != expected:
            raise FileChangedError
        contents = bytearray()
        while len(contents) <= found.st_size and (chunk := file.read(found.st_size + 1 - len(contents))):
            contents += chunk
        if len(contents) != found.st_size or _mark_of(os.fstat(descriptor)) != expected:
            raise FileChangedError
    return bytes(contents)
