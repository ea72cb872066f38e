"""``clawbox logs`` and ``clawbox stats``: what containers write and use."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.arguments import milliseconds
from clawbox.cli.connection import Server, takes_server
from clawbox.cli.container_ids import IdArgument, resolve
from clawbox.cli.container_output import StreamPrinter, follow
from clawbox.cli.errors import CliError
from clawbox.cli.output import print_json_line, write

if TYPE_CHECKING:
    from clawbox_client import ContainerStats

JsonLinesOption = Annotated[bool, typer.Option("--json", help="Write one JSON object a line.")]


def mount(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(takes_server(logs))
    app.command()(takes_server(stats))


def logs(
    server: Server,
    *,
    container_id: IdArgument,
    follow_: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what it writes, until it ends.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option("--tail", "-n", help="Begin this many lines before the newest.", min=0, metavar="N"),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Begin at a time (2026-01-31T12:00:00Z), or so long ago (10m).", metavar="WHEN"),
    ] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Only stdout.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Only stderr.")] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Begin each line with its time.")
    ] = False,
    json: JsonLinesOption = False,
) -> None:
    """Show what a container's program wrote: its stdout on stdout, its stderr on stderr."""
    from clawbox_client import Gap  # noqa: PLC0415 - brings gRPC

    if tail is not None and since is not None:
        raise CliError("--tail and --since exclude each other")
    streams = [name for name, chosen in (("stdout", stdout), ("stderr", stderr)) if chosen]
    begin = None if since is None else _when(since)
    printer = StreamPrinter(as_json=json, timestamps=timestamps)
    with server.connect() as client:
        events = follow(
            client, resolve(client, container_id), follow=follow_, streams=streams, tail=tail, since=begin
        )
        for event in events:
            if isinstance(event, Gap):
                printer.gap(event)
            else:
                printer.feed(event.stream, event.data, event.offset, event.time)
    printer.finish()


def _when(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        pass
    try:
        ago = milliseconds(text, "--since")
    except CliError:
        raise CliError(
            f"--since: {text!r} is neither a time nor a duration", hint="Say 2026-01-31T12:00:00Z, or 10m"
        ) from None
    return datetime.now(UTC) - timedelta(milliseconds=ago)


def stats(
    server: Server,
    *,
    container_id: IdArgument,
    once: Annotated[bool, typer.Option("--once", help="Measure once and end.")] = False,
    interval: Annotated[str, typer.Option(help="Time between measurements.", metavar="DURATION")] = "1s",
    json: JsonLinesOption = False,
) -> None:
    """Show what a container uses, a line for each measurement until it ends."""
    with server.connect() as client:
        usage = client.stats(
            resolve(client, container_id), interval_ms=milliseconds(interval, "--interval"), once=once
        )
        with usage:
            for number, one in enumerate(usage):
                if json:
                    print_json_line(one)
                    continue
                if number == 0:
                    write(_line(_TITLES))
                write(_line(_cells(one)))


_TITLES = ["CORES", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN", "ALLOWED", "REFUSED", "SENT", "RECEIVED"]


def _line(cells: list[str]) -> str:
    return "  ".join(f"{cell:>9}" for cell in cells) + "\n"


def _cells(one: "ContainerStats") -> list[str]:
    return [
        f"{one.cpu_millis / 1000:.2f}",
        size(one.memory_bytes),
        size(one.memory_limit_bytes),
        str(one.pids),
        size(one.block_read_bytes),
        size(one.block_write_bytes),
        str(one.egress_allowed),
        str(one.egress_denied),
        size(one.egress_sent_bytes),
        size(one.egress_received_bytes),
    ]


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1 << 10:
        return f"{count}B"
    for unit, shift in (("KiB", 10), ("MiB", 20)):
        if count < 1 << (shift + 10):
            return f"{count / (1 << shift):.1f}{unit}"
    return f"{count / (1 << 30):.1f}GiB"
