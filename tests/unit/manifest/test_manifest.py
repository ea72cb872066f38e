"""Manifests: what is read, what is refused, and that each refusal says where and why."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.errors import ClawboxError, Code, Reason
from clawbox.network_rules import NetworkRule
from clawbox.wasm.manifest import MAX_BYTES, Manifest

MINIMAL = {"tool": {"name": "echo", "description": "Says it again."}}


def parse(value: object) -> Manifest:
    return Manifest.parse(json.dumps(value).encode())


def refusal(data: bytes) -> dict[str, str]:
    """Field and description of each violation."""
    with pytest.raises(ClawboxError) as refused:
        Manifest.parse(data)
    assert refused.value.reason is Reason.INVALID_MANIFEST
    assert refused.value.code is Code.INVALID_ARGUMENT
    return {violation.field: violation.description for violation in refused.value.violations}


def refused(value: object) -> dict[str, str]:
    return refusal(json.dumps(value).encode())


def accepted_or_refused(data: bytes) -> Manifest | None:
    """Any other exception than INVALID_MANIFEST with violations fails the test."""
    with contextlib.suppress(ClawboxError):
        return Manifest.parse(data)
    assert refusal(data)
    return None


def test_the_least_manifest_reaches_nothing():
    manifest = parse(MINIMAL)
    assert (manifest.name, manifest.tool.version) == ("echo", "0.1.0")
    assert manifest.network_rules == ()
    assert manifest.credential_names == ()
    assert manifest.max_fuel is None
    assert manifest.input_schema is None


def test_a_full_manifest_of_the_original_and_of_ours():
    manifest = parse(
        {
            "tool": {"name": "gh", "description": "", "version": "1.2.3"},
            "network": {
                "allowlist": [
                    "api.github.com",
                    {"host": "*.example.com", "ports": [443], "methods": ["GET"]},
                ],
                "max_concurrent": 2,
            },
            "credentials": {"available": ["github"]},
            "resources": {
                "default_timeout_ms": 1000,
                "max_timeout_ms": 2000,
                "default_memory_mb": 8,
                "max_memory_mb": 16,
                "default_fuel": 5,
                "max_fuel": 6,
            },
            "input_schema": {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/b"}},
                "$defs": {"b": {}},
            },
            "output_schema": None,
        }
    )
    assert manifest.network_rules == (
        NetworkRule("api.github.com"),
        NetworkRule("*.example.com", ports=(443,), methods=("GET",)),
    )
    assert (manifest.max_concurrent, manifest.credential_names) == (2, ("github",))
    assert (manifest.default_timeout_ms, manifest.max_fuel) == (1000, 6)
    assert Manifest.parse(manifest.to_json()) == manifest


def test_every_problem_is_reported_at_once():
    assert refused(
        {
            "tool": {"name": "a b", "descripton": ""},
            "netwrok": {},
            "network": {"allowlist": ["ok.com", "http://x", {"host": "a.com", "ports": [0]}]},
            "resources": {"default_timeout_ms": 0, "max_memory_mb": "8"},
            "input_schema": {"type": "objekt"},
            "output_schema": [],
        }
    ).keys() == {
        "tool.name",
        "tool.description",
        "tool.descripton",
        "netwrok",
        "network.allowlist[1]",
        "network.allowlist[2]",
        "resources.default_timeout_ms",
        "resources.max_memory_mb",
        "input_schema/type",
        "output_schema",
    }


def test_an_unknown_key_names_the_nearest_known():
    found = refused({**MINIMAL, "netwrok": {}, "resources": {"zzz": 1}})
    assert found["netwrok"] == "unknown key; did you mean network?"
    assert "max_fuel" in found["resources.zzz"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"tool": 1, "tool": 2}', "'tool' occurs twice"),
        (b'{"tool": NaN}', "NaN is not JSON"),
        (b'{"tool": -Infinity}', "-Infinity is not JSON"),
        (b'{"tool": 1e999}', "too large"),
        (b'{"tool": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"tool": ' + b"9" * 400 + b"}", "too large"),
        (b'{"tool": "\\ud800"}', "surrogates not allowed"),
        (b"[" * 100_000, "deeper"),
        (b'{"tool":' + b"[" * 200 + b"]" * 200 + b"}", "deeper"),
        (b" " * (MAX_BYTES + 1), "larger"),
    ],
)
def test_what_is_not_strict_json_is_refused(data, says):
    assert says in refusal(data)[""]


@pytest.mark.parametrize("name", ["", "a" * 65, "a.b", "../a", "a/b", "a\n", "ä"])
def test_names_are_plain(name):
    assert refused({"tool": {"name": name, "description": ""}}).keys() == {"tool.name"}


def test_a_default_over_its_maximum_is_refused():
    found = refused({**MINIMAL, "resources": {"default_fuel": 7, "max_fuel": 6}})
    assert found == {"resources": "default_fuel (7) is more than max_fuel (6)"}


def test_every_host_needs_an_operator_who_says_so():
    value = {**MINIMAL, "network": {"allowlist": ["*"]}}
    assert "bare *" in refused(value)["network.allowlist[0]"]
    assert Manifest.parse(json.dumps(value).encode(), any_host=True).network_rules[0].host == "*"


@pytest.mark.parametrize(
    ("schema", "field", "says"),
    [
        ({"$ref": "https://example.com/s.json"}, "input_schema/$ref", "outside the document"),
        ({"$ref": "other.json#/x"}, "input_schema/$ref", "outside the document"),
        ({"allOf": [{"$dynamicRef": "file:///etc/passwd"}]}, "input_schema/allOf/0/$dynamicRef", "outside"),
        ({"$ref": "#/$defs/nothing"}, "input_schema", "points at nothing"),
        ({"properties": {"a/b": {"type": 1}}}, "input_schema/properties/a~1b/type", "not valid"),
        ({"pattern": "("}, "input_schema/pattern", "regex"),
        ({"pattern": "a{99999999999}"}, "input_schema", "cannot be checked"),
        ({"$schema": "https://example.com/mine"}, "input_schema/$schema", "unknown draft"),
        ({"$schema": 1}, "input_schema/$schema", "unknown draft"),
        ({"minLength": -1}, "input_schema/minLength", "minimum"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_where_it_is_wrong(schema, field, says):
    found = refused({**MINIMAL, "input_schema": schema})
    assert list(found) == [field]
    assert says in found[field]


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a": {}},
            "$ref": "#/definitions/a",
        },
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://example.com/mine",
            "$ref": "#",
        },
        {"properties": {"$ref": {"type": "string"}}},
        {"$defs": {"tree": {"$anchor": "t", "items": {"$ref": "#t"}}}, "$ref": "#t"},
        {},
    ],
)
def test_ordinary_schemas_are_accepted(schema):
    manifest = parse({**MINIMAL, "input_schema": schema})
    assert manifest.input_schema == schema
    assert Manifest.parse(manifest.to_json()) == manifest


def test_a_large_schema_is_refused():
    found = refused({**MINIMAL, "input_schema": {"enum": list(range(30_000))}})
    assert found == {"input_schema": "more than 20000 values"}


def test_values_are_read_like_json():
    assert Manifest.from_value(MINIMAL) == parse(MINIMAL)
    for bad in ({"tool": {1, 2}}, {"tool": float("nan")}, {"tool": "\ud800"}):
        with pytest.raises(ClawboxError) as error:
            Manifest.from_value(bad)
        assert error.value.reason is Reason.INVALID_MANIFEST


def test_a_module_without_manifest_gets_the_originals():
    manifest = Manifest.automatic("echo")
    assert (manifest.tool.description, manifest.tool.version) == ("Auto-loaded WASM tool", "0.0.0")
    assert manifest.network_rules == ()


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_keys = st.sampled_from(
    [
        *(
            "tool",
            "network",
            "credentials",
            "resources",
            "input_schema",
            "output_schema",
            "name",
            "description",
        ),
        *(
            "allowlist",
            "max_concurrent",
            "available",
            "default_fuel",
            "max_fuel",
            "host",
            "ports",
            "$ref",
            "$id",
        ),
        *(
            "$schema",
            "$anchor",
            "$defs",
            "properties",
            "pattern",
            "type",
            "items",
            "allOf",
            "enum",
            "required",
        ),
    ]
)
_values = st.recursive(
    _scalars | st.sampled_from(["object", "#", "#/$defs/a", "(", "a{9}", "echo", "a.com"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_keys | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=25,
)


@given(
    st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_read_or_refused(data):
    accepted_or_refused(data)


@given(st.dictionaries(_keys, _values, max_size=6), _values, _values)
def test_any_json_is_read_or_refused(value, section, schema):
    value = MINIMAL | value | {"network": section, "input_schema": schema}
    for candidate in (value, MINIMAL | {"input_schema": schema}, MINIMAL | {"network": section}):
        manifest = accepted_or_refused(json.dumps(candidate).encode())
        assert manifest is None or Manifest.parse(manifest.to_json()) == manifest
