"""What `clawbox tool new` writes builds and runs, in every language whose compiler is here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from clawbox.wasm.build import LANGUAGES, BuildError, build, new
from clawbox.wasm.build.toolchains import TOOLCHAINS
from clawbox.wasm.model import Level
from tests.integration.tools.sandbox import Sandbox


@pytest.mark.parametrize("language", LANGUAGES)
def test_template_builds_and_runs(tmp_path: Path, language: str) -> None:
    project = new("greeter", language, tmp_path)
    try:
        TOOLCHAINS[language].identity()
    except BuildError as missing:
        # Python, JavaScript and C come with clawbox; the others are the machine's.
        assert language in {"go", "rust"}
        assert shutil.which("go" if language == "go" else "cargo") is None or "rustup target add" in missing.hint
        with pytest.raises(BuildError) as caught:
            build(project.folder, tmp_path / "out", print)
        assert caught.value.hint
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


def test_pure_python_package_is_baked_in(tmp_path: Path) -> None:
    folder = new("greeter", "python", tmp_path).folder
    (folder / "requirements.txt").write_text("typing_extensions\n")
    source = (folder / "app.py").read_text()
    (folder / "app.py").write_text("import typing_extensions\n" + source.replace("Hello", "{typing_extensions.__name__}"))
    sandbox = Sandbox(build(folder, tmp_path / "out", print).wasm)
    assert sandbox.run({"who": "you"}).answer == {"greeting": "typing_extensions, you!"}


def test_package_that_is_not_pure_python_is_refused(tmp_path: Path) -> None:
    folder = new("greeter", "python", tmp_path).folder
    (folder / "requirements.txt").write_text("msgspec\n")
    with pytest.raises(BuildError, match="Only packages with a pure-Python wheel"):
        build(folder, tmp_path / "out", print)
