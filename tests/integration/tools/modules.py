"""Which modules of Python's standard library really import in the sandbox.

``python -m tests.integration.tools.modules`` prints the list that ``examples/tools/python/stdlib.txt`` holds.
"""

from __future__ import annotations

import sys
from functools import partial

from clawbox.wasm.build.builtin import build_builtin
from clawbox.wasm.builtin import FOLDER
from tests.integration.tools.sandbox import Sandbox

CANDIDATES = """
import library, sys
names = {name for name in sys.stdlib_module_names if not name.startswith("_")}
names |= {name for name, code in library._modules.items() if code.filename.startswith("/python/")}
sorted(name for name in names if not any(part.startswith("_") for part in name.split(".")))
"""


def importable(sandbox: Sandbox) -> list[str]:
    """Public modules that import, each in a fresh interpreter, sorted."""
    candidates = sandbox.run({"code": CANDIDATES}).answer["result"]
    return [name for name in candidates if sandbox.run({"code": f"import {name}"}).ok]


if __name__ == "__main__":
    build_builtin(partial(print, file=sys.stderr))
    sys.stdout.write("".join(f"{name}\n" for name in importable(Sandbox(FOLDER / "python.wasm"))))
