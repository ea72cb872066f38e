"""How a fresh process of this program is started: isolated from the user's environment, yet able to import.

Python's isolated mode leaves out PYTHONPATH, the folder of the script and the current folder. An installation
that is found through one of them (``pip install --target``) is therefore named explicitly.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

_BOOTSTRAP = (
    "import importlib, json, sys; _, module, path, *arguments = sys.argv; path = json.loads(path); "
    "sys.path[:] = path + [entry for entry in sys.path if entry not in path]; "
    "importlib.import_module(module).main(arguments)"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command line that calls ``main([*arguments])`` of an importable module of this installation.

    Nothing is written to disk; the environment and the current folder are for the caller to choose.
    """
    path = json.dumps(import_path())
    return [sys.executable, "-I", "-B", "-X", "utf8", "-c", _BOOTSTRAP, module, path, *arguments]


def import_path() -> list[str]:
    """Where this process imports from: absolute, and the current folder only if clawbox itself is there."""
    home = str(Path(__file__).parents[2])
    current = os.getcwd()  # noqa: PTH109 - compared as text, as Python itself put it there
    return [
        entry
        for entry in sys.path
        if os.path.isabs(entry) and (entry == home or entry != current)  # noqa: PTH117
    ]
