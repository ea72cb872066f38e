"""A tool's project folder: ``tool.toml``, ``manifest.json`` and the source."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox.wasm.build.commands import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator

LANGUAGES = ("python", "javascript", "go", "rust", "c")
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_ENTRIES = {
    "python": "app.py",
    "javascript": "tool.js",
    "go": "main.go",
    "rust": "src/main.rs",
    "c": "main.c",
}
# What compilers and editors leave behind; names that begin with a dot are ignored as well.
_IGNORED = frozenset({"__pycache__", "build", "dist", "node_modules", "target", "zig-out"})
_MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Project:
    """A tool that can be built."""

    folder: Path
    name: str
    language: str
    entry: str
    """Path of the file that the language begins with, relative to ``folder``."""

    @classmethod
    def load(cls, folder: Path) -> Project:
        """Reads ``tool.toml``; raises BuildError when it is missing or wrong."""
        file = folder / "tool.toml"
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BuildError(
                f"{folder} has no tool.toml", hint="`clawbox tool new NAME --lang LANGUAGE` makes a project"
            ) from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BuildError(f"{file} cannot be read: {error}") from None
        if unknown := sorted(settings.keys() - {"name", "language", "entry"}):
            raise BuildError(f"{file}: unknown key {unknown[0]}", hint="Known are name, language and entry")
        name, language = settings.get("name"), settings.get("language")
        if not isinstance(name, str) or not NAME.match(name):
            raise BuildError(f"{file}: name must be 1 to 64 letters, digits, _ or -")
        if language not in LANGUAGES:
            raise BuildError(f"{file}: language must be one of {', '.join(LANGUAGES)}")
        entry = settings.get("entry", _ENTRIES[language])
        if not isinstance(entry, str) or not _is_inside(folder, entry):
            raise BuildError(f"{file}: entry must be the path of a file in this folder")
        if not (folder / entry).is_file():
            raise BuildError(f"{folder / entry} is not there", hint="tool.toml names it as the entry")
        return cls(folder.resolve(), name, language, entry)

    def manifest(self) -> bytes:
        """The bytes of ``manifest.json``, checked. Raises BuildError."""
        from clawbox.errors import ClawboxError  # noqa: PLC0415 - what is up to date needs none of this
        from clawbox.wasm.manifest import Manifest  # noqa: PLC0415

        file = self.folder / "manifest.json"
        try:
            data = file.read_bytes()
            manifest = Manifest.parse(data)
        except OSError as error:
            raise BuildError(f"{file} cannot be read: {error.strerror}") from None
        except ClawboxError as error:
            raise BuildError(f"{file}: {error}") from None
        if manifest.name != self.name:
            raise BuildError(f"{file} is of the tool {manifest.name}, tool.toml of {self.name}")
        return data

    def sources(self) -> Iterator[Path]:
        """Every file of the project, relative to its folder, in a fixed order. Raises BuildError."""
        count = 0
        for root, folders, files in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not _is_ignored(name))
            for name in sorted(files):
                path = Path(root, name)
                if _is_ignored(name) or name.endswith((".wasm", ".pyc")) or not path.is_file():
                    continue
                count += 1
                if count > _MAX_FILES:
                    raise BuildError(f"{self.folder} has more than {_MAX_FILES} files")
                yield path.relative_to(self.folder)

    def digest(self) -> str:
        """SHA-256 over the names and contents of all sources, in hexadecimal digits."""
        digest = hashlib.sha256()
        for path in self.sources():
            data = (self.folder / path).read_bytes()
            digest.update(f"{path.as_posix()}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def _is_inside(folder: Path, entry: str) -> bool:
    return bool(entry) and (folder / entry).resolve().is_relative_to(folder.resolve())
