"""Schemas and values that were made to break whoever checks them."""

import time

import pytest

from clawbox.errors import ClawboxError
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.manifest_schema import MAX_SECONDS, schema_problems
from clawbox.wasm.model import Abi, InvalidInputError, Outcome
from tests.unit.wasm import wat

HUGE = b"1" * 5000


def returning(text, *, tag):
    """A component that returns ``text`` as ``ok`` (0) or ``err`` (1), whatever it is given."""
    return wat.component_text(
        f"""(i32.store (i32.const 16) (i32.const {tag})) (i32.store (i32.const 20) (i32.const 2048))
            (i32.store (i32.const 24) (i32.const {len(text.encode())})) (i32.const 16)"""
    ).replace(
        '(memory (export "memory") 4)',
        f'(memory (export "memory") 4) (data (i32.const 2048) "{wat.quoted(text)}")',
    )


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        pytest.param(b'{"properties": {"a": {"type": "string"}}}', b'{"a": ' + HUGE + b"}", id="5000 digits"),
        pytest.param(
            b'{"properties": {"a": {"multipleOf": 0.1}}}', b'{"a": ' + HUGE[:305] + b"}", id="305 digits"
        ),
        pytest.param(b'{"properties": {"a": {"multipleOf": 0.1}}}', b'{"a": 1e999}', id="infinity"),
        pytest.param(b'{"$ref": "#"}', b"{}", id="circle"),
    ],
)
async def test_params_that_break_the_validator_are_invalid_and_cost_no_worker(pool, execute, schema, params):
    with pytest.raises(InvalidInputError):
        await execute(wat.ECHO, params, input_schema=schema)
    assert pool.stats().lost_total == 0


async def test_a_number_of_any_length_is_a_number(execute):
    params = b'{"a": -' + HUGE + b"}"
    result = await execute(wat.ECHO, params, input_schema=b'{"properties": {"a": {"type": "number"}}}')
    assert (result.outcome, result.output) == (Outcome.OK, params)


@pytest.mark.parametrize(
    ("output", "schema"),
    [
        pytest.param(r'{"\ud800": "y"}', b'{"additionalProperties": {"type": "integer"}}', id="half a pair"),
        pytest.param(HUGE[:305].decode(), b'{"multipleOf": 0.1}', id="305 digits"),
        pytest.param("[" * 300 + "]" * 300, b'{"items": {"$ref": "#"}}', id="deep"),
    ],
)
async def test_output_that_breaks_the_validator_is_invalid_and_costs_no_worker(pool, execute, output, schema):
    result = await execute(returning(output, tag=0), abi=Abi.COMPONENT, output_schema=schema)
    assert result.outcome is Outcome.INVALID_OUTPUT
    assert pool.stats().lost_total == 0


@pytest.mark.parametrize("text", [r'{"error": "a\ud800b"}', r'{"error": {"type": "a", "message": "\udfff"}}'])
async def test_an_error_with_half_a_surrogate_pair_is_a_tool_error(pool, execute, text):
    result = await execute(returning(text, tag=1), abi=Abi.COMPONENT)
    assert (result.outcome, result.output) == (Outcome.TOOL_ERROR, text.encode())
    assert "?" in result.message
    assert pool.stats().lost_total == 0


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(
            {"anyOf": [{"$ref": f"#gone{number}"} for number in range(6000)]}, id="anchors that are not there"
        ),
        pytest.param(
            {"allOf": [{"pattern": "[\x01-\uffff]" * 190 + "a" * number} for number in range(40)]},
            id="patterns of all Unicode",
        ),
        pytest.param({"pattern": "(?i:[\u0100-\uffff])" * 2000}, id="one pattern of all Unicode"),
        pytest.param({"pattern": "(?i:[\U00010000-\U0010ffff])" * 50}, id="case of all Unicode"),
    ],
)
def test_a_schema_that_takes_long_to_check_is_refused_in_time(schema):
    began = time.process_time()
    assert schema_problems(schema)
    assert time.process_time() - began < 2 * MAX_SECONDS


def test_a_manifest_of_many_keys_is_refused_in_time():
    keys = ",".join(f'"k{number}": 1' for number in range(18_000))
    began = time.process_time()
    with pytest.raises(ClawboxError, match="'k17999' occurs twice"):
        Manifest.parse(f'{{{keys}, "k17999": 2}}'.encode())
    assert time.process_time() - began < 0.5  # it took 4 s
