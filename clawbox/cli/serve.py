"""``clawbox serve``: the server, in the foreground."""

from pathlib import Path
from typing import Annotated

import typer


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

    from clawbox.app import serve as serve_forever  # noqa: PLC0415 - the whole server, after what is quick to refuse

    serve_forever(settings)
