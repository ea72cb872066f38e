"""What commands write: JSON for programs, tables for people, and nothing that could steer a terminal.

Everything that comes from a server, a tool or a file is hostile to a terminal until it is escaped: control
characters would move the cursor or fill the clipboard, bidirectional marks would show text in another order,
and square brackets would be rich's markup.
"""

from __future__ import annotations

import codecs
import dataclasses
import enum
import json
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TextIO


class ReaderGoneError(Exception):
    """Whoever read stdout or stderr stopped reading (EPIPE)."""


_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories: controls, formats (bidirectional marks), lone surrogates, unassigned, line ends."""


def escape(text: str, *, keep: str = "\n\t") -> str:
    r"""The text with everything that a terminal could act on written as ``\xNN`` or ``\uNNNN``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if char in keep or char == "\N{ZERO WIDTH JOINER}" or unicodedata.category(char) not in _UNSAFE
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def write(text: str, *, file: TextIO | None = None) -> None:
    """Writes to stdout, or ``file``, at once. Raises ReaderGoneError."""
    out = file or sys.stdout
    try:
        out.write(text)
        out.flush()
    except BrokenPipeError:
        raise ReaderGoneError from None


def print_json(value: object) -> None:
    """Writes a value as indented JSON; see :func:`jsonable` for what it takes."""
    write(f"{json_text(value, indent=2)}\n")


def print_json_line(value: object) -> None:
    """Writes a value as JSON on one line, for streams of events."""
    write(f"{json_text(value)}\n")


def json_text(value: object, *, indent: int | None = None) -> str:
    r"""JSON that is safe on a terminal: what :func:`escape` escapes is ``\uNNNN``, which JSON reads back."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(jsonable(value), ensure_ascii=False, indent=indent, separators=separators)
    if text.isascii():
        return text.replace("\x7f", "\\u007f")
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _UNSAFE else json.dumps(char)[1:-1]
        for char in text
    )


def jsonable(value: object) -> object:
    """Dataclasses as objects, times as ISO 8601, durations as seconds, enums as words, bytes as text."""
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case enum.Enum():
            return value.name.lower()
        case bytes():
            return value.decode("utf-8", "replace")
        case Mapping():
            return {str(key): jsonable(one) for key, one in value.items()}
        case str():
            return value
        case Sequence():
            return [jsonable(one) for one in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Writes rows as a table, tab-separated where stdout is no terminal, or ``empty`` when there are none."""
    if not rows:
        write(f"{empty}\n")
        return
    cells = [[escape(cell, keep="") for cell in row] for row in rows]
    if not sys.stdout.isatty():
        write("".join("\t".join(row) + "\n" for row in [[name.upper() for name in columns], *cells]))
        return
    from rich.console import Console  # noqa: PLC0415 - only for a table
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.upper(), overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    with console.capture() as captured:
        console.print(table)
    write(captured.get())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Writes names and values, one a line; values that are empty are left out."""
    shown = [(name, escape(value, keep="")) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    write("".join(f"{name:<{width}}  {value}\n" for name, value in shown))


def print_text(text: str) -> None:
    """Writes text from outside on a line of its own; escaped when stdout is a terminal."""
    shown = escape(text) if sys.stdout.isatty() else text
    write(shown if shown.endswith("\n") else f"{shown}\n")


def print_error(text: str) -> None:
    """Writes a line from this program to stderr."""
    write(f"{text}\n", file=sys.stderr)


class ByteRelay:
    """Passes bytes from a sandbox on to stdout or stderr as they come.

    What is no terminal gets the bytes as they are. A terminal gets text: UTF-8 put together over the borders
    of chunks, escaped, with carriage returns left as they are, for progress bars.
    """

    def __init__(self, file: TextIO, *, keep: bool = False) -> None:
        self._file = file
        self._keep = keep
        self.kept = b""
        """Everything that was fed, when ``keep`` was asked for."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if file.isatty() else None
        self.wrote = False
        self._last = b"\n"

    def end_line(self) -> None:
        """Ends the line that was begun, if one was. Raises ReaderGoneError."""
        if self._last != b"\n":
            self.feed(b"\n")

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Passes on ``data``; ``final`` also what was held back. Raises ReaderGoneError."""
        self.wrote = self.wrote or bool(data)
        self._last = data[-1:] or self._last
        if self._keep:
            self.kept += data
        if self._decoder is not None:
            write(escape(self._decoder.decode(data, final), keep="\n\t\r"), file=self._file)
            return
        raw = getattr(self._file, "buffer", None)
        if raw is None:
            write(data.decode("utf-8", "replace"), file=self._file)
            return
        try:
            raw.write(data)
            raw.flush()
        except BrokenPipeError:
            raise ReaderGoneError from None


def show(value: object, *, as_json: bool, people: Callable[[], None]) -> None:
    """The two faces of a command: JSON, or what ``people`` prints."""
    if as_json:
        print_json(value)
    else:
        people()
