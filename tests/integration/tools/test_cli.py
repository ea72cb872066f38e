"""`clawbox tool new` and `clawbox tool build`, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def clawbox(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import clawbox.cli; clawbox.cli.main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_new_then_build(tmp_path: Path) -> None:
    made = clawbox("tool", "new", "greeter", "--lang", "c", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "clawbox tool build greeter" in made.stderr

    built = clawbox("tool", "build", "greeter", "--out", "tools", "--json", folder=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "greeter: compiling with zig cc …" in built.stderr
    report = json.loads(built.stdout)
    assert (report["name"], report["up_to_date"]) == ("greeter", False)
    assert (tmp_path / "tools" / "greeter.wasm").stat().st_size == report["size_bytes"]
    assert (tmp_path / "tools" / "greeter.json").is_file()

    again = clawbox("tool", "build", "greeter", "--out", "tools", folder=tmp_path)
    assert "up to date" in again.stdout


def test_compiler_error_is_shown_without_a_python_traceback(tmp_path: Path) -> None:
    assert clawbox("tool", "new", "greeter", "--lang", "c", folder=tmp_path).returncode == 0
    (tmp_path / "greeter" / "main.c").write_text("int main(void) { return oops; }")
    failed = clawbox("tool", "build", "greeter", folder=tmp_path)
    assert failed.returncode == 1
    assert "main.c:1:25: error" in failed.stderr
    assert failed.stderr.rstrip().endswith("clawbox: zig cc failed.")
    assert "Traceback" not in failed.stderr


def test_wrong_use_is_explained(tmp_path: Path) -> None:
    missing = clawbox("tool", "build", "nowhere", folder=tmp_path)
    assert missing.returncode == 2
    assert "there is no folder nowhere" in missing.stderr
    unknown = clawbox("tool", "new", "x", "--lang", "cobol", folder=tmp_path)
    assert unknown.returncode == 2
    assert "python, javascript, go, rust, c" in unknown.stderr
    assert clawbox("tool", "new", "..", folder=tmp_path).returncode == 2
    (tmp_path / "there").mkdir()
    taken = clawbox("tool", "new", "there", folder=tmp_path)
    assert taken.returncode == 7
    assert "Choose another name" in taken.stderr
