"""Builds the interpreters that ship into `clawbox.wasm.builtin`: ``python -m clawbox.wasm.build.builtin``."""

from __future__ import annotations

import sys
from pathlib import Path

from clawbox.wasm.build.builder import Built, build
from clawbox.wasm.build.commands import BuildError, Progress
from clawbox.wasm.builtin import FOLDER

TOOLS = ("python", "javascript")
SOURCES = Path(__file__).parents[3] / "examples" / "tools"


def build_builtin(progress: Progress) -> list[Built]:
    """Builds what is not up to date. Raises BuildError."""
    if not SOURCES.is_dir():
        raise BuildError(
            f"{SOURCES} is not there", hint="The interpreters are built from a checkout of the source"
        )
    return [build(SOURCES / name, FOLDER, progress) for name in TOOLS]


def main() -> int:
    """Builds with progress on stdout; the exit status is 1 when a build fails."""
    try:
        for built in build_builtin(lambda text: _say(f"  {text} …")):
            size = f"{built.size_bytes / 1e6:.1f} MB"
            state = "up to date" if built.up_to_date else f"built in {built.seconds:.0f} s"
            _say(f"  {built.name}.wasm: {size}, {state}")
    except BuildError as error:
        sys.stderr.write(f"{error}\n{error.output}\n")
        return 1
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
