"""Checks JSON against a tool's schemas, inside a worker: a pattern can take for ever, and ends with its call.

References are looked up in an empty registry: a ``$ref`` to elsewhere fails and fetches nothing. ``format``
is an annotation, as JSON Schema 2020-12 has it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import jsonschema
import referencing.exceptions
from referencing import Registry

from clawbox.wasm.model import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema.protocols import Validator

_MAX_TEXT = 300


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> Validator:
    parsed = json.loads(schema)
    cls = jsonschema.validators.validator_for(parsed, default=jsonschema.Draft202012Validator)
    return cls(parsed, registry=Registry())


def violations(schema: bytes, value: Any, most: int) -> tuple[Violation, ...]:
    """The first ``most`` ways in which ``value`` breaks ``schema``, a JSON text; none if it is valid."""
    try:
        return tuple(islice(_errors(_validator(schema), value), most))
    except referencing.exceptions.Unresolvable as error:
        return (Violation("", "$ref", _bounded(f"the schema refers to what cannot be found: {error.ref}")),)
    except RecursionError:
        return (Violation("", "", "the value or the schema is nested too deeply"),)


def _errors(validator: Validator, value: Any) -> Iterator[Violation]:
    for error in validator.iter_errors(value):
        yield Violation(pointer(error.absolute_path), str(error.validator), _bounded(error.message))


def pointer(path: Any) -> str:
    """The JSON pointer (RFC 6901) of a path of keys and indexes."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def warm_up() -> None:
    """Load every metaschema and module that checking may need, while files can still be opened."""
    for cls in (
        jsonschema.Draft4Validator,
        jsonschema.Draft6Validator,
        jsonschema.Draft7Validator,
        jsonschema.Draft201909Validator,
        jsonschema.Draft202012Validator,
    ):
        schema = {
            "$schema": cls.META_SCHEMA.get("$schema", ""),
            "type": "object",
            "definitions": {"n": {"type": "number", "multipleOf": 2}},
            "properties": {
                "a": {"$ref": "#/definitions/n"},
                "b": {"type": "string", "pattern": "^x", "format": "date"},
            },
            "required": ["c"],
            "additionalProperties": False,
            "unevaluatedProperties": False,
        }
        cls.check_schema(schema)
        violations(json.dumps(schema).encode(), {"a": 3, "b": "y", "d": [1, 1]}, 20)
