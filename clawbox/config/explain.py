"""Pydantic's errors, in the words of the settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from clawbox.config.model import Config
from clawbox.config.problems import Problem
from clawbox.config.schema import key_text, nearest, shape_at

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from clawbox.config.fields import Fault

_LONGEST = 80
"""Characters of a value that an error shows."""


def translate(
    error: ValidationError,
    source_of: Callable[[str], str],
    left_out: Collection[str] = (),
    root: type[BaseModel] = Config,
) -> list[Problem]:
    """Pydantic's errors in the words of the settings.

    ``source_of`` tells where ``section.key`` came from. Rules about a key of ``left_out`` are passed over.
    ``root`` is what the whole file is.
    """
    return [
        Problem(source_of(key), key, found, accepted)
        for details in error.errors(include_url=False)
        for key, found, accepted in _explain(details, left_out, root)
    ]


def _explain(
    details: ErrorDetails, left_out: Collection[str], root: type[BaseModel]
) -> list[tuple[str, str, str]]:
    location = details["loc"]
    key = key_text(location)
    if details["type"] == "clawbox_rule":
        faults: tuple[Fault, ...] = details["ctx"]["faults"]
        return [
            (_joined(key, fault.key), fault.found, fault.accepted)
            for fault in faults
            if not any(_joined(key, read) in left_out for read in (fault.key, *fault.reads))
        ]
    if details["type"] == "extra_forbidden":
        return [(key, "an unknown key", nearest(location, root))]
    if location and location[-1] == "[key]":
        *_, name, _ = location
        table = shape_at(location[:-2], root)
        return [
            (key_text(location[:-2]), f"the name {_show(name)}", table.names if table else details["msg"])
        ]
    shape = shape_at(location, root)
    accepted = shape.accepts if shape is not None else details["msg"]
    if details["type"] == "missing":
        return [(key, "nothing", accepted)]
    if shape is None or shape.secret or shape.model is not None:
        return [(key, _kind(details["input"]), accepted)]
    return [(key, _show(details["input"]), accepted)]


def _joined(key: str, part: str) -> str:
    return f"{key}.{part}" if key and part else key or part


def _kind(value: object) -> str:
    """What a value is, without saying it."""
    match value:
        case bool():
            return "true or false"
        case str():
            return "text that is not shown"
        case int() | float():
            return "a number"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return "a date or time"


def _show(value: object) -> str:
    """A value as TOML would write it, cut when long."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = json.dumps(value, ensure_ascii=False)
            return text if len(text) <= _LONGEST else f'{text[: _LONGEST - 1]}…"'
        case int() | float():
            return str(value)[:_LONGEST]
        case _:
            return _kind(value)
