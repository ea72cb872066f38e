"""``make check``: run every check, show what failed, and fail when one did.

``check.py [NAME ...]`` runs those alone. The checks write nothing into the source tree but their caches.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

CHECKS: dict[str, tuple[str, ...]] = {
    "mypy": ("mypy", "--strict"),
    "ruff": ("ruff", "check", "--quiet", "--output-format=concise"),
    "format": ("ruff", "format", "--check", "--quiet", "--output-format=concise"),
    "imports": ("lint-imports", "--no-cache"),
    "buf-lint": ("buf", "lint"),
    # One module, because the image holds one: what is vendored for google.rpc is not ours to keep stable.
    "buf-breaking": ("buf", "breaking", "protos", "--against", "protos/release.binpb"),
    "stubs": ("python", "-m", "tools.check_generated"),
    "gate": ("python", "-m", "tools.assemble_gate", "--check"),
    "errors.md": ("python", "-m", "tools.generate_error_docs", "--check"),
    "egress-refusals.md": ("python", "-m", "tools.generate_refusal_docs", "--check"),
    "cli.md": ("python", "-m", "tools.generate_cli_docs", "--check"),
    "settings.md": ("python", "-m", "clawbox.config.reference", "--check"),
    "constraints": ("python", "-m", "tools.update_constraints", "--check"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """How one check ended: its exit status, all that it printed, and seconds."""

    name: str
    status: int
    output: str
    seconds: float


def run(name: str) -> Report:
    """Run one check in the project's root."""
    program, *arguments = CHECKS[name]
    began = time.monotonic()
    done = subprocess.run(
        [BIN / program, *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Report(name, done.returncode, done.stdout, time.monotonic() - began)


def main(names: list[str]) -> int:
    """Run the checks named, or all; return the exit status."""
    if unknown := [name for name in names if name not in CHECKS]:
        print(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    failed = []
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
        for report in pool.map(run, names or CHECKS):
            word = "FAIL" if report.status else "ok"
            print(f"{word:<4} {report.name:<13} {report.seconds:5.1f} s", flush=True)
            if report.status:
                failed.append(report.name)
                print("\n" + report.output.rstrip() + "\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
        return 1
    print("all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
