"""What `clawbox tool new` writes builds and runs, in every language whose compiler is here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clawbox.wasm.build import LANGUAGES, BuildError, build, new
from clawbox.wasm.model import Level
from tests.integration.tools.sandbox import Sandbox


@pytest.mark.parametrize("language", LANGUAGES)
def test_template_builds_and_runs(tmp_path: Path, language: str) -> None:
    project = new("greeter", language, tmp_path)
    # Python, JavaScript and C come with clawbox; the compilers of the others are the machine's.
    if language in {"go", "rust"} and (missing := _missing(language)):
        with pytest.raises(BuildError, match=re.escape(missing)):
            build(project.folder, tmp_path / "out", print)
        return
    built = build(project.folder, tmp_path / "out", print)
    sandbox = Sandbox(built.wasm)
    ended = sandbox.run(json.loads((project.folder / "input.json").read_text()))
    assert ended.ok, ended
    assert ended.answer == {"greeting": "Hello, world!"}
    assert sandbox.run({"who": 'ü"\\☃'}).answer == {"greeting": 'Hello, ü"\\☃!'}
    assert not sandbox.run({}).ok
    if language in {"python", "javascript"}:
        assert ended.logs == [(Level.INFO, "greeting world")]


def _missing(language: str) -> str:
    """What a build must say is missing; empty when the compiler is here."""
    if language == "go":
        return "" if shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin") else "the Go compiler"
    if shutil.which("cargo") is None or shutil.which("rustc") is None:
        return "is missing"
    command = ["rustc", "--print", "sysroot"]
    root = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    is_there = Path(root, "lib", "rustlib", "wasm32-wasip1").is_dir()
    return "" if is_there else "rustup target add wasm32-wasip1"


def test_package_that_is_not_pure_python_is_refused(tmp_path: Path) -> None:
    folder = new("greeter", "python", tmp_path).folder
    (folder / "requirements.txt").write_text("msgspec\n")
    with pytest.raises(BuildError, match="Only packages with a pure-Python wheel"):
        build(folder, tmp_path / "out", print)
