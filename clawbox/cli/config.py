"""``clawbox config``: whether the settings are good, and what they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.errors import ExitCode
from clawbox.cli.options import ConfigOption, JsonOption
from clawbox.cli.output import escape, print_table, show, write

if TYPE_CHECKING:
    from clawbox.config import Problem

app = typer.Typer(no_args_is_help=True, help="The server's settings.")


@app.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say everything that is wrong with the settings and the token file; exit code 1 if anything is."""
    from clawbox.auth import principals_of  # noqa: PLC0415 - not for --help
    from clawbox.cli.container_settings import container_problems  # noqa: PLC0415
    from clawbox.config import ConfigError  # noqa: PLC0415
    from clawbox.config.load import load  # noqa: PLC0415

    file: Path | None = None
    problems: tuple[Problem, ...] = ()
    try:
        loaded = load(config)
        file = loaded.config.file
        problems = container_problems(loaded)
        principals_of(loaded.config)
    except ConfigError as error:
        problems = (*problems, *error.problems)

    def people() -> None:
        if problems:
            write("".join(f"{escape(str(problem), keep='')}\n" for problem in problems))
        else:
            write(f"{escape(str(file), keep='') if file else 'defaults (there is no settings file)'}: good\n")

    answer = {"ok": not problems, "file": None if file is None else str(file), "problems": problems}
    show(answer, as_json=as_json, people=people)
    if problems:
        raise typer.Exit(ExitCode.FAILED)


@app.command("show")
def show_settings(
    config: ConfigOption = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out defaults.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show every setting in force and where it comes from; secrets are masked."""
    from clawbox.config.load import DEFAULTS, load  # noqa: PLC0415 - not for --help
    from clawbox.config.show import settings_of  # noqa: PLC0415

    loaded = load(config)
    rows = [row for row in settings_of(loaded) if not changed or row.source != DEFAULTS]
    show(
        [{"key": row.key, "value": row.value, "source": row.source} for row in rows],
        as_json=as_json,
        people=lambda: print_table(
            ("key", "value", "from"),
            [(row.key, row.text, row.source) for row in rows],
            empty="Everything is at its default.",
        ),
    )
