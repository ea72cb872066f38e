"""Runs one piece of user code and answers with what it printed, its result, and its error.

The answer is the JSON object ``{"stdout", "stderr", "result", "error"}``. ``error`` is null, or
``{"type", "message", "traceback", "line"}``. A fifth member, ``note``, appears when the result was no JSON.

User code may do what it likes to this interpreter, which lives for one call: the worst it can do is to spoil
its own answer. What follows keeps it from doing so by accident.
"""

import ast
import atexit
import builtins
import errno
import json
import linecache
import logging
import os
import random
import sys
import time
import traceback
import types

import clawbox
import streams

FILENAME = "<code>"
"""What tracebacks call the user's code."""

_WARM_UPS = 20

MAX_RECURSION = 4000
"""The deepest recursion that ends in RecursionError, and not in the end of the machine's own stack."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_encode_lossy = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=lambda value: _safe_repr(value)
).encode
_set_recursion_limit = sys.setrecursionlimit
_OWN_FILES = frozenset(module.__file__ for module in (streams, clawbox)) | {__file__}
_BUILTINS = dict(vars(builtins))
_out, _err = streams.Recorder(1), streams.Recorder(2)
_stdout, _stderr = streams.open_text(_out), streams.open_text(_err)  # made once: it costs a tenth of a call
_NO_SOCKETS = frozenset({errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})


def prepare() -> None:
    """Adapt the interpreter to the sandbox and warm it up, once, while the component is built.

    CPython specialises code that runs often by writing into it. Done here, no call pays for that, and the pages
    that hold the code stay shared between calls.
    """
    sys.argv = [FILENAME]
    sys.setrecursionlimit = lambda limit, /: _set_recursion_limit(min(limit, MAX_RECURSION))
    os._exit = _exit_now
    kept = sys.stdout, sys.stderr, sys.modules["__main__"]
    for code in ("print(input)\ninput + 1", "import json\nresult = 1", "def f():\n  1 / 0\nf()", "x = = 1"):
        for _ in range(_WARM_UPS):
            run(json.dumps({"code": code, "input": 1}))
    sys.stdout, sys.stderr, sys.modules["__main__"] = kept
    linecache.clearcache()
    _out.begin()
    _err.begin()


def run(params: str) -> tuple[bool, str]:
    """Run the ``code`` of ``params``; returns whether it ended well, and the answer."""
    sys.stdout = sys.__stdout__ = _stdout
    sys.stderr = sys.__stderr__ = _stderr
    random.seed()  # the memory kept from the build holds the build's random state
    logging._startTime = time.time_ns()  # and its time

    namespace: dict[str, object] = {}
    result, error = None, None
    try:
        code, namespace = _begin(json.loads(params))
        result = _execute(code, namespace)
    except BaseException as raised:  # whatever user code raises is an answer
        error = _ended(raised, namespace)
    try:
        atexit._run_exitfuncs()
    except BaseException as raised:
        error = error or _ended(raised, namespace)
    for stream in (_stdout, _stderr):
        try:
            stream.flush()
        except (ValueError, OSError):  # closed by user code, or full
            pass
    result = None if error else namespace.get("result", result)
    try:
        return error is None, _answer(_out.text(), _err.text(), result, error)
    except BaseException:  # user code replaced what this needs
        builtins.__dict__.update(_BUILTINS)
        return error is None, _answer(_out.text(), _err.text(), result, error)


def _begin(params: object) -> tuple[str, dict[str, object]]:
    if not isinstance(params, dict) or not isinstance(params.get("code"), str):
        raise TypeError('parameters must be {"code": "…", "input": …}')
    unknown = params.keys() - {"code", "input"}
    if unknown:
        raise TypeError(f"unknown parameters: {', '.join(sorted(unknown))}; there are code and input")
    code = params["code"]
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins
    main.input = params.get("input")
    sys.modules["__main__"] = main
    linecache.cache[FILENAME] = (len(code), None, [line + "\n" for line in code.split("\n")], FILENAME)
    return code, vars(main)


def _execute(code: str, namespace: dict[str, object]) -> object:
    """Run all statements; the value is that of the last one if it is an expression."""
    tree = compile(code, FILENAME, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    if tree.body:
        exec(compile(tree, FILENAME, "exec", dont_inherit=True), namespace)
    if last is not None:
        return eval(compile(last, FILENAME, "eval", dont_inherit=True), namespace)
    return None


def _ended(raised: BaseException, namespace: dict[str, object]) -> dict[str, object] | None:
    """The ``error`` member for what ended the code; None when that was ``sys.exit()``."""
    builtins.__dict__.update(_BUILTINS)  # user code may have replaced what this needs
    if isinstance(raised, SystemExit):
        if raised.code is None or raised.code == 0:
            return None
        if not isinstance(raised.code, int):
            try:
                _stderr.write(f"{raised.code}\n")
            except (ValueError, OSError):
                pass
    if isinstance(raised, MemoryError):
        # Give back what the code held, or describing the error would need what is not there.
        namespace.clear()
        traceback.clear_frames(raised.__traceback__)
    try:
        return _describe(raised)
    except BaseException:
        name = type(raised).__name__
        return {"type": name, "message": "", "traceback": f"{name}\n", "line": None}


def _describe(raised: BaseException) -> dict[str, object]:
    if isinstance(raised, SyntaxError) and raised.filename == FILENAME and raised.text is None:
        raised.text = linecache.getline(FILENAME, raised.lineno or 0) or None
    hint = _hint(raised)
    if hint and not getattr(raised, "__notes__", None):
        raised.add_note(hint)
    whole = traceback.TracebackException.from_exception(raised, compact=True)
    _hide_own_frames(whole)
    line = next((f.lineno for f in reversed(whole.stack) if f.filename == FILENAME), None)
    if line is None and isinstance(raised, SyntaxError) and raised.filename == FILENAME:
        line = raised.lineno
    kind = type(raised)
    name = kind.__qualname__
    if kind.__module__ not in {"builtins", "__main__"}:
        name = f"{kind.__module__}.{name}"
    if isinstance(raised, SystemExit):
        code = raised.code
        message = f"exit status {code}" if isinstance(code, int) else str(code)
    elif isinstance(raised, SyntaxError):
        message = str(raised.msg)
    else:
        message = str(whole)
    return {"type": name, "message": message, "traceback": "".join(whole.format()), "line": line}


def _hint(raised: BaseException) -> str:
    """What the sandbox has instead of what the code missed."""
    if isinstance(raised, ModuleNotFoundError):
        return (
            "The sandbox has Python's standard library and what was built into this tool; "
            "nothing can be installed in it."
        )
    cause = getattr(raised, "reason", raised)  # urllib wraps what the socket raised
    if isinstance(cause, OSError) and (type(cause).__module__ == "socket" or cause.errno in _NO_SOCKETS):
        return "The sandbox has no sockets; clawbox.http_request reaches the hosts that this tool may reach."
    return ""


def _hide_own_frames(whole: traceback.TracebackException) -> None:
    pending, seen = [whole], set()
    while pending:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if frame.filename not in _OWN_FILES]
        pending += [part.__cause__, part.__context__, *(part.exceptions or ())]


def _answer(stdout: str, stderr: str, result: object, error: dict[str, object] | None) -> str:
    answer = {"stdout": stdout, "stderr": stderr, "result": None, "error": error}
    try:
        encoded = _encode({**answer, "result": result})
    except BaseException:
        encoded = _encode(_approximate(answer, result))
    try:
        encoded.encode()
    except UnicodeEncodeError:  # half a surrogate pair is no text
        encoded = encoded.encode("utf-8", "replace").decode()
    return encoded


def _approximate(answer: dict[str, object], result: object) -> dict[str, object]:
    """The answer with a result that JSON cannot hold as it is."""
    try:
        answer["result"] = json.loads(_encode_lossy(result))
        answer["note"] = "parts of the result are not JSON and were replaced by their repr"
    except BaseException:
        answer["result"] = _safe_repr(result)
        answer["note"] = f"the result is not JSON ({type(result).__name__}) and was replaced by its repr"
    return answer


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except BaseException:
        return f"<{type(value).__name__} object whose repr failed>"


def _exit_now(status: int) -> None:
    """Stands for ``os._exit``: ending the instance at once would lose the answer."""
    raise SystemExit(status)

