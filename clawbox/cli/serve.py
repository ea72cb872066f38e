"""``clawbox serve``: the server, in the foreground."""

import os
from pathlib import Path
from typing import Annotated

import typer

from clawbox.cli.errors import CliError


def mount(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(serve)


def serve(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings file; default: CLAWBOX_CONFIG, ~/.clawbox/config.toml, config/default.toml."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, over server.host.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, over server.port.", min=1, max=65535)
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on another address than loopback without TLS.")
    ] = False,
) -> None:
    """Run the server until SIGTERM or Ctrl-C, which let running calls finish; a second one ends at once."""
    from clawbox.config.load import load  # noqa: PLC0415 - not for --help

    overrides: dict[str, object] = {}
    if host is not None:
        overrides["server.host"] = host
    if port is not None:
        overrides["server.port"] = port
    if insecure:
        overrides["server.insecure"] = True
    settings = load(config, overrides=overrides).config
    from clawbox.egress.keeper.bootstrap import hide_master_key  # noqa: PLC0415 - not for --help

    try:
        hide_master_key()  # before anything is started: this may be where the program is executed anew
    except OSError as error:
        raise CliError(f"the master key cannot be hidden: {error}") from error

    # gRPC's own lines on stderr have another form than the log's, and say what errors here say as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from clawbox.app import serve as serve_forever  # noqa: PLC0415 - the whole server, after what is quick to refuse
    from clawbox.children.uids import UidsExhaustedError  # noqa: PLC0415
    from clawbox.errors import ClawboxError  # noqa: PLC0415
    from clawbox.rpc.listeners import ListenError  # noqa: PLC0415
    from clawbox.wasm.tool_files import ToolFileError  # noqa: PLC0415

    try:
        serve_forever(settings)
    except (ClawboxError, ListenError, ToolFileError, UidsExhaustedError, OSError) as error:
        why: object = error
        if isinstance(error, OSError) and error.strerror:
            why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        raise CliError(
            f"the server cannot start: {why}", hint="`clawbox config show` shows its settings"
        ) from error
