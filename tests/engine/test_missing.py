"""Tests that find no engine: named at the end, and failed where a missing engine may not go unnoticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_ENGINE = """
from tests.engine import EngineMissingError, PrivateEngine, fixtures

def start(self):
    raise EngineMissingError("dockerd is not installed")

PrivateEngine.start = start
fixtures.DEFAULT_URL = "unix:///nowhere/docker.sock"
"""
TESTS = """
def test_one_that_needs_it(engine_url): ...
def test_another(busybox_image): ...
def test_with_its_own(start_engine):
    start_engine()
def test_that_needs_none(): ...
"""


def run(folder: Path, ci: str) -> subprocess.CompletedProcess[str]:
    """Run TESTS where there is no engine."""
    (folder / "conftest.py").write_text(NO_ENGINE)
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    temporary = folder / "temporary"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "DOCKER_HOST"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.engine.fixtures", "--basetemp", folder / "t", folder],
        cwd=ROOT,
        env={**environment, "CI": ci, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_test_is_named_with_the_reason(tmp_path: Path) -> None:
    done = run(tmp_path, ci="")
    assert done.returncode == 0, done.stdout
    named = done.stdout.partition("NOT TESTED, for want of a Docker engine")[2]
    for name in ("test_one_that_needs_it", "test_another", "test_with_its_own"):
        assert f"test_it.py::{name}\n" in named
    assert "test_that_needs_none" not in named
    assert "dockerd is not installed" in named


def test_ci_counts_them_as_failed(tmp_path: Path) -> None:
    done = run(tmp_path, ci="true")
    assert done.returncode == 1
    for name in ("test_one_that_needs_it", "test_another", "test_with_its_own"):
        assert any(
            line.startswith(("ERROR", "FAILED")) and name in line for line in done.stdout.splitlines()
        ), done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("ci", ["", "true"])
def test_nothing_is_left_where_no_engine_starts(tmp_path: Path, ci: str) -> None:
    run(tmp_path, ci)
    assert list((tmp_path / "temporary").iterdir()) == []
