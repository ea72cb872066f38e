"""Builds one project, unless it is up to date: a copy is compiled, and the result put in place at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from clawbox.wasm.build import node, toolchains
from clawbox.wasm.build.commands import BuildError, Progress
from clawbox.wasm.build.project import Project
from clawbox.wasm.build.toolchains import TOOLCHAINS

_RECIPE = node.digest_of([Path(toolchains.__file__)])[:16]
"""Names how the compilers are called."""
_WASM_MAGIC = b"\0asm"


@dataclass(frozen=True, slots=True)
class Built:
    """A tool that was built, or was up to date."""

    name: str
    wasm: Path
    manifest: Path
    size_bytes: int
    seconds: float
    up_to_date: bool


def build(project_dir: Path, out_dir: Path, progress: Progress) -> Built:
    """Builds the project in ``project_dir`` into ``out_dir``: ``NAME.wasm`` and ``NAME.json``.

    The same sources and compiler that built them before make this a no-op. Both files are put in place in one
    step each, the manifest first, so that a server that watches the folder never sees half a file or a module
    without its limits. Raises BuildError; nothing is left behind then.
    """
    began = time.monotonic()
    project = Project.load(project_dir)
    toolchain = TOOLCHAINS[project.language]
    out_dir = out_dir.resolve()  # compilers run in other folders
    out_dir.mkdir(parents=True, exist_ok=True)
    wasm, manifest = out_dir / f"{project.name}.wasm", out_dir / f"{project.name}.json"
    stamp = out_dir / f".{project.name}.stamp"
    lock = hashlib.sha256(str(wasm.resolve()).encode()).hexdigest()[:32]
    with node.locked(lock):
        key = f"{project.digest()} {toolchain.identity()} {_RECIPE}"
        up_to_date = _is_current(stamp, key, wasm, manifest)
        if not up_to_date:
            text = project.manifest()
            with tempfile.TemporaryDirectory(dir=out_dir, prefix=".build-") as made:
                output = _compile(project, Path(made), progress)
                stamp.unlink(missing_ok=True)
                output.with_name("manifest").write_bytes(text)
                output.with_name("manifest").replace(manifest)
                output.replace(wasm)
            _write_stamp(stamp, key, wasm, manifest)
    seconds = time.monotonic() - began
    return Built(project.name, wasm, manifest, wasm.stat().st_size, seconds, up_to_date)


def _compile(project: Project, made: Path, progress: Progress) -> Path:
    # A copy, so that what is compiled is what was counted, and no compiler writes into the project.
    sources, work, output = made / "source", made / "work", made / "output.wasm"
    work.mkdir()
    for path in project.sources():
        copy = sources / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project.folder / path, copy)
    TOOLCHAINS[project.language].compile(
        dataclasses.replace(project, folder=sources),
        work,
        output,
        lambda text: progress(f"{project.name}: {text}"),
    )
    if not output.is_file() or output.read_bytes()[:4] != _WASM_MAGIC:
        raise BuildError(f"{project.name}: the compiler made no WebAssembly")
    output.chmod(0o644)
    return output


def _is_current(stamp: Path, key: str, wasm: Path, manifest: Path) -> bool:
    try:
        return bool(json.loads(stamp.read_text(encoding="utf-8")) == _stamp(key, wasm, manifest))
    except (OSError, ValueError):
        return False


def _write_stamp(stamp: Path, key: str, wasm: Path, manifest: Path) -> None:
    draft = stamp.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(_stamp(key, wasm, manifest)), encoding="utf-8")
    draft.replace(stamp)


def _stamp(key: str, wasm: Path, manifest: Path) -> dict[str, object]:
    files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in (wasm, manifest)}
    return {"key": key, "files": files}
