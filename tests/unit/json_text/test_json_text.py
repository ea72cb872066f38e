"""JSON text: what is one, where it goes wrong, its limits, and what stays when strings are replaced."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox import json_text

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
fragments = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", ",", ":", '"a"', '"', "1", "-1.5e3", "0", "true", "null", " ", "\\", "NaN", "."]
    ),
    max_size=8,
).map("".join)


def python_reads(text: str) -> bool:
    try:
        json.loads(text, parse_constant=pytest.fail)
    except (ValueError, pytest.fail.Exception):
        return False
    return True


@given(values, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_what_a_json_library_writes_is_accepted(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    json_text.check(text)
    assert json_text.is_json(text)
    assert json_text.rewrite(text, lambda token, says: None) == text


@given(fragments)
def test_agrees_with_a_json_library_about_what_is_json(text):
    expected = python_reads(text)
    assert json_text.is_json(text.encode()) == expected
    try:
        list(json_text.strings(text.encode()))
    except json_text.NotJsonError:
        assert not expected
    else:
        assert expected


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b"", 0),
        (b"[1,]", 3),
        (b'{"a" 1}', 5),
        (b"[1 2]", 3),
        (b"01", 1),
        (b"NaN", 0),
        (b"[Infinity]", 1),
        (b"1 2", 2),
        (b'{"a":1, "a":2}', 8),
        (b'{"a":1, "\\u0061":2}', 8),
        (b'["ok", "\\ud800"]', 7),
        (b'"\xff"', 1),
        (b"\xef\xbb\xbf{}", 0),
        (b'["a\nb"]', 1),
        (b'["\\x"]', 1),
    ],
)
def test_says_where_a_text_goes_wrong(text, position):
    with pytest.raises(json_text.NotJsonError) as caught:
        json_text.check(text)
    assert caught.value.position == position


@pytest.mark.parametrize(
    "text", [b'{"a":{"a":1},"b":[{"a":1},{"a":2}]}', b'[{"a":1},{"a":1}]', b'"\\ud83d\\ude00"', b" [] "]
)
def test_one_meaning_is_accepted(text):
    json_text.check(text)


def test_levels_and_values_are_limited():
    json_text.check(b"[" * 64 + b"]" * 64)
    with pytest.raises(json_text.JsonTooBigError, match="64 levels"):
        json_text.check(b"[" * 65 + b"]" * 65)
    json_text.check(b"[" + b"1," * 99_998 + b"1]")
    with pytest.raises(json_text.JsonTooBigError, match="100,000 values"):
        json_text.check(b"[" + b"1," * 99_999 + b"1]")
    assert json_text.within(b"[" * 64 + b"]" * 64)
    assert not json_text.within(b"[" * 65 + b"]" * 65)
    assert json_text.within(b'["' + b"[{," * 200_000 + b'"]')


def test_depth_that_no_parser_survives_is_json_all_the_same():
    deep = b"[" * 200_000 + b"]" * 200_000
    assert json_text.is_json(deep)
    assert not json_text.is_json(deep[:-1])


def test_replacing_a_string_keeps_every_other_byte():
    text = b'{ "n": 12345678901234567890.123456789012345678901234567890, "k\\u0065y" : ["x\\n", 1e400]}'

    def shout(token, says):
        return "Ä\n" if says == "x\n" else None

    assert json_text.rewrite(text, shout) == text.replace(b'"x\\n"', '"Ä\\n"'.encode())


@given(values)
def test_all_strings_holds_each_string_as_it_reads(value):
    def walk(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            for item in value:
                yield from walk(item)
        elif isinstance(value, dict):
            for key, item in value.items():
                yield key
                yield from walk(item)

    text = json.dumps(value).encode()
    assert json_text.all_strings(text).decode(errors="replace") == "\n".join(walk(value)).encode(
        errors="replace"
    ).decode(errors="replace")


def test_pointers_escape_as_rfc_6901_says():
    assert json_text.pointer(["a/b", 0, "m~n", ""]) == "/a~1b/0/m~0n/"
    assert json_text.pointer([]) == ""
