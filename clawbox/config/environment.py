"""Settings from environment variables.

``CLAWBOX_SECTION__KEY`` sets ``section.key`` for every key, and the short names of the Rust clawbox work too.
Lists are written with commas, or as JSON; tables (``CLAWBOX_AUTH__TOKENS``) as JSON.
Relative paths are relative to the working directory, where whoever typed them stood.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox.config.problems import Problem
from clawbox.config.schema import SECTIONS, Kind, Shape, all_keys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PREFIX = "CLAWBOX_"

SHORT_NAMES = {
    "CLAWBOX_HOST": "server.host",
    "CLAWBOX_PORT": "server.port",
    "CLAWBOX_AUTH_TOKEN": "server.auth_token",
    "CLAWBOX_TOOL_DIR": "sandbox.tool_dir",
    "CLAWBOX_LOG_LEVEL": "logging.level",
}
"""The Rust clawbox's names. A long name for the same key wins over them."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,30}", re.ASCII)
_FLAGS = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it comes from."""

    key: str
    value: object
    source: str


def long_name(key: str) -> str:
    """``server.port`` → ``CLAWBOX_SERVER__PORT``."""
    section, _, name = key.partition(".")
    return f"{PREFIX}{section.upper()}__{name.upper()}"


def is_setting(variable: str) -> bool:
    """Whether a variable is, or was meant to be, a setting."""
    return variable in SHORT_NAMES or (variable.startswith(PREFIX) and "__" in variable)


def read_environment(environ: Mapping[str, str], folder: Path) -> tuple[list[Setting], list[Problem]]:
    """The settings that ``environ`` holds, and what is wrong with it; later ones win.

    ``folder`` is what relative paths are relative to. Variables without ``__`` that are no short names
    (``CLAWBOX_TOKEN``, ``CLAWBOX_MASTER_KEY`` …) are other programs' and are left alone.
    """
    settings: list[Setting] = []
    problems: list[Problem] = []
    names = {long_name(key): key for key in all_keys()}
    known = SHORT_NAMES | names
    for variable in environ:
        if variable not in known and is_setting(variable):
            near = difflib.get_close_matches(variable, names, n=1, cutoff=0.6)
            problems.append(
                Problem(
                    f"environment {variable}",
                    "",
                    "an unknown name",
                    near[0] if near else "CLAWBOX_SECTION__KEY",
                )
            )
    for variable, key in known.items():  # the short names come first, so that the long ones win
        if (text := environ.get(variable)) is None:
            continue
        section, _, name = key.partition(".")
        shape = SECTIONS[section][name]
        try:
            value = parse(text, shape, folder)
        except ValueError:
            problems.append(
                Problem(f"environment {variable}", key, "text that is not JSON", _json_words(shape))
            )
        else:
            settings.append(Setting(key, value, f"environment {variable}"))
    return settings, problems


def parse(text: str, shape: Shape, folder: Path) -> object:
    """The value that ``text`` says. What cannot be a value stays text, which the model then refuses.

    Raises ValueError where JSON is due and ``text`` is none.
    """
    match shape.kind:
        case Kind.NUMBER:
            return int(text) if _NUMBER.fullmatch(text.strip()) else text
        case Kind.FLAG:
            return _FLAGS.get(text.strip().lower(), text)
        case Kind.PATH:
            return _anchored(text, folder)
        case Kind.LIST | Kind.PATHS:
            items = _items(text)
            if shape.kind is Kind.PATHS and isinstance(items, list):
                return [_anchored(item, folder) if isinstance(item, str) else item for item in items]
            return items
        case Kind.TABLES:
            return _json(text)
        case _:
            return text


def _items(text: str) -> object:
    if text.lstrip().startswith("["):
        return _json(text)
    return [item.strip() for item in text.split(",") if item.strip()]


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too deep") from None


def _json_words(shape: Shape) -> str:
    return "JSON: a list of tables" if shape.accepts == "a list of tables" else f"{shape.accepts}, as JSON"


def _anchored(text: str, folder: Path) -> str:
    """An empty text means "none" and stays, ``~`` is expanded later."""
    return str(folder / text) if text and not text.startswith("~") else text
