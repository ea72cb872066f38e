from __future__ import annotations

import math

import clawbox_client as cb
import pytest
from clawbox_client import requests, results, tools
from clawbox_client.v1 import sandbox_pb2
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers())
def test_integers_survive_the_way_there_and_back(number):
    sent = requests.execute("t", {"n": number}).params_json
    assert cb.ExecutionResult("r", cb.Outcome.OK, output_json=sent).output == {"n": number}


@pytest.mark.parametrize("value", [math.nan, math.inf, "\ud800"])
def test_what_json_cannot_hold_is_refused_before_it_is_sent(value):
    with pytest.raises(ValueError):
        requests.execute("t", value)


def test_an_object_that_is_not_json():
    with pytest.raises(TypeError):
        requests.execute("t", {1, 2})  # type: ignore[arg-type]


def test_params_in_two_forms():
    with pytest.raises(ValueError, match="not both"):
        requests.execute("t", {}, "{}")


def test_a_string_is_no_list():
    with pytest.raises(TypeError, match="lists"):
        requests.execute("t", options={"network": "api.example"})
    with pytest.raises(TypeError, match="lists"):
        requests.execute("t", options={"credentials": "github"})


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5000, "NaN", "Infinity", "{", ""])
def test_output_that_python_cannot_hold(text):
    result = cb.ExecutionResult("r", cb.Outcome.OK, output_json=text)
    with pytest.raises(cb.OutputError):
        _ = result.output
    assert result.output_json == text
    assert results.code_result(result).result is None


@pytest.mark.parametrize(
    "answer", ["null", "[]", '"text"', '{"stdout": 1, "error": "no object", "note": []}']
)
def test_an_interpreter_that_answers_something_else(answer):
    result = results.code_result(
        cb.ExecutionResult("r", cb.Outcome.OK, output_json=answer, stdout_bytes=b"x")
    )
    assert (result.stdout, result.error, result.note) == ("x", None, "")


@pytest.mark.parametrize(
    ("rule", "host", "ports"),
    [
        ("api.example", "api.example", []),
        ("api.example:8443", "api.example", [8443]),
        ("*.example", "*.example", []),
        ("192.0.2.1:80", "192.0.2.1", [80]),
        ("2001:db8::1", "2001:db8::1", []),
        ("[2001:db8::1]", "2001:db8::1", []),
        ("[2001:db8::1]:80", "2001:db8::1", [80]),
    ],
)
def test_network_rules(rule, host, ports):
    message = tools.network_rule(rule)
    assert (message.host, list(message.ports)) == (host, ports)


@pytest.mark.parametrize("rule", ["h:", "h:0", "h:x", "h:65536"])
def test_what_is_no_port(rule):
    with pytest.raises(ValueError, match="port"):
        tools.network_rule(rule)


@pytest.mark.parametrize("rule", ["https://api.example", "https://api.example:443/v1", "api.example/v1"])
def test_a_url_is_no_host(rule):
    with pytest.raises(ValueError, match="has a scheme or path; give a host"):
        tools.network_rule(rule)


def test_a_manifest_survives_the_message():
    manifest: dict[str, cb.Json] = {
        "tool": {"name": "t", "description": "d", "version": "1.0.0"},
        "network": {
            "allowlist": ["a.example", {"host": "b.example", "ports": [443], "on_shape": "report"}],
            "max_concurrent": 3,
        },
        "credentials": {"available": ["github"]},
        "resources": {"default_timeout_ms": 1000, "max_fuel": 2**63},
        "input_schema": {"type": "object", "required": ["a"], "maxProperties": 3, "multipleOf": 0.5},
    }
    assert tools.manifest_to_json(tools.manifest_from_json(manifest)) == manifest


@pytest.mark.parametrize(
    "manifest",
    [{"tol": {}}, {"tool": []}, {"network": {"allowlist": [5]}}, {"network": {"allowlist": "x"}},
     {"network": {"allowlist": [{"host": "x", "tls_mode": "off"}]}}, {"resources": {"max_fuel": -1}}],
)  # fmt: skip
def test_what_is_no_manifest(manifest):
    with pytest.raises(ValueError):
        tools.manifest_from_json(manifest)


def test_a_message_is_taken_as_it_is():
    message = sandbox_pb2.ToolManifest()
    assert tools.manifest_from_json(message) is message
