"""The JavaScript interpreter: what an agent sees that runs code in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clawbox.wasm.egress import HttpRequest
from clawbox.wasm.model import Level
from tests.integration.tools.sandbox import Recorded

if TYPE_CHECKING:
    from tests.integration.tools.sandbox import Sandbox


def test_output_result_and_input_are_apart(javascript: Sandbox) -> None:
    code = "console.log('out ü☃', 1, {a: [1]}); console.error('err'); result = input.n * 2"
    ended = javascript.run({"code": code, "input": {"n": 21}})
    assert ended.ok
    assert ended.answer == {"stdout": "out ü☃ 1 { a: [1] }\n", "stderr": "err\n", "result": 42, "error": None}
    assert b"".join(ended.stdout).decode() == "out ü☃ 1 { a: [1] }\n"
    assert b"".join(ended.stderr) == b"err\n"


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("1 + 1", 2),
        ("const x = 3", None),
        ("const result = 5;\n6", 5),
        ("let result = {a: 1}", {"a": 1}),
        ("'use strict'; var result = 4; 6", 4),
        ("// nothing", None),
        ("7 // the end", 7),
        ("await 1", 1),
        ("const x = await Promise.resolve(4); x * 2", 8),
        ("const x = await Promise.resolve(4);\nconst result = x * 3;\nfor (const a of [1]) { await a }", 12),
        ("const a = 1\n+ await 3\n", None),
        ("(async () => { await null; return 5 })()", 5),
        ("await new Promise((done) => setTimeout(done, 2)); 'slept'", "slept"),
        (
            "({a: 'ü', b: [1.5, true, null], d: new Date(0)})",
            {"a": "ü", "b": [1.5, True, None], "d": "1970-01-01T00:00:00.000Z"},
        ),
    ],
)
def test_result_is_explicit_or_the_completion_value(javascript: Sandbox, code: str, result: object) -> None:
    answer = javascript.run({"code": code}).answer
    assert answer["error"] is None
    assert answer["result"] == result
    assert "note" not in answer


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("new Map([[1, {a: 2}]])", "Map(1) { 1 => { a: 2 } }"),
        ("({a: 1n, b: [NaN]})", {"a": "1n", "b": ["NaN"]}),
        ("const a = {}; a.a = a; a", "{ a: [Circular] }"),
        ("(function f() {})", "[Function f]"),
    ],
)
def test_result_that_is_no_json_is_shown_with_a_note(javascript: Sandbox, code: str, result: object) -> None:
    answer = javascript.run({"code": code}).answer
    assert answer["result"] == result
    assert "not JSON" in answer["note"]


def test_stack_names_the_line_and_shows_only_user_code(javascript: Sandbox) -> None:
    ended = javascript.run(
        {"code": "console.log('before');\nfunction f() {\n  throw new TypeError('bad');\n}\nf()"}
    )
    assert ended.answer["stdout"] == "before\n"
    assert ended.error == {
        "type": "TypeError",
        "message": "bad",
        "line": 3,
        "traceback": "code.js:3\n  throw new TypeError('bad');\n        ^\nTypeError: bad\n"
        "    at f (code.js:3:9)\n    at code.js:5:1\n",
    }


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("let x = 1;\nlet y = ;", 2),
        ("await 1;\nlet y = ;", 2),
        ("`never closed", 1),
        ("import x from 'y'", 1),
    ],
)
def test_syntax_errors_have_their_line(javascript: Sandbox, code: str, line: int) -> None:
    error = javascript.run({"code": code}).error
    assert (error["type"], error["line"]) == ("SyntaxError", line)


@pytest.mark.parametrize(
    ("code", "kind", "line"),
    [
        ("const x = await Promise.resolve({});\nx.a.b", "TypeError", 2),
        ("await Promise.reject(new RangeError('r'))", "RangeError", 1),
        ("async function main() {\n  await null;\n  throw new Error('q');\n}\nmain()", "Error", 3),
        ("setTimeout(() => {\n  throw new Error('later')\n}, 1)", "Error", 2),
        ("function f() { f() }\nf()", "InternalError", 1),
        ("JSON.parse('{')", "SyntaxError", 1),
        ("require('fs')", "ReferenceError", 1),
    ],
)
def test_errors_wherever_they_come_from(javascript: Sandbox, code: str, kind: str, line: int) -> None:
    error = javascript.run({"code": code}).error
    assert (error["type"], error["line"]) == (kind, line)
    assert "interpreter.js" not in error["traceback"]
    assert "initializer.js" not in error["traceback"]


def test_thrown_values_that_are_no_errors(javascript: Sandbox) -> None:
    error = javascript.run({"code": "throw {code: 1}"}).error
    assert (error["type"], error["message"], error["line"]) == ("object", "{ code: 1 }", None)


def test_run_ends_when_the_timers_have_fired(javascript: Sandbox) -> None:
    code = (
        "let n = 0;\n"
        "const t = setInterval(() => { console.log(++n); if (n === 3) clearInterval(t); }, 1);\n"
        "'first'"
    )
    answer = javascript.run({"code": code}).answer
    assert (answer["stdout"], answer["result"]) == ("1\n2\n3\n", "first")


def test_promise_that_nothing_settles_is_an_error(javascript: Sandbox) -> None:
    error = javascript.run({"code": "await new Promise(() => {})"}).error
    assert "deadlock" in error["message"]


def test_endless_loop_runs_out_of_fuel(javascript: Sandbox) -> None:
    ended = javascript.run({"code": "console.log('start'); while (true);"}, fuel=200_000_000)
    assert "all fuel consumed" in ended.trap
    assert b"".join(ended.stdout) == b"start\n"


def test_nothing_survives_a_call(javascript: Sandbox) -> None:
    assert javascript.run({"code": "globalThis.leaked = 1; Array.prototype.leaked = 1"}).ok
    assert javascript.run({"code": "[typeof leaked, [].leaked === undefined]"}).answer["result"] == [
        "undefined",
        True,
    ]


def test_random_differs_between_calls(javascript: Sandbox) -> None:
    code = "[Math.random(), crypto.randomUUID(), Date.now() > 1.7e12]"
    first, second = (javascript.run({"code": code}).answer["result"] for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[2]


def test_damage_to_the_interpreter_harms_only_its_own_names(javascript: Sandbox) -> None:
    code = "JSON.stringify = JSON.parse = null; globalThis.console = null; globalThis.eval = null; ({a: 1})"
    assert javascript.run({"code": code}).answer["result"] == {"a": 1}


def test_half_characters_make_valid_output(javascript: Sandbox) -> None:
    answer = javascript.run({"code": "console.log('\\ud800'); '\\ud800'"}).answer
    assert (answer["stdout"], answer["result"]) == ("\ufffd\n", "\ufffd")


def test_host_functions(javascript: Sandbox) -> None:
    ended = javascript.run({"code": "clawbox.log('info', 'hello ü'); clawbox.log('warning', 5)"})
    assert ended.logs == [(Level.INFO, "hello ü"), (Level.WARN, "5")]
    assert javascript.run({"code": "clawbox.log('loud', 'x')"}).error["type"] == "RangeError"
    error = javascript.run({"code": "clawbox.call('nope', {a: 1})"}).error
    assert (error["type"], error["message"]) == ("HostError", "unknown host call method: nope")


@pytest.mark.parametrize(
    "code", ["\nclawbox.httpRequest('GET', 'https://example.com/')", "\nawait fetch('https://example.com')"]
)
def test_refused_request_is_an_error_with_the_reason(javascript: Sandbox, code: str) -> None:
    error = javascript.run({"code": code}).error
    assert (error["type"], error["line"]) == ("HostError", 2)
    assert error["message"].startswith("URL blocked by allowlist: https://example.com")


def test_request_and_response_reach_the_code_whole(javascript: Sandbox) -> None:
    egress = Recorded()
    code = (
        "const r = await fetch('https://example.com/x', {method: 'post', headers: {k: 'v'}, body: 'ü'});\n"
        "[r.status, r.ok, r.headers.get('A'), [...r.headers].length, await r.json()]"
    )
    ended = javascript.run({"code": code}, egress=egress)
    assert ended.answer["result"] == [201, True, "1, 2", 3, {"n": 1}]
    assert egress.requests == [HttpRequest("POST", "https://example.com/x", (("k", "v"),), "ü".encode())]
