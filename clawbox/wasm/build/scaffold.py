"""Writes the project of a new tool from a template."""

from __future__ import annotations

from pathlib import Path
from string import Template

from clawbox.wasm.build.commands import BuildError, TakenError
from clawbox.wasm.build.project import LANGUAGES, NAME, Project

_TEMPLATES = Path(__file__).parent / "templates"


def new(name: str, language: str, folder: Path) -> Project:
    """Writes ``folder/NAME`` with a tool that greets, and everything that `build` needs.

    Raises BuildError when the name or the language is not one, TakenError when the folder exists.
    """
    if not NAME.match(name):
        raise BuildError(f"{name!r} is no name for a tool", hint="Take 1 to 64 letters, digits, _ or -")
    if language not in LANGUAGES:
        raise BuildError(f"there is no language {language}", hint=f"There are {', '.join(LANGUAGES)}")
    target = folder / name
    try:
        target.mkdir(parents=True)
    except FileExistsError:
        raise TakenError(f"{target} exists", hint="Choose another name, or another --dir") from None
    package = name.lower().replace("_", "-").strip("-")
    package = f"tool-{package}" if not package[:1].isalpha() else package
    words = {"name": name, "language": language, "package": package}
    for root in (_TEMPLATES / "common", _TEMPLATES / language):
        for template in sorted(root.rglob("*.tmpl")):
            # A name is stored with .tmpl behind it, so that no tool takes a template for source.
            file = target / template.relative_to(root).with_suffix("")
            file.parent.mkdir(parents=True, exist_ok=True)
            text = Template(template.read_text(encoding="utf-8")).substitute(words)
            file.write_text(text, encoding="utf-8")
    return Project.load(target)
