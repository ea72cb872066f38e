"""``clawbox exec``: a process inside a container, on this terminal."""

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.arguments import environment, milliseconds
from clawbox.cli.connection import Server, takes_server
from clawbox.cli.container_ids import IdArgument, resolve
from clawbox.cli.container_output import StreamPrinter
from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.output import escape, print_error
from clawbox.cli.terminal import Keyboard, forwarded_signals, raw, write_raw

if TYPE_CHECKING:
    from clawbox_client import ExecExited, SyncExec


def mount(app: typer.Typer) -> None:
    """Adds the command. What follows the id is the command's, whatever it looks like."""
    app.command(name="exec", context_settings={"allow_interspersed_args": False})(takes_server(execute))


def execute(
    server: Server,
    *,
    container_id: IdArgument,
    command: Annotated[
        list[str], typer.Argument(help="The command.", metavar="[--] COMMAND…", show_default=False)
    ],
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass stdin on to it.")] = False,
    tty: Annotated[
        bool, typer.Option("--tty", "-t", help="Give it a terminal, as large as this one.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            "-e",
            help="Environment variable, NAME alone for this one's value; repeat.",
            metavar="NAME[=VALUE]",
        ),
    ] = None,
    workdir: Annotated[
        str,
        typer.Option(
            "--workdir", "-w", help="Where it runs; default: /workspace.", metavar="DIR", show_default=False
        ),
    ] = "",
    user: Annotated[
        str,
        typer.Option(
            "--user",
            "-u",
            help="UID or UID:GID; default: the container's.",
            metavar="UID",
            show_default=False,
        ),
    ] = "",
    timeout: Annotated[
        str | None, typer.Option(help="Most time that it may take: 90, 5m, 1h.", metavar="DURATION")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object for each event.")] = False,
) -> None:
    """Run a command inside a container, and exit with its exit code. Options come before the id.

    Ctrl-C goes inside: with a terminal as the key that it is, without one as the signal INT; the third
    gives up. With --tty the command draws on this terminal itself, as over ssh. When the connection breaks,
    it is made again and nothing is lost.
    """
    words = command[1:] if command[:1] == ["--"] else command
    if not words:
        raise CliError("there is no command", hint="Say clawbox exec ID -- COMMAND")
    if words[0].startswith("-"):
        raise CliError(f"{words[0]} is no command", hint="Options come before the id")
    if tty and json:
        raise CliError("--tty and --json exclude each other")
    if tty and interactive and not sys.stdin.isatty():
        raise CliError("stdin is no terminal", hint="Leave --tty out")
    from clawbox_client.execs import RECONNECT_SECONDS  # noqa: PLC0415 - brings gRPC

    keyboard = Keyboard(tty=tty, interactive=interactive)
    variables = environment(env, "--env")
    if tty and keyboard.term and "TERM" not in variables:
        variables["TERM"] = keyboard.term
    with server.connect() as client:
        process = client.exec(
            resolve(client, container_id),
            words,
            tty=tty,
            size=keyboard.size() if tty else None,
            env=variables,
            working_dir=workdir,
            user=user,
            timeout_ms=None if timeout is None else milliseconds(timeout, "--timeout"),
            reconnect=RECONNECT_SECONDS,
            deadline=server.deadline,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(process)
            if tty and interactive:
                stack.enter_context(raw(sys.stdin.fileno()))
            stack.enter_context(forwarded_signals(process, tty=tty, size=keyboard.size))
            stack.enter_context(keyboard.feeding(process))
            ended = _show(process, tty=tty, json=json)
    code = _exit_code(ended, quiet=json)
    raise typer.Exit(code)


def _show(process: "SyncExec", *, tty: bool, json: bool) -> "ExecExited":
    from clawbox_client import ExecExited, Gap, Stderr, Stdout  # noqa: PLC0415 - loaded by connect

    printer = StreamPrinter(as_json=json)
    for event in process:
        if isinstance(event, Stdout | Stderr):
            if tty:
                write_raw(event.data)
            else:
                printer.feed(type(event).__name__.lower(), event.data, event.offset)
        elif isinstance(event, Gap):
            printer.gap(event)
        elif isinstance(event, ExecExited):
            printer.finish()
            if json:
                printer.event(
                    "exited",
                    exit_code=event.exit_code,
                    timed_out=event.timed_out,
                    lost=event.lost,
                    reason=event.reason,
                    duration_ms=event.duration_ms,
                )
            return event
    raise CliError(
        "the server ended the stream without a result", hint="Try again", code=ExitCode.UNAVAILABLE
    )


def _exit_code(ended: "ExecExited", *, quiet: bool) -> int:
    if (ended.timed_out or ended.lost or ended.exit_code is None) and not quiet:
        what = "TIMED_OUT" if ended.timed_out else "LOST" if ended.lost else "UNKNOWN"
        print_error(escape(f"clawbox: {what}{': ' if ended.reason else ''}{ended.reason}", keep=""))
    if ended.exit_code is None:
        return ExitCode.FAILED
    if ended.timed_out and ended.exit_code == 0:
        return ExitCode.FAILED
    return ended.exit_code & 0xFF
