"""The settings in force, to be shown: every key, its value with secrets masked, and where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from clawbox.config.schema import SECTIONS, Shape, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.config.load import Loaded

MASK = "********"


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting."""

    key: str
    value: object
    """What JSON holds: text, numbers, booleans, None, lists and objects."""
    source: str

    @property
    def text(self) -> str:
        """The value as TOML would write it; "" for none."""
        return '""' if self.value is None else json.dumps(self.value, ensure_ascii=False)


def settings_of(loaded: Loaded) -> Iterator[Shown]:
    """Every setting, in the order of the reference. No value of a secret is in it."""
    for section, keys in SECTIONS.items():
        model = getattr(loaded.config, section)
        plain = model.model_dump(mode="json")
        for key, shape in keys.items():
            name = f"{section}.{key}"
            yield Shown(name, _masked(plain[key], shape, getattr(model, key)), loaded.source_of(name))


def _masked(value: object, shape: Shape, original: object) -> object:
    """``value`` with every secret in it replaced; one that is not set stays None."""
    if value is None:
        return None
    if shape.secret or isinstance(original, SecretStr):
        return MASK
    inner = shape.item
    if isinstance(value, list) and inner is not None:
        originals = original if isinstance(original, tuple) else ()
        return [_masked(one, inner, its) for one, its in zip(value, originals, strict=True)]
    if isinstance(value, dict):
        if shape.model is not None:
            fields = fields_of(shape.model)
            return {key: _masked(one, fields[key], getattr(original, key)) for key, one in value.items()}
        if inner is not None and isinstance(original, dict):
            return {key: _masked(one, inner, original[key]) for key, one in value.items()}
    return value
