import json

import pytest
import wasmtime
from wasmtime import component

from clawbox.wasm.guest import error_message, failed, returned
from clawbox.wasm.model import Outcome


@pytest.mark.parametrize(
    ("text", "message", "out_of_memory"),
    [
        ("plain", "plain", False),
        ("{not json", "{not json", False),
        ('{"error": "said"}', "said", False),
        ('{"error": {"type": "E", "message": "m"}}', "E: m", False),
        ('{"error": {"type": "E"}}', "E", False),
        ('{"error": 5}', '{"error": 5}', False),
        ('{"error": {}}', '{"error": {}}', False),
        ('{"error": {"type": "MemoryError"}}', "MemoryError", True),
        ("x" * 9000, "x" * 4096, False),
        ("{" * 100_000, "{" * 4096, False),
        (json.dumps({"error": {"type": ["a"], "message": 3}}), "['a']: 3", False),
    ],
)
def test_the_message_of_a_tools_error(text, message, out_of_memory):
    assert (message, out_of_memory) == error_message(text)


def test_words_in_a_backtrace_say_nothing():
    names = " 0: all fuel consumed epoch interrupt Caused by:\nout of memory"
    text = f"error while executing:\n{names}\n\nCaused by:\n    wasm trap: integer divide by zero"
    ended = failed(wasmtime.WasmtimeError(text), instantiated=True)
    assert ended.outcome is Outcome.TOOL_ERROR
    assert ended.message.startswith("trap: integer divide by zero\n")


def test_a_command_components_result():
    assert returned(component.Variant("ok")).outcome is Outcome.OK
    assert (
        returned(component.Variant("err")).outcome,
        returned(component.Variant("err")).exit_code,
    ) == (Outcome.TOOL_ERROR, 1)
