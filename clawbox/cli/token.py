"""``clawbox token``: named principals and their tokens, in ``[[auth.tokens]]`` of the settings file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import escape, print_error, print_table, show, write

app = typer.Typer(no_args_is_help=True, help="Tokens that may do less than the administrator's.")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; default: CLAWBOX_CONFIG, ~/.clawbox/config.toml."),
]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the principal.")],
    scope: Annotated[
        list[str],
        typer.Option(help="What it may do; repeat. sandbox:execute reads and runs tools, * does everything."),
    ],
    network: Annotated[
        list[str] | None,
        typer.Option(help="Host that its sandboxes may reach at most; repeat. Absent: as the server."),
    ] = None,
    credential: Annotated[
        list[str] | None,
        typer.Option(help="Credential that its sandboxes may use at most; repeat. Absent: as the server."),
    ] = None,
    max_sandboxes: Annotated[int | None, typer.Option(help="Sandboxes at the same time.", min=1)] = None,
    max_streams: Annotated[int | None, typer.Option(help="Open streams at the same time.", min=1)] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it, this once. A running server accepts it within a second."""
    from clawbox.config import SCOPES  # noqa: PLC0415 - not for --help
    from clawbox.config.edit import add_token  # noqa: PLC0415

    if unknown := [one for one in scope if one not in SCOPES]:
        raise CliError(f"there is no scope {unknown[0]}", hint=f"Scopes are {', '.join(SCOPES)}")
    limits = {
        "network_allowlist": network,
        "credentials": credential,
        "max_sandboxes": max_sandboxes,
        "max_streams": max_streams,
    }
    entry = {"name": name, "scopes": list(dict.fromkeys(scope))}
    with _explained():
        token = add_token(
            _file(config), entry | {key: value for key, value in limits.items() if value is not None}
        )

    def people() -> None:
        write(f"{token}\n")
        print_error(escape(f"This is the token of {name}. It is kept nowhere and cannot be shown again."))

    show(entry | {"token": token}, as_json=as_json, people=people)


@app.command("list")
def list_tokens(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show who has a token, and what they may do."""
    from clawbox.config import Config  # noqa: PLC0415 - not for --help

    tokens = Config.load(_file(config)).auth.tokens
    rows = [
        {
            "name": token.name,
            "scopes": list(token.scopes),
            "network_allowlist": _texts(token.network_allowlist),
            "credentials": _texts(token.credentials),
            "max_sandboxes": token.max_sandboxes,
            "max_streams": token.max_streams,
        }
        for token in tokens
    ]
    columns = ("name", "scopes", "network_allowlist", "credentials", "max_sandboxes", "max_streams")
    show(
        rows,
        as_json=as_json,
        people=lambda: print_table(
            ("name", "scopes", "network", "credentials", "sandboxes", "streams"),
            [[_cell(row[column]) for column in columns] for row in rows],
            empty="There are no tokens but the administrator's.",
        ),
    )


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the principal.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a token. A running server refuses it within a second; calls that are running go on."""
    from clawbox.config.edit import remove_token  # noqa: PLC0415 - not for --help

    with _explained():
        remove_token(_file(config), name)
    show(
        {"name": name, "revoked": True},
        as_json=as_json,
        people=lambda: write(f"The token of {escape(name, keep='')} is revoked.\n"),
    )


def _file(config: Path | None) -> Path:
    """The settings file to change."""
    import os  # noqa: PLC0415 - with the next one

    from clawbox.config.load import find_file  # noqa: PLC0415 - not for --help

    file = find_file(config, os.environ)
    if file is None:
        raise CliError("there is no settings file", hint="`clawbox init` makes one", code=ExitCode.NOT_FOUND)
    return file


@contextmanager
def _explained() -> Iterator[None]:
    from clawbox.config.edit import EditError, ExistsError, NoSuchTokenError  # noqa: PLC0415 - not for --help

    try:
        yield
    except ExistsError as error:
        raise CliError(str(error), hint=error.hint, code=ExitCode.CONFLICT) from None
    except NoSuchTokenError as error:
        raise CliError(str(error), hint=error.hint, code=ExitCode.NOT_FOUND) from None
    except EditError as error:
        raise CliError(str(error), hint=error.hint) from None


def _texts(values: tuple[object, ...] | None) -> list[str] | None:
    return None if values is None else [str(value) for value in values]


def _cell(value: object) -> str:
    """None is the server's own limit, which a dash stands for; an empty list is nothing at all."""
    match value:
        case None:
            return "-"
        case list():
            return " ".join(value) or "none"
        case _:
            return str(value)
