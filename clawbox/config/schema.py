"""The shape of the settings, read from the models: which keys exist, what each accepts, which are secret.

Errors, the environment, ``config show`` and the reference all use this one reading, so that they agree.
"""

from __future__ import annotations

import difflib
import enum
import json
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from clawbox.config.fields import Accepts, Masked
from clawbox.config.model import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Location = tuple[str | int, ...]
"""The way to a value: ``("auth", "tokens", 0, "name")``."""


_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
"""Keys that TOML writes without quotes."""


class Kind(enum.Enum):
    """How text from the environment becomes a value."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    PATH = "path"
    LIST = "list"
    PATHS = "list of paths"
    TABLES = "tables"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one value may be: the Python type without wrappers, and what the wrappers say."""

    core: object
    accepts: str
    secret: bool
    optional: bool

    @property
    def item(self) -> Shape | None:
        """The shape of a list's items or of a table's values; None for anything else."""
        arguments = get_args(self.core)
        if get_origin(self.core) is tuple:
            return shape_of(arguments[0])
        if get_origin(self.core) is dict:
            return shape_of(arguments[1])
        return None

    @property
    def names(self) -> str:
        """What the names of a table of tables may be; empty for anything else."""
        return shape_of(get_args(self.core)[0]).accepts if get_origin(self.core) is dict else ""

    @property
    def model(self) -> type[BaseModel] | None:
        """The model, when the value is a table with known keys."""
        return self.core if isinstance(self.core, type) and issubclass(self.core, BaseModel) else None

    @property
    def kind(self) -> Kind:
        """How the environment's text is read."""
        item = self.item
        if self.model is not None or (
            item is not None and (item.model is not None or get_origin(self.core) is dict)
        ):
            return Kind.TABLES
        if item is not None:
            return Kind.PATHS if item.core is Path else Kind.LIST
        if self.core is bool:
            return Kind.FLAG
        if self.core is int:
            return Kind.NUMBER
        return Kind.PATH if self.core is Path else Kind.TEXT


def shape_of(annotation: object, metadata: Sequence[object] = ()) -> Shape:
    """Unwraps ``Annotated`` and ``| None``. The outermost words win."""
    notes = list(metadata)
    optional = False
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *inner = get_args(annotation)
            notes = [*inner, *notes]
        elif get_origin(annotation) in (Union, types.UnionType):
            optional = True
            annotation = next(one for one in get_args(annotation) if one is not types.NoneType)
        else:
            break
    words = [note.text for note in notes if isinstance(note, Accepts)]
    secret = annotation is SecretStr or any(isinstance(note, Masked) for note in notes)
    return Shape(annotation, words[-1] if words else _words(annotation), secret, optional)


def _words(annotation: object) -> str:
    """What a type without words of its own accepts."""
    if get_origin(annotation) is Literal:
        *some, last = [f'"{choice}"' for choice in get_args(annotation)]
        return f"{', '.join(some)} or {last}"
    if get_origin(annotation) is tuple:
        item = shape_of(get_args(annotation)[0])
        return "a list of tables" if item.model else f"a list; each item: {item.accepts}"
    if get_origin(annotation) is dict:
        return "tables, each with a name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a table"
    return "text"


def fields_of(model: type[BaseModel]) -> dict[str, Shape]:
    """The keys of a table, in the order of the model."""
    return {name: shape_of(field.annotation, field.metadata) for name, field in model.model_fields.items()}


SECTIONS: dict[str, dict[str, Shape]] = {
    section: fields_of(shape.model) for section, shape in fields_of(Config).items() if shape.model is not None
}
"""Every section with its keys."""


def shape_at(location: Location, root: type[BaseModel] = Config) -> Shape | None:
    """The shape of the value at a location of a file of ``root``; None where nothing is known."""
    shape = shape_of(root)
    for step in location:
        if shape.model is not None:
            field = fields_of(shape.model).get(str(step))
            if field is None:
                return None
            shape = field
        elif (item := shape.item) is not None:
            shape = item
        else:
            return None
    return shape


def key_text(location: Location) -> str:
    """``auth.tokens[0].name``."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if _BARE.fullmatch(step) else f".{json.dumps(step)}"
    return text.removeprefix(".")


def all_keys(root: type[BaseModel] = Config) -> Iterator[str]:
    """Every ``section.key``."""
    for section, shape in fields_of(root).items():
        for key in () if shape.model is None else fields_of(shape.model):
            yield f"{section}.{key}"


def nearest(location: Location, root: type[BaseModel] = Config) -> str:
    """What an unknown key at ``location`` may have been meant to be, to be read after "accepted: "."""
    *parents, last = location
    unknown = str(last)
    parent = shape_at(tuple(parents), root)
    here = list(fields_of(parent.model)) if parent is not None and parent.model is not None else []
    prefix = f"{key_text(tuple(parents))}." if parents else ""
    if close := difflib.get_close_matches(unknown, here, n=1, cutoff=0.6):
        return f"{prefix}{close[0]}"
    elsewhere = {key.partition(".")[2]: key for key in all_keys(root)}
    if len(location) <= 2 and (close := difflib.get_close_matches(unknown, elsewhere, n=1, cutoff=0.7)):
        return " or ".join(key for key in all_keys(root) if key.partition(".")[2] == close[0])
    return f"one of {', '.join(f'{prefix}{key}' for key in here)}" if here else "nothing"
