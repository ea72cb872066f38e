"""Builds tools from source: the library behind ``clawbox tool new`` and ``clawbox tool build``.

A project is a folder with ``tool.toml`` (name, language, entry), ``manifest.json`` and the source. Building
it writes ``NAME.wasm`` and ``NAME.json`` into a folder that a server can serve from.
"""

from clawbox.wasm.build.builder import Built, build
from clawbox.wasm.build.commands import BuildError, Progress, TakenError
from clawbox.wasm.build.project import LANGUAGES, Project
from clawbox.wasm.build.scaffold import new

__all__ = ["LANGUAGES", "BuildError", "Built", "Progress", "Project", "TakenError", "build", "new"]
