"""The scripts behind the Makefile."""

import shutil
import subprocess
import sys

import pytest

from clawbox.egress.refusal import Denial, Refusal
from clawbox.errors import Reason
from tools import check, generate_refusal_docs
from tools.generate_error_docs import page
from tools.generated_page import write_or_check
from tools.update_constraints import pinned, unpinned


def test_errors_page_lists_every_reason_once_below_its_code():
    sections = page().split("\n## ")[1:]

    listed = [
        (section.split(" (")[0], line.split("`")[1])
        for section in sections
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert sorted(listed) == sorted((reason.code.name, reason.name) for reason in Reason)


def test_the_refusals_page_lists_every_reason_once_below_its_status():
    sections = generate_refusal_docs.page().split("\n## ")[1:]

    listed = [
        (section.split()[0], line.split("`")[1])
        for section in sections
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert sorted(listed) == sorted((str(Refusal(denial).status), denial.code) for denial in Denial)


def test_a_page_that_differs_is_refused_and_can_be_written(tmp_path, capsys):
    page = tmp_path / "errors.md"

    def run(*arguments):
        return write_or_check(page, "new", source="the code", arguments=list(arguments))

    assert run("--check") == 1
    assert run() == 0
    assert run("--check") == 0
    page.write_text("old")
    assert run("--check") == 1
    assert capsys.readouterr().out.count("docs/errors.md is not what the code makes; `make generate`") == 2


def test_pins_ignore_comments_and_spelling_of_names():
    assert pinned("# why\nprometheus_client==0.26.0  # metrics\n\nA.b==1\n") == {
        "prometheus-client": "0.26.0",
        "a-b": "1",
    }


def test_an_installed_distribution_needs_its_own_pin():
    assert unpinned({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "1", "d": "4"}) == [
        "b 2 is installed, constraints.txt has 1",
        "c 3 is installed, constraints.txt has no pin",
    ]


def test_constraints_carry_versions_only(root):
    for line in (root / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or line.count("==") == 1
        assert "://" not in line
        assert "@" not in line


def test_check_runs_all_reports_each_and_fails_when_one_fails(monkeypatch, capsys):
    monkeypatch.setattr(
        check,
        "CHECKS",
        {
            "good": ("python", "-c", "print('quiet')"),
            "bad": ("python", "-c", "raise SystemExit('what is wrong')"),
            "last": ("python", "-c", ""),
        },
    )

    assert check.main([]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0][:2] == ["ok", "good"]
    assert lines[1][:2] == ["FAIL", "bad"]
    assert lines[2] == ["what", "is", "wrong"]
    assert lines[3][:2] == ["ok", "last"]
    assert lines[4] == ["failed:", "bad"]
    assert check.main(["good", "last"]) == 0
    assert check.main(["unknown"]) == 2


def test_help_lists_every_target_that_is_promised(root):
    done = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True)

    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert {"setup", "demo", "test", "check", "bench", "serve", "generate", "help"} <= listed


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("clawbox/policy.py", "import wasmtime", "wasmtime: only clawbox.wasm"),
        ("clawbox/policy.py", "import grpc", "gRPC: only the gRPC edge"),
        ("clawbox/wasm/model.py", "import clawbox_client", "Generated stubs and the client"),
        ("clawbox/wasm/model.py", "import aiodocker", "aiodocker: only clawbox.containers.docker"),
        ("clawbox/errors.py", "import clawbox.policy", "Each layer imports only what is below it"),
        ("clients/python/clawbox_client/__init__.py", "import clawbox.errors", "The client knows nothing"),
        ("clawbox/misc.py", "", "Each layer imports only what is below it"),
    ],
)
def test_layers_refuse(root, tmp_path, module, line, contract):
    copy_sources(root, tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")

    done = lint_imports(tmp_path)

    assert done.returncode != 0
    assert contract in " ".join(done.stdout.split()).partition("Broken contracts")[2]


def copy_sources(root, folder):
    ignore = shutil.ignore_patterns("__pycache__", "*.wasm", "*.egg-info")
    shutil.copytree(root / "clawbox", folder / "clawbox", ignore=ignore)
    shutil.copytree(root / "clients/python", folder / "clients/python", ignore=ignore)
    shutil.copy(root / "pyproject.toml", folder)


def lint_imports(folder):
    """Runs import-linter on a copy of the sources, in an interpreter that sees those alone."""
    program = (
        "import sys; sys.path[:0] = ['clients/python', '.'];"
        "from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
