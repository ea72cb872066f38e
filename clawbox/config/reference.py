"""Writes ``docs/settings.md`` from the models: ``python -m clawbox.config.reference [--check] [FILE]``.

With ``--check`` nothing is written, and the exit status is 1 when the file is not what would be written.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from clawbox.config.environment import SHORT_NAMES
from clawbox.config.load import FILE_VARIABLE
from clawbox.config.model import Config
from clawbox.config.schema import Shape, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

DEFAULT_FILE = Path("docs/settings.md")

_HEAD = f"""\
# Settings

Made from the models in `clawbox/config` by `python -m clawbox.config.reference`; do not edit.

The settings file is TOML. It is `--config FILE`, else `${FILE_VARIABLE}`, else the first of
`~/.clawbox/config.toml`, `~/.clawbox/config/clawbox.toml` and `config/default.toml` that exists. Without
one, the defaults are in force. `clawbox init` writes one, `clawbox config check` says everything that is
wrong with it, and `clawbox config show` shows every setting in force and where it comes from, secrets masked.

* Every key can also come from the environment, as `CLAWBOX_SECTION__KEY`, which wins over the file. Lists are
  written with commas or as JSON, tables as JSON. Keys whose rows name a variable can also be set by that; a
  long name wins over a short one.
* `CLAWBOX_MASTER_KEY`, the key of the credential file, is no setting: it is never in this file, and never
  shown. `clawbox serve` executes itself anew without it, so that it does not stand in `/proc/PID/environ`. A
  program that embeds the server cannot be executed anew: there, set `credentials.master_key_file` instead.
* Relative paths are relative to the folder of the file (without a file: `~/.clawbox`); in the environment, to
  the working directory. `~` is the home folder.
* An unknown key is an error that names the nearest known one.
* The tokens in `[[auth.tokens]]` are applied while the server runs; everything else when it starts.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_sections()]).rstrip() + "\n"


def _sections() -> Iterator[str]:
    for section, shape in fields_of(Config).items():
        if shape.model is not None:
            yield f"## [{section}]\n"
            yield from _table(shape.model, section, depth=1)


def _table(model: type[BaseModel], path: str, *, depth: int) -> Iterator[str]:
    """The rows of one table, then a part of its own for each table in it."""
    yield f"{_plain(inspect.getdoc(model) or '')}\n"
    rows: list[str] = []
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, shape in fields_of(model).items():
        if nested := _nested(name, shape):
            inner.append(nested)
            continue
        field = model.model_fields[name]
        cells = (_key(path, name, depth), _default(field, shape), shape.accepts, field.description or "")
        rows.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    if rows:
        yield from ("| key | default | accepted | meaning |", "|---|---|---|---|", *rows, "")
    for name, table in inner:
        heading = f"{path}.{name}"
        is_list = fields_of(model)[name.partition(".")[0]].item is not None and "." not in name
        yield f"### {f'[[{heading}]]' if is_list else f'[{heading}]'}\n"
        yield from _table(table, heading, depth=depth + 1)


def _nested(name: str, shape: Shape) -> tuple[str, type[BaseModel]] | None:
    """The table that a key holds, and how its heading names it."""
    if shape.model is not None:
        return name, shape.model
    if shape.item is not None and shape.item.model is not None:
        return (f"{name}.NAME" if shape.names else name), shape.item.model
    return None


def _key(path: str, name: str, depth: int) -> str:
    short = [variable for variable, key in SHORT_NAMES.items() if key == f"{path}.{name}"]
    return f"`{name}`" + (f" (`{short[0]}`)" if short and depth == 1 else "")


def _default(field: FieldInfo, shape: Shape) -> str:
    """The default as TOML writes it, before paths are made absolute."""
    if field.default_factory is not None:
        return "see the meaning"
    if field.is_required():
        return "required"
    value = field.default
    if value is None and shape.accepts.find('""') >= 0:
        return '`""`'
    if value is None or value is PydanticUndefined:
        return "absent"
    if isinstance(value, SecretStr):
        raise TypeError("a secret has no default")
    plain = str(value) if isinstance(value, Path) else value
    return f"`{json.dumps(plain)}`"


def _plain(text: str) -> str:
    """Docstrings mark code with two backticks, Markdown with one."""
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> int:
    """Write the page, or compare it; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m clawbox.config.reference", description=main.__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is out of date")
    options = parser.parse_args(arguments)
    page = reference()
    if options.check:
        if options.file.exists() and options.file.read_text(encoding="utf-8") == page:
            return 0
        sys.stderr.write(f"{options.file} is out of date: run `python -m clawbox.config.reference`\n")
        return 1
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
