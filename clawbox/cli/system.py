"""``clawbox health`` and ``clawbox status``."""

from datetime import timedelta
from typing import Annotated

import typer

from clawbox.cli.connection import Server, takes_server
from clawbox.cli.errors import ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import print_fields, print_json, print_table, show, write


def mount(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(takes_server(health))
    app.command()(takes_server(status))


def health(
    server: Server,
    *,
    service: Annotated[
        str, typer.Argument(help="One service, clawbox.v1.Sandbox for one; default: the server.")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait, until the deadline, for a server that does not listen yet.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say whether the server serves. Needs no token. Exit code 0 means that it does, 5 that it does not."""
    from clawbox_client import Health  # noqa: PLC0415 - brings gRPC

    with server.connect() as client:
        answer = client.health(service, wait=wait)
    show(
        {"service": service, "status": answer},
        as_json=json,
        people=lambda: write(f"{answer.name}\n"),
    )
    codes = {Health.SERVING: ExitCode.OK, Health.SERVICE_UNKNOWN: ExitCode.NOT_FOUND}
    raise typer.Exit(codes.get(answer, ExitCode.UNAVAILABLE))


def status(server: Server, *, json: JsonOption = False) -> None:
    """Say which version the server is, how its parts do, and which protections are in force."""
    with server.connect() as client:
        answer = client.status()
    if json:
        print_json(answer)
        return
    print_fields(
        [
            ("status", answer.status),
            ("version", answer.version),
            ("up for", str(timedelta(seconds=round(answer.uptime.total_seconds())))),
            ("executions", f"{answer.running_executions} running, {answer.queued_executions} waiting"),
            ("containers", str(answer.active_containers)),
        ]
    )
    write("\n")
    print_table(
        ["component", "state", "detail"],
        [[one.name, one.state, one.detail] for one in answer.components],
        empty="no components",
    )
    if answer.enforcements:
        write("\n")
        print_table(
            ["protection", "in force", "detail"],
            [[one.name, "yes" if one.in_force else "no", one.detail] for one in answer.enforcements],
            empty="",
        )
