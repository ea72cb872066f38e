"""Arguments that stand for a text: the text itself, a file, or stdin. Each is UTF-8, or a CliError."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clawbox.cli.errors import CliError

STDIN = "-"


def read_code(argument: str, suffixes: tuple[str, ...]) -> str:
    """Code itself, or the file or stdin that the argument names; what ends like a file has to be one."""
    if argument == STDIN:
        return _read_stdin("the code")
    looks_like_file = "\n" not in argument and argument.endswith(suffixes) and " " not in argument
    path = Path(argument)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        is_file = False
    if is_file:
        return _read_file(path)
    if looks_like_file:
        raise CliError(f"{argument}: no such file")
    return _checked_text(argument, "the code")


def read_text(argument: str, what: str) -> str:
    """The text, or what is in ``@FILE`` or stdin; ``what`` is the argument's name, for errors."""
    if argument == STDIN:
        return _read_stdin(what)
    if argument.startswith("@"):
        return _read_file(Path(argument[1:]))
    return _checked_text(argument, what)


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text; CliError when it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise CliError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise CliError(f"{what} is not JSON: {error}", hint="Quote it for the shell, or use @FILE") from None


def _read_stdin(what: str) -> str:
    return _decode(sys.stdin.buffer.read(), f"{what} on stdin")


def _read_file(path: Path) -> str:
    return _decode(path.read_bytes(), str(path))


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CliError(f"{what} is not UTF-8 (byte {error.start})") from None


def _checked_text(text: str, what: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CliError(f"{what} is not UTF-8") from None
    return text


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(text: str, what: str) -> int:
    """A duration such as ``90`` (seconds), ``500ms``, ``1.5h``. Raises CliError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or len(text) > 20:
        raise CliError(f"{what}: {text!r} is no duration", hint="Say 30, 30s, 500ms, 5m, 2h or 1d")
    return round(float(match[1]) * _MILLISECONDS[match[2] or "s"])


def pairs(items: Sequence[str] | None, what: str) -> dict[str, str]:
    """``NAME=VALUE`` of each. Raises CliError."""
    values: dict[str, str] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise CliError(f"{what}: {item!r} is not NAME=VALUE")
        values[_checked_text(name, what)] = _checked_text(value, what)
    return values


def environment(items: Sequence[str] | None, what: str) -> dict[str, str]:
    """``NAME=VALUE`` of each; of a ``NAME`` alone, the value that it has here. Raises CliError."""
    given: list[str] = []
    for item in items or ():
        if "=" in item:
            given.append(item)
        elif item in os.environ:
            given.append(f"{item}={os.environ[item]}")
        else:
            raise CliError(f"{what}: {item} is not set here", hint="Say NAME=VALUE")
    return pairs(given, what)
