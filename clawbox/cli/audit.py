"""``clawbox audit``: the record of what was allowed, refused and done."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clawbox.cli.connection import Server, takes_server
from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import ConfigOption, JsonOption
from clawbox.cli.output import escape, json_text, print_fields, print_json_line, show, write

if TYPE_CHECKING:
    from clawbox.audit import AuditRow, Verdict

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "What was allowed, refused and done: one row each, chained by hashes.\n\n"
        "The log is the folder that logging.audit_dir names; the user whom the server runs as may read it."
    ),
)

DirOption = Annotated[
    Path | None, typer.Option("--dir", help="Folder of the log; default: logging.audit_dir.", metavar="DIR")
]

_POLL_SECONDS = 0.2
_KEY = re.compile(r"[0-9A-Fa-f]{64}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """What is shown of a row, wherever it came from."""

    sequence: int
    time: str
    kind: str
    principal: str
    request_id: str
    decision: str
    fields: Mapping[str, Any]


@app.command()
def verify(
    directory: DirOption = None,
    expected_head: Annotated[
        str | None,
        typer.Option(
            "--expected-head",
            metavar="SEQUENCE:HASH",
            help="A head that was noted elsewhere before: finds a log that was cut short or written anew.",
        ),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option(
            "--public-key",
            metavar="KEY",
            help="What heads are signed with, 64 hexadecimal digits or a file that holds them "
            "(`clawbox audit key`): finds a log that somebody else wrote.",
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every row of the log, offline: that none was changed, taken out or put in.

    Exit code 0 means that all rows are good, 1 that one is bad (the first is named), or that the expected
    head or every signature is missing, 2 that the log cannot be read. Rows that were removed for their age
    are not bad; they are called pruned.
    """
    from clawbox.audit import verify as check  # noqa: PLC0415 - not for --help

    key = None if public_key is None else _public_key(public_key)
    folder = _folder(directory, config)
    try:
        verdict = check(folder, expected_head, public_key=key)
    except ValueError as error:
        raise CliError(f"--expected-head: {error}") from None
    show(
        {"dir": str(folder), "ok": verdict.ok} | _fields_of(verdict),
        as_json=as_json,
        people=lambda: _show_verdict(folder, verdict, expected_head),
    )
    if not verdict.ok:
        raise typer.Exit(ExitCode.FAILED)


@app.command("key")
def show_key(config: ConfigOption = None) -> None:
    """Print what the server signs heads of its log with, for `clawbox audit verify --public-key`.

    Note it elsewhere: it is of use to who does not trust this machine any more.
    """
    from clawbox.config import Config  # noqa: PLC0415 - not for --help
    from clawbox.egress.keeper.bootstrap import identity_folder, read_public_key  # noqa: PLC0415

    folder = identity_folder(Config.load(config))
    try:
        key = read_public_key(folder)
    except FileNotFoundError as error:
        raise CliError(
            f"there is no {error.filename}: no server has run with these settings", code=ExitCode.NOT_FOUND
        ) from None
    write(f"{key.hex()}\n")


def tail(
    server: Server,
    *,
    number: Annotated[int, typer.Option("-n", "--number", help="How many of the last rows.", min=0)] = 10,
    after: Annotated[
        int | None, typer.Option("--after", help="Rows after this sequence number, in place of -n.", min=0)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with rows as they are written.")
    ] = False,
    kind: Annotated[list[str] | None, typer.Option(help="Only rows of this kind; repeat.")] = None,
    principal: Annotated[str | None, typer.Option(help="Only rows of this principal.")] = None,
    decision: Annotated[
        list[str] | None, typer.Option(help="Only rows with this decision, denied for one; repeat.")
    ] = None,
    directory: DirOption = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object a line.")] = False,
) -> None:
    """Show the last rows of the log, and with --follow those that come.

    The rows are read from the log's folder; with --address (or CLAWBOX_ADDRESS, and without --dir) a server
    sends them. That is always with --follow: those after --after first, else new ones alone.
    """
    kinds, decisions = frozenset(kind or ()), frozenset(decision or ())

    def wanted(row: Any) -> bool:
        return (
            (not kinds or row.kind in kinds)
            and (principal is None or row.principal == principal)
            and (not decisions or row.decision in decisions)
        )

    if directory is None and config is None and server.address is not None:
        if not follow:
            raise CliError("a server sends rows as they are written", hint="Say --follow, or --dir")
        with server.connect() as client:
            stream = client.watch_audit(after_sequence=after, kinds=sorted(kinds), deadline=server.deadline)
            _print_rows((_from_server(row) for row in stream if wanted(row)), as_json=as_json)
        return
    folder = _folder(directory, config)
    _print_rows(_kept(folder, number, after, wanted, follow=follow), as_json=as_json)


app.command()(takes_server(tail))


def _kept(
    folder: Path, number: int, after: int | None, wanted: Callable[[Any], bool], *, follow: bool
) -> Iterable[_Row]:
    from clawbox.audit.tail import last_rows, rows_after  # noqa: PLC0415 - not for --help

    def wait() -> bool:
        if follow:
            time.sleep(_POLL_SECONDS)
        return follow

    if after is None:
        rows, after = last_rows(folder, number, wanted)
        yield from map(_from_folder, rows)
        if not follow:
            return
    yield from (_from_folder(row) for row in rows_after(folder, after, wait) if wanted(row))


def _folder(directory: Path | None, config: Path | None) -> Path:
    if directory is None:
        from clawbox.config import Config  # noqa: PLC0415 - not for --help

        directory = Config.load(config).logging.audit_dir
    if not directory.is_dir():
        raise CliError(
            f"there is no audit log: {directory} is no folder",
            hint="--dir names another; --config says whose settings",
        )
    return directory


def _public_key(text: str) -> bytes:
    from clawbox.audit.heads import public_key_of  # noqa: PLC0415 - not for --help

    if _KEY.fullmatch(text) is None:
        path = Path(text)
        text = path.read_text("ascii", "replace").strip()
        if _KEY.fullmatch(text) is None:
            raise CliError(f"--public-key: {path} does not hold 64 hexadecimal digits")
    key = bytes.fromhex(text)
    try:
        public_key_of(key)
    except ValueError as error:
        raise CliError(f"--public-key: {error}") from None
    return key


def _from_folder(row: Any) -> _Row:
    return _Row(*(getattr(row, field.name) for field in dataclasses.fields(_Row)))


def _from_server(row: Any) -> _Row:
    at = row.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    # On the wire the fields have no order.
    return dataclasses.replace(_from_folder(row), time=at, fields=dict(sorted(row.fields.items())))


def _print_rows(rows: Iterable[_Row], *, as_json: bool) -> None:
    for row in rows:
        if as_json:
            print_json_line(row)
        else:
            write(row_line(row) + "\n")


def row_line(row: "_Row | AuditRow") -> str:
    """A row for people: one line, with nothing in it that steers a terminal."""
    fields = (
        f"{name}={_value(value)}" for name, value in row.fields.items() if value not in (None, "", [], {})
    )
    words = [row.time, str(row.sequence), row.kind, row.decision or "-", row.principal or "-", *fields]
    if row.request_id:
        words.append(f"request_id={row.request_id}")
    return escape(" ".join(words), keep="")


def _value(value: object) -> str:
    if isinstance(value, str) and value and not set(value) & set(" \"'=,[]{}"):
        return value
    return json_text(value)


def _fields_of(verdict: "Verdict") -> dict[str, object]:
    return {field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict)}


def _signatures(verdict: "Verdict") -> str:
    if verdict.signatures == "found":
        return f"good: rows up to {verdict.signed_sequence} are of who has the key"
    if verdict.signatures == "not found":
        return "NONE with this key (a server signs within a minute): anybody may have written all of it"
    return "not checked (--public-key)"


def _show_verdict(folder: Path, verdict: "Verdict", expected_head: str | None) -> None:
    if not verdict.rows:
        good = "none"
    elif verdict.rows == 1:
        good = f"1, number {verdict.first_sequence}"
    else:
        good = f"{verdict.rows}, numbers {verdict.first_sequence} to {verdict.last_sequence}"
    gone = f"rows before {verdict.first_sequence} were removed, for their age or by somebody"
    bad = verdict.bad
    print_fields(
        [
            ("log", str(folder)),
            ("verdict", "good" if verdict.ok else "BAD"),
            (
                "bad row",
                f"{bad.file} line {bad.line}, row {bad.sequence or '?'}: {bad.problem}" if bad else "",
            ),
            ("good rows", good + (" (those after the bad one were not looked at)" if bad else "")),
            ("head", verdict.head),
            ("expected head", verdict.expected_head if expected_head is not None else ""),
            ("signatures", _signatures(verdict)),
            ("pruned", gone if verdict.pruned else ""),
            ("lost rows", "told of by " + ", ".join(map(str, verdict.gaps)) if verdict.gaps else ""),
        ]
    )
