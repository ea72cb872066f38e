"""What a caller reads about parameters that their schema refuses."""

import json

import pytest

from clawbox.wasm.schema import violations


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        ({"type": "object"}, None, "must be of type object, not null"),
        ({"type": ["string", "integer"]}, True, "must be of type string or integer, not boolean"),
        ({"type": "integer"}, 1.5, "must be of type integer, not number"),
        ({"enum": ["a", None, True]}, {}, 'must be one of "a", null, true'),
        ({"const": {"on": False}}, [], 'must be {"on": false}'),
        ({"required": ["code"]}, {}, "'code' is a required property"),
    ],
)
def test_violations_speak_json(schema, value, said):
    [violation] = violations(json.dumps(schema).encode(), value, 9)
    assert violation.message == said
