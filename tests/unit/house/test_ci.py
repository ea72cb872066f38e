"""What continuous integration runs: both, always, and fails when either fails."""

import shutil
import subprocess

import pytest

PASSED = "===== 3 passed in 0.10s ====="
FAILED = "===== 1 failed, 2 passed in 0.10s (0:00:01) ====="


@pytest.fixture
def checkout(root, tmp_path):
    """A checkout whose make targets do what a test says."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(root / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "tmp").mkdir()
    return tmp_path


def run(checkout, *, check, test):
    (checkout / "Makefile").write_text(f"check:\n\t@{check}\ntest:\n\t@{test}\n")
    return subprocess.run(
        [checkout / ".ci/run"],
        cwd="/",
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": str(checkout / "tmp")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("check", "test", "passes"),
    [
        ("true", f"echo '{PASSED}'", True),
        ("echo wrong; exit 1", f"echo '{PASSED}'", False),
        ("true", f"echo '{FAILED}'; exit 1", False),
        ("exit 1", f"echo '{FAILED}'; exit 1", False),
    ],
)
def test_it_fails_when_either_fails_and_the_closing_line_is_last(checkout, check, test, passes):
    done = run(checkout, check=check, test=test)

    assert (done.returncode == 0) == passes
    assert done.stdout.splitlines()[-1] == (PASSED if PASSED in test else FAILED)
    assert list((checkout / "tmp").iterdir()) == []


def test_tests_that_cannot_even_start_fail_it(checkout):
    assert run(checkout, check="true", test="exit 2").returncode != 0


def test_targets_are_told_that_this_is_ci(checkout):
    assert "CI is true" in run(checkout, check="echo CI is $$CI", test="true").stdout
