"""Whether the committed stubs are what ``make generate`` writes from the protos: names and bytes.

It generates into a temporary folder and changes nothing in the source tree, so that it works beside changes
that are not committed yet.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STUBS = "clients/python/clawbox_client/v1"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but Python's caches: path relative to it, and content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def drift(committed: dict[str, bytes], generated: dict[str, bytes]) -> list[str]:
    """One sentence for each file in which they differ."""
    found = []
    for name in sorted(committed.keys() | generated.keys()):
        if name not in generated:
            found.append(f"{name} is there, but no proto makes it")
        elif name not in committed:
            found.append(f"{name} is missing")
        elif committed[name] != generated[name]:
            found.append(f"{name} is not what its proto makes")
    return found


def main() -> int:
    """Compare; print the differences; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([BIN / "buf", "generate", "--output", folder], cwd=ROOT, check=True)
        found = drift(contents(ROOT / STUBS), contents(Path(folder, STUBS)))
    for sentence in found:
        print(sentence)
    if found:
        print("`make generate` writes them anew.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
