"""Checks JSON against a tool's schemas, inside a worker: a pattern can take for ever, and ends with its call.

References are looked up in an empty registry: a ``$ref`` to elsewhere fails and fetches nothing. ``format``
is an annotation, as JSON Schema 2020-12 has it.
"""

from __future__ import annotations

import json
import math
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
_MAX_DIGITS = 300  # what a double holds; Python refuses to read integers of thousands of digits at all


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> Validator:
    parsed = json.loads(schema)
    cls = jsonschema.validators.validator_for(parsed, default=jsonschema.Draft202012Validator)
    return cls(parsed, registry=Registry())


def parse(text: str | bytes) -> Any:
    """The value of a JSON text as :func:`violations` wants it; raises ValueError, RecursionError.

    Numbers beyond a double are infinite: a schema can still say that they are numbers, and too large.
    """
    return json.loads(text, parse_int=_number)


def _number(digits: str) -> float:
    if len(digits) <= _MAX_DIGITS:
        return int(digits)
    return -math.inf if digits.startswith("-") else math.inf


def violations(schema: bytes, value: Any, most: int) -> tuple[Violation, ...]:
    """The first ``most`` ways in which ``value`` breaks ``schema``, a JSON text; none if it is valid.

    Never raises for what a value or a schema holds: either may have been made to break the validator.
    """
    try:
        return tuple(islice(_errors(_validator(schema), value), most))
    except referencing.exceptions.Unresolvable as error:
        return (Violation("", "$ref", _bounded(f"the schema refers to what cannot be found: {error.ref}")),)
    except RecursionError:
        return (Violation("", "", "the value or the schema is nested too deeply"),)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the validator's own limits, such as multipleOf of an infinity
        return (
            Violation("", "", f"the value cannot be checked against the schema ({type(error).__name__})"),
        )


def _errors(validator: Validator, value: Any) -> Iterator[Violation]:
    for error in validator.iter_errors(value):
        yield Violation(_text(pointer(error.absolute_path)), str(error.validator), _bounded(_message(error)))


def _message(error: jsonschema.ValidationError) -> str:
    """What is wrong, in words of JSON where the library's are Python's, such as ``None``."""
    wanted: Any = error.validator_value
    match error.validator:
        case "type":
            names = [wanted] if isinstance(wanted, str) else wanted
            return f"must be of type {' or '.join(map(str, names))}, not {_type_name(error.instance)}"
        case "enum":
            return f"must be one of {json.dumps(wanted)[1:-1]}"
        case "const":
            return f"must be {json.dumps(wanted)}"
        case _:
            return str(error.message)


def _type_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def pointer(path: Any) -> str:
    """The JSON pointer (RFC 6901) of a path of keys and indexes."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _text(text: str) -> str:
    """Without what no UTF-8 can say: JSON's escapes can name half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _bounded(text: str) -> str:
    text = _text(text)
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
