"""JSON and the messages that hold it: ``google.protobuf.Struct`` and ``Value``.

Nothing here recurses, and what a stranger can make large is counted while it is read (docs/security.md, 95).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf import struct_pb2

from clawbox import json_text
from clawbox.errors import invalid_field
from clawbox.json_text import MAX_NODES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_DEPTH = 32
"""Levels of a Struct or Value. Readers of protobuf stop at 100 nested messages (C++, Java, Python), and an
object takes three of them; JSON text may have more levels."""

_EXACT = 1e21  # as JavaScript does: integers below it are written with all their digits


def struct_to_json(struct: struct_pb2.Struct, field: str = "params") -> bytes:
    """Compact JSON with sorted keys. Raises INVALID_FIELD."""
    return msgspec.json.encode(struct_to_object(struct, field), order="sorted")


def struct_to_object(struct: struct_pb2.Struct, field: str) -> dict[str, Any]:
    """The values that a Struct holds. Doubles that are integers become integers.

    Raises INVALID_FIELD for NaN, infinities and a Value without a kind, at its path, and for what is beyond
    the limits.
    """
    root: dict[str, Any] = {}
    nodes = 1
    # Containers to be read: where from, where to, their path and level.
    todo: list[tuple[Any, Any, str, int]] = [(struct.fields, root, field, 1)]
    while todo:
        source, target, path, depth = todo.pop()
        is_object = isinstance(target, dict)
        for key, value in source.items() if is_object else enumerate(source):
            nodes += 1
            if nodes > MAX_NODES:
                raise invalid_field(field, f"has more than {MAX_NODES:,} values", "max_values")
            kind = value.WhichOneof("kind")
            made: Any
            if kind == "string_value":
                made = value.string_value
            elif kind == "number_value":
                number = value.number_value
                if not math.isfinite(number):
                    where = _step(path, key)
                    raise invalid_field(where, "is not a number that JSON has", "finite")
                made = int(number) if number.is_integer() and abs(number) < _EXACT else number
            elif kind == "bool_value":
                made = value.bool_value
            elif kind == "null_value":
                made = None
            elif kind is None:
                raise invalid_field(_step(path, key), "is a Value without a kind", "kind")
            else:
                if depth >= MAX_DEPTH:
                    raise invalid_field(field, f"has more than {MAX_DEPTH} levels", "max_levels")
                if kind == "struct_value":
                    made, inner = {}, value.struct_value.fields
                else:
                    made, inner = [], value.list_value.values
                todo.append((inner, made, _step(path, key), depth + 1))
            if is_object:
                target[key] = made
            else:
                target.append(made)
    return root


def _step(path: str, key: str | int) -> str:
    step = f"[{key}]" if isinstance(key, int) else f".{key[:64]}"
    return path + step if len(path) < 512 else path


def json_to_value(text: bytes, value: struct_pb2.Value) -> None:
    """Fill ``value`` with valid JSON.

    What is beyond the limits on depth and number of values, or holds a number beyond a double, is one string.
    """
    if not json_text.within(text, max_depth=MAX_DEPTH):
        value.string_value = text.decode()
        return
    try:
        parsed = _decoder.decode(text.decode())
    except _NoDoubleError:
        value.string_value = text.decode()
        return
    set_value(value, parsed, clean=json_text.replace_surrogates if b"\\u" in text else _as_it_is)


class _NoDoubleError(ValueError):
    pass


def _double(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _NoDoubleError
    return number


_decoder = json.JSONDecoder(parse_int=_double, parse_float=_double)


def _as_it_is(text: str) -> str:
    return text


def set_value(value: struct_pb2.Value, content: object, clean: Callable[[str], str] = _as_it_is) -> None:
    """Fill ``value`` with what JSON can hold: None, bool, numbers, str, lists and dicts."""
    todo: list[tuple[Any, object]] = [(value, content)]
    while todo:
        target, item = todo.pop()
        if item is None:
            target.null_value = struct_pb2.NULL_VALUE
        elif isinstance(item, str):
            target.string_value = clean(item)
        elif isinstance(item, bool):
            target.bool_value = item
        elif isinstance(item, int | float):
            try:
                target.number_value = float(item)
            except OverflowError:
                target.string_value = str(item)
        elif isinstance(item, dict):
            target.struct_value.SetInParent()
            fields = target.struct_value.fields
            todo += [(fields[clean(key)], inner) for key, inner in item.items()]
        else:
            assert isinstance(item, list)
            target.list_value.SetInParent()
            values = target.list_value.values
            todo += [(values.add(), inner) for inner in item]


def set_struct(struct: struct_pb2.Struct, content: Mapping[str, object]) -> None:
    """Fill ``struct`` with what JSON can hold."""
    for key, item in content.items():
        set_value(struct.fields[key], item)
