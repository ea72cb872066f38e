"""The command line as a whole: what is mounted where, and the guard that lets no traceback out."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import clawbox
from clawbox.cli import (
    audit,
    config,
    containers,
    cp,
    creds,
    egress,
    init,
    logs,
    spawn,
    system,
    token,
    tool,
    tools,
)
from clawbox.cli import exec as exec_command
from clawbox.cli import run as run_commands
from clawbox.cli import serve as serve_command
from clawbox.cli.errors import ExitCode, describe
from clawbox.cli.output import ReaderGoneError, print_error, write

_HELP = (
    "Runs what AI agents want to run, without trusting it.\n\n"
    "Commands that talk to a server find it by --address, else CLAWBOX_ADDRESS, else server.host and "
    "server.port of CLAWBOX_CONFIG or ~/.clawbox/config.toml (CLAWBOX_HOST and CLAWBOX_PORT over them), "
    "else 127.0.0.1:9800.\n\n"
    "The token is in --token-file, else CLAWBOX_TOKEN, else CLAWBOX_AUTH_TOKEN, else the token file beside "
    "those settings, else ~/.clawbox/token. It is never an argument.\n\n"
    "What runs in a container decides the exit code of exec, of wait, and of spawn with a command.\n\n"
    "What goes wrong is one line on stderr; CLAWBOX_DEBUG=1 adds where."
)
_EPILOG = "Exit codes:\n\n" + "\n\n".join(f"{code.value:>3}  {code.meaning}" for code in ExitCode)


def build_app() -> typer.Typer:
    """Every command."""
    app = typer.Typer(
        name="clawbox",
        help=_HELP,
        epilog=_EPILOG,
        invoke_without_command=True,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    app.command()(init.init)
    serve_command.mount(app)
    system.mount(app)
    run_commands.mount(app)
    spawn.mount(app)
    containers.mount(app)
    exec_command.mount(app)
    logs.mount(app)
    cp.mount(app)
    app.add_typer(containers.listing, name="list")
    app.add_typer(tools.app, name="tools")
    app.add_typer(tool.app, name="tool")
    app.add_typer(token.app, name="token")
    app.add_typer(config.app, name="config")
    app.add_typer(creds.app, name="creds")
    app.add_typer(egress.app, name="egress")
    app.add_typer(audit.app, name="audit")
    for group in (app, *(mounted.typer_instance for mounted in app.registered_groups)):
        for command in group.registered_commands if group is not None else ():
            command.help = command.help or _flowing(command.callback)
    return app


def _flowing(command: Callable[..., object] | None) -> str:
    """A docstring whose lines are the terminal's to break: typer breaks where the source does, too."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def _root(
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and end.")] = False,
) -> None:
    if version:
        write(f"clawbox {clawbox.__version__}\n")
        raise typer.Exit


def run(args: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. Nothing is raised, whatever happens."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe that cannot show a character gets an escape, not an exception.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        code = _run(args)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except ReaderGoneError:
        code = ExitCode.BROKEN_PIPE
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _forget(stream.fileno())
    return int(code)


def _run(args: Sequence[str]) -> int:
    try:
        command = typer.main.get_command(build_app())
        # Not standalone: errors come here, and an Exit comes back as its code.
        code = command.main(args=list(args), prog_name="clawbox", standalone_mode=False)
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else ExitCode.OK
    except ReaderGoneError:
        raise
    except Exception as error:  # noqa: BLE001 - this is where every one of them ends
        if os.environ.get("CLAWBOX_DEBUG"):
            import traceback  # noqa: PLC0415

            traceback.print_exc()
        failure = describe(error)
        if failure.message:
            print_error(str(failure))
        return failure.code
    return code if isinstance(code, int) else ExitCode.OK


def _forget(descriptor: int) -> None:
    """Lets what could not be written vanish, or the interpreter would try once more and complain."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
