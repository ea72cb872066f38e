"""Write ``constraints.txt`` from what is installed in the environment that runs this.

To move to newer versions, upgrade them in .venv, run `make check test`, then `make constraints`. With
``--check`` it only says which installed distributions the file does not pin at their version.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
OURS = {"clawbox", "clawbox-client"}
HEADER = """\
# Exact versions of everything that clawbox runs with, is built with and is tested with.
# Made by `make constraints` from the environment that passed the tests; do not edit.
"""


def canonical(name: str) -> str:
    """The normalised name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Version by canonical name of every distribution of this environment but our own."""
    versions = {canonical(distribution.name): distribution.version for distribution in distributions()}
    return {name: versions[name] for name in sorted(versions.keys() - OURS)}


def pinned(text: str) -> dict[str, str]:
    """Version by canonical name of every pin in the text of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==", 1) for line in lines if line)
    return {canonical(name): version for name, version in pairs}


def unpinned(versions: dict[str, str], pins: dict[str, str]) -> list[str]:
    """One sentence for each installed distribution that has no pin, or another.

    Pins without a distribution are fine: another version of Python may need them.
    """
    return [
        f"{name} {version} is installed, constraints.txt has {pins.get(name, 'no pin')}"
        for name, version in versions.items()
        if pins.get(name) != version
    ]


def main(arguments: list[str]) -> int:
    """Write or check the file; return the exit status."""
    versions = installed()
    if arguments == ["--check"]:
        found = unpinned(versions, pinned(CONSTRAINTS.read_text()))
        for sentence in found:
            print(sentence)
        return 1 if found else 0
    CONSTRAINTS.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in versions.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
