"""Parameters and output between messages and JSON: what the form can hold is kept, within limits."""

import json
import math

import pytest
from clawbox_client.v1 import sandbox_pb2
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from clawbox.errors import ClawboxError, Reason
from clawbox.rpc import convert
from clawbox.rpc.json_values import MAX_DEPTH, json_to_value, set_struct, struct_to_json
from clawbox.wasm.output import OutputForm

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(text, children, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(text, values, max_size=5)


def struct_of(value):
    return json_format.ParseDict(value, struct_pb2.Struct())


@given(objects)
def test_params_become_the_same_json(value):
    assert json.loads(struct_to_json(struct_of(value))) == value


@given(objects)
def test_setting_a_struct_agrees_with_protobufs_own_conversion(value):
    struct = struct_pb2.Struct()
    set_struct(struct, value)
    assert struct == struct_of(value)


@given(values)
def test_output_becomes_the_same_value(value):
    message = struct_pb2.Value()
    json_to_value(json.dumps(value).encode(), message)
    assert message == json_format.ParseDict(value, struct_pb2.Value())


@given(objects)
def test_params_are_compact_with_sorted_keys(value):
    written = struct_to_json(struct_of(value)).decode()
    pairs = json.loads(written, object_pairs_hook=lambda pairs: pairs)
    stack = [pairs]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            keys = [pair[0] for pair in item if isinstance(pair, tuple)]
            assert keys == sorted(keys)
            stack += [pair[1] if isinstance(pair, tuple) else pair for pair in item]
    assert len(written) <= len(
        json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    ) + 20 * written.count("e")


@pytest.mark.parametrize(
    ("number", "written"),
    [(5.0, "5"), (-0.0, "0"), (1e20, "100000000000000000000"), (0.1, "0.1"), (2.0**53, "9007199254740992")],
)
def test_doubles_that_are_integers_are_written_as_integers(number, written):
    assert struct_to_json(struct_of({"n": number})) == b'{"n":%b}' % written.encode()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_at_their_path(number):
    struct = struct_pb2.Struct()
    struct.fields["a"].list_value.values.add().struct_value.fields["b"].number_value = number
    with pytest.raises(ClawboxError) as caught:
        struct_to_json(struct)
    assert caught.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == ["params.a[0].b"]


def test_a_value_without_a_kind_is_refused():
    struct = struct_pb2.Struct()
    struct.fields["a"].SetInParent()
    with pytest.raises(ClawboxError, match=r"params\.a: is a Value without a kind"):
        struct_to_json(struct)


def nested(depth):
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def test_output_that_a_client_could_not_read_as_a_value_is_a_string():
    response = sandbox_pb2.ExecuteStreamResponse()
    json_to_value(json.dumps(nested(MAX_DEPTH)).encode(), response.result.output)
    again = sandbox_pb2.ExecuteStreamResponse.FromString(response.SerializeToString())
    assert json_format.MessageToDict(again.result.output) == nested(MAX_DEPTH)
    for output in (
        json.dumps(nested(MAX_DEPTH + 1)),
        json.dumps([1] * 100_000),
        "[1e400]",
        "-1" + "0" * 400,
    ):
        value = struct_pb2.Value()
        json_to_value(output.encode(), value)
        assert value.string_value == output


def test_half_surrogate_pairs_in_output_become_replacement_characters():
    value = struct_pb2.Value()
    json_to_value(b'{"\\ud800": ["a\\udfff"]}', value)
    assert json_format.MessageToDict(value) == {"\ufffd": ["a\ufffd"]}


async def output(data, form, *, as_text):
    response = sandbox_pb2.ExecuteResponse()
    await convert.set_output(response, data, form, as_text=as_text)
    return response


async def test_output_comes_in_the_form_of_the_input():
    exact = b'{"id": 123456789012345678901234567890.10}'
    assert (await output(exact, OutputForm.JSON, as_text=True)).output_json == exact.decode()
    assert (await output(exact, OutputForm.JSON, as_text=False)).output.struct_value["id"] > 1e29
    long = json.dumps(["é" * 100_000, None]).encode()
    assert list((await output(long, OutputForm.JSON, as_text=False)).output.list_value)[1] is None


@pytest.mark.parametrize("as_text", [True, False])
async def test_output_that_is_not_json_is_a_string_and_never_null(as_text):
    response = await output(b'He said "hi"\n\xc3\xa9', OutputForm.TEXT, as_text=as_text)
    got = json.loads(response.output_json) if as_text else response.output.string_value
    assert got == 'He said "hi"\né'
    response = await output(b"\xff\x00", OutputForm.BINARY, as_text=as_text)
    assert (response.WhichOneof("result"), response.output_bytes) == ("output_bytes", b"\xff\x00")
    response = await output(b"", OutputForm.TEXT, as_text=as_text)
    assert response.WhichOneof("result") == ("output_json" if as_text else "output")
    response = await output(None, OutputForm.TEXT, as_text=as_text)
    assert response.WhichOneof("result") is None


async def params(**fields):
    return await convert.params(sandbox_pb2.ExecuteRequest(**fields))


async def test_params_json_is_passed_on_byte_for_byte():
    exact = '{ "b": 1.10, "a": 123456789012345678901234567890, "s": "\\u00e9" }\n'
    assert await params(params_json=exact) == exact.encode()
    long = json.dumps({"text": "x" * 1_000_000})
    assert await params(params_json=long) == long.encode()


async def test_no_params_are_null_and_empty_ones_an_empty_object():
    assert await params() == b"null"
    assert await params(params=struct_pb2.Struct()) == b"{}"
    assert await params(params=struct_of({"a": ["x" * 100_000]})) == b'{"a":["' + b"x" * 100_000 + b'"]}'


@pytest.mark.parametrize(
    ("bad", "position"),
    [("", 0), ("{", 1), ('{"a":NaN}', 5), ('{"a":1,"a":2}', 7), ("[1]]", 3), ('["\\ud800"]', 1)],
)
async def test_params_json_that_is_not_json_is_refused_with_its_position(bad, position):
    with pytest.raises(ClawboxError) as caught:
        await params(params_json=bad)
    assert caught.value.reason is Reason.INVALID_JSON
    assert caught.value.metadata["position"] == str(position)
