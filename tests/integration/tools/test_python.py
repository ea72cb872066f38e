"""The Python interpreter: what an agent sees that runs code in it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from clawbox.wasm.build.builtin import SOURCES
from clawbox.wasm.egress import HttpRequest
from clawbox.wasm.model import Level
from tests.integration.tools.modules import importable
from tests.integration.tools.sandbox import Recorded

if TYPE_CHECKING:
    from tests.integration.tools.sandbox import Sandbox

BERLIN = (
    "d = datetime.datetime(2026, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin'))\n"
    "d.utcoffset().total_seconds()"
)


def test_output_result_and_input_are_apart(python: Sandbox) -> None:
    ended = python.run(
        {
            "code": "import sys\nprint('out ü☃', flush=True)\n"
            "print('err', file=sys.stderr)\nresult = input['n'] * 2",
            "input": {"n": 21},
        }
    )
    assert ended.ok
    assert ended.answer == {"stdout": "out ü☃\n", "stderr": "err\n", "result": 42, "error": None}
    assert b"".join(ended.stdout).decode() == "out ü☃\n"
    assert b"".join(ended.stderr) == b"err\n"


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("1 + 1", 2),
        ("x = 3", None),
        ("x = [1, 2]\nx", [1, 2]),
        ("result = 5\n6", 5),
        ("result = None\n6", None),
        ("# nothing", None),
        ("", None),
        ("input", None),
        ("if True:\n    7", None),
        ("{'ü': [1.5, True, None]}", {"ü": [1.5, True, None]}),
    ],
)
def test_result_is_explicit_or_the_last_expression(python: Sandbox, code: str, result: object) -> None:
    answer = python.run({"code": code}).answer
    assert answer["result"] == result
    assert "note" not in answer


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("{'a': {1}}", {"a": "{1}"}),
        ("float('nan')", "nan"),
        ("{(1, 2): 3}", "{(1, 2): 3}"),
        ("x = []\nx.append(x)\nx", "[[...]]"),
        (
            "class A:\n    def __repr__(self):\n        raise ValueError\nA()",
            "<A object whose repr failed>",
        ),
    ],
)
def test_result_that_is_no_json_becomes_its_repr_with_a_note(
    python: Sandbox, code: str, result: object
) -> None:
    ended = python.run({"code": code})
    assert ended.ok
    assert ended.answer["result"] == result
    assert "repr" in ended.answer["note"]


def test_traceback_names_the_line_and_shows_only_user_code(python: Sandbox) -> None:
    ended = python.run({"code": "def f(n):\n    return 1 / n\n\nprint('before')\nf(0)\n"})
    assert not ended.ok
    assert ended.answer["stdout"] == "before\n"
    assert ended.error == {
        "type": "ZeroDivisionError",
        "message": "division by zero",
        "line": 2,
        "traceback": "Traceback (most recent call last):\n"
        '  File "<code>", line 5, in <module>\n'
        "    f(0)\n"
        "    ~^^^\n"
        '  File "<code>", line 2, in f\n'
        "    return 1 / n\n"
        "           ~~^~~\n"
        "ZeroDivisionError: division by zero\n",
    }


def test_error_in_the_library_names_the_line_that_called_it(python: Sandbox) -> None:
    error = python.run({"code": "import json\n\njson.loads('{')"}).error
    assert error["type"] == "json.decoder.JSONDecodeError"
    assert error["line"] == 3
    assert "json.loads('{')" in error["traceback"]


def test_syntax_error_has_a_caret(python: Sandbox) -> None:
    error = python.run({"code": "x = 1\ny = = 2"}).error
    assert (error["type"], error["line"]) == ("SyntaxError", 2)
    assert "    y = = 2\n        ^\n" in error["traceback"]
    error = python.run({"code": "\n\nreturn 5"}).error
    assert (error["line"], error["message"]) == (3, "'return' outside function")
    assert "    return 5\n" in error["traceback"]


def test_chained_exceptions_are_shown(python: Sandbox) -> None:
    error = python.run(
        {"code": "try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('v') from e"}
    ).error
    assert (error["type"], error["line"]) == ("ValueError", 4)
    assert "KeyError: 'k'\n\nThe above exception was the direct cause" in error["traceback"]


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit()", "raise SystemExit(0)", "exit_ = __import__('os')._exit\nexit_(0)"]
)
def test_exit_with_success_ends_well(python: Sandbox, code: str) -> None:
    ended = python.run({"code": f"result = 4\nprint('x')\n{code}"})
    assert ended.ok
    assert (ended.answer["result"], ended.answer["stdout"]) == (4, "x\n")


@pytest.mark.parametrize(
    ("code", "message", "stderr"),
    [
        ("import sys; sys.exit(3)", "exit status 3", ""),
        ("import sys; sys.exit('bad')", "bad", "bad\n"),
        ("import os; os._exit(4)", "exit status 4", ""),
    ],
)
def test_exit_with_failure_is_an_error(python: Sandbox, code: str, message: str, stderr: str) -> None:
    ended = python.run({"code": f"print('kept'); {code}"})
    assert (ended.error["type"], ended.error["message"]) == ("SystemExit", message)
    assert (ended.answer["stdout"], ended.answer["stderr"]) == ("kept\n", stderr)


@pytest.mark.parametrize(
    "code",
    [
        "def f(): f()\nf()",
        "class A:\n    def __getattr__(self, n): return getattr(self, 'x')\nA().y",
        "class A:\n    def __repr__(self): return repr(self)\nrepr(A())",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    ],
)
def test_deep_recursion_is_an_exception(python: Sandbox, code: str) -> None:
    ended = python.run({"code": code})
    assert ended.error["type"] == "RecursionError"


def test_memory_that_is_not_there_is_an_exception(python: Sandbox) -> None:
    ended = python.run(
        {"code": "print('start')\nx = []\nwhile True: x.append(bytes(1 << 20))"}, memory=96 << 20
    )
    assert (ended.error["type"], ended.error["line"]) == ("MemoryError", 3)
    assert ended.answer["stdout"] == "start\n"


def test_endless_loop_runs_out_of_fuel(python: Sandbox) -> None:
    ended = python.run({"code": "print('start')\nwhile True: pass"}, fuel=200_000_000)
    assert "all fuel consumed" in ended.trap
    assert ended.stdout == [b"start\n"]


def test_lines_are_written_through_as_they_are_printed(python: Sandbox) -> None:
    ended = python.run({"code": "for n in range(3): print('line', n)\nprint('no end', end='')"})
    assert ended.stdout == [b"line 0\n", b"line 1\n", b"line 2\n", b"no end"]
    assert ended.answer["stdout"] == "line 0\nline 1\nline 2\nno end"


def test_bytes_and_half_characters_make_valid_output(python: Sandbox) -> None:
    ended = python.run(
        {"code": "import sys\nsys.stdout.buffer.write(b'\\xff\\n')\nprint('\\ud800')\n'\\ud800'"}
    )
    assert ended.ok
    assert ended.answer["stdout"] == "\ufffd\n\\ud800\n"
    assert ended.answer["result"] == "?"


def test_nothing_survives_a_call(python: Sandbox) -> None:
    assert python.run({"code": "import json\njson.leaked = globals()['leaked'] = 1"}).ok
    ended = python.run({"code": "import json\n[hasattr(json, 'leaked'), 'leaked' in globals()]"})
    assert ended.answer["result"] == [False, False]


def test_random_and_time_are_not_those_of_the_build(python: Sandbox) -> None:
    code = (
        "import random, secrets, time, uuid, logging\n"
        "[random.random(), random.Random().random(), secrets.token_hex(8), str(uuid.uuid4()), time.time()]"
    )
    first, second = (python.run({"code": code}).answer["result"] for _ in range(2))
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert abs(second[-1] - time.time()) < 60


def test_damage_to_the_interpreter_harms_only_its_own_names(python: Sandbox) -> None:
    code = (
        "import builtins, json, sys, traceback\n"
        "for name in ('len', 'isinstance', 'str', 'type', 'print', 'dict'): setattr(builtins, name, None)\n"
        "json.dumps = json.JSONEncoder.encode = None\n"
        "sys.modules.clear()\n"
        "sys.stdout.write('printed\\n')\n"
        "sys.stdout = sys.stderr = None\n"
        "1 / 0"
    )
    ended = python.run({"code": code})
    assert not ended.ok
    assert not ended.trap
    assert ended.error["type"] == "ZeroDivisionError"
    assert ended.answer["stdout"] == "printed\n"


def test_closed_and_replaced_streams(python: Sandbox) -> None:
    ended = python.run(
        {"code": "import sys, io\nprint('a')\nsys.stdout.close()\nsys.stdout = io.StringIO()\nprint('b')"}
    )
    assert ended.ok
    assert ended.answer["stdout"] == "a\n"


def test_there_are_no_files_and_no_sockets(python: Sandbox) -> None:
    error = python.run({"code": "open('/etc/passwd')"}).error
    assert (error["type"], error["line"]) == ("FileNotFoundError", 1)
    assert python.run({"code": "import os\nos.listdir('/')"}).error["type"] == "FileNotFoundError"
    error = python.run({"code": "import socket\nsocket.create_connection(('127.0.0.1', 80))"}).error
    assert error["line"] == 2
    assert "The sandbox has no sockets; clawbox.http_request" in error["traceback"]
    error = python.run({"code": "import urllib.request\nurllib.request.urlopen('http://example.com')"}).error
    assert error["type"] == "urllib.error.URLError"
    assert "The sandbox has no sockets" in error["traceback"]


def test_missing_package_says_that_nothing_can_be_installed(python: Sandbox) -> None:
    error = python.run({"code": "import numpy"}).error
    assert (error["type"], error["message"]) == ("ModuleNotFoundError", "No module named 'numpy'")
    assert "nothing can be installed" in error["traceback"]


def test_host_functions(python: Sandbox) -> None:
    ended = python.run({"code": "import clawbox\nclawbox.log('info', 'hello ü')\nclawbox.log('warning', 5)"})
    assert ended.ok
    assert ended.logs == [(Level.INFO, "hello ü"), (Level.WARN, "5")]
    error = python.run({"code": "import clawbox\nclawbox.log('loud', 'x')"}).error
    assert (error["type"], error["line"]) == ("ValueError", 2)
    error = python.run({"code": "import clawbox\nclawbox.call('nope', {'a': 1})"}).error
    assert error["message"] == "unknown host call method: nope"


def test_refused_request_is_an_exception_with_the_reason(python: Sandbox) -> None:
    error = python.run(
        {"code": "import clawbox\n\nclawbox.http_request('GET', 'https://example.com/')"}
    ).error
    assert (error["type"], error["line"]) == ("clawbox.HostError", 3)
    assert error["message"].startswith("URL blocked by allowlist: https://example.com")


def test_request_and_response_reach_the_code_whole(python: Sandbox) -> None:
    egress = Recorded()
    code = (
        "import clawbox\n"
        "r = clawbox.http_request('post', 'https://example.com/x', headers={'k': 'v'}, body='ü')\n"
        "[r.status, r.headers, r.header('Content-Type'), r.json()]"
    )
    ended = python.run({"code": code}, egress=egress)
    assert ended.answer["result"] == [
        201,
        [["content-type", "application/json"], ["a", "1"], ["a", "2"]],
        "application/json",
        {"n": 1},
    ]
    assert egress.requests == [HttpRequest("POST", "https://example.com/x", (("k", "v"),), "ü".encode())]


def test_asyncio_runs_and_says_when_nothing_can_go_on(python: Sandbox) -> None:
    code = (
        "import asyncio\n"
        "async def work(n):\n"
        "    await asyncio.sleep(0.001 * n)\n"
        "    return n\n"
        "async def main():\n"
        "    async with asyncio.timeout(5):\n"
        "        return await asyncio.gather(*map(work, range(3)))\n"
        "asyncio.run(main())"
    )
    assert python.run({"code": code}).answer["result"] == [0, 1, 2]
    error = python.run({"code": "import asyncio\nasyncio.run(asyncio.Event().wait())"}).error
    assert "deadlock" in error["message"]


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("import sqlite3\nsqlite3.connect(':memory:').execute('select 6 * 7').fetchone()[0]", 42),
        # tzdata is a package baked in from requirements.txt, with its data files.
        ("import datetime, zoneinfo\n" + BERLIN, 7200.0),
        ("import gzip\ngzip.decompress(gzip.compress(b'abc')).decode()", "abc"),
        ("import hashlib\nhashlib.sha256(b'').hexdigest()[:8]", "e3b0c442"),
        ("import decimal\nstr(decimal.Decimal('0.1') + decimal.Decimal('0.2'))", "0.3"),
        ("import pickle\nclass P:\n    x = 4\npickle.loads(pickle.dumps(P())).x", 4),
        ("import xml.etree.ElementTree as t\nt.fromstring('<a><b>1</b></a>').findtext('b')", "1"),
        ("__name__", "__main__"),
        ("import inspect\ndef f(): pass\ninspect.getsource(f)", "def f(): pass\n"),
        ("import atexit\natexit.register(print, 'bye')\nNone", None),
    ],
)
def test_standard_library_works(python: Sandbox, code: str, result: object) -> None:
    ended = python.run({"code": code})
    assert ended.answer["error"] is None
    assert ended.answer["result"] == result


def test_exit_handlers_run(python: Sandbox) -> None:
    assert python.run({"code": "import atexit\natexit.register(print, 'bye')"}).answer["stdout"] == "bye\n"


def test_modules_that_import_are_those_listed(python: Sandbox) -> None:
    listed = (SOURCES / "python" / "stdlib.txt").read_text().split()
    assert importable(python) == listed


def test_packages_of_the_building_machine_are_not_baked_in(python: Sandbox) -> None:
    for name in ("pytest", "wasmtime", "pip", "setuptools"):
        assert not python.run({"code": f"import {name}"}).ok


@pytest.mark.parametrize("params", ["5", "null", "{}", '{"code": 1}', '{"code": "1", "other": 2}', "{"])
def test_wrong_parameters_are_an_error(python: Sandbox, params: str) -> None:
    ended = python.run(params)
    assert ended.error["message"]
    assert ended.error["line"] is None
