"""``clawbox init``: the folder with the settings and the administrator's token."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import escape, show, write


def init(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder to make; mode 0700.", show_default=True)
    ] = Path("~/.clawbox"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there. The old tokens are then void.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a settings file and a token that may do everything.

    The token is written to a file that only you can read, and is not shown.
    """
    from clawbox.config.edit import EditError, ExistsError, initialise  # noqa: PLC0415 - not for --help

    try:
        made = initialise(folder, force=force)
    except ExistsError as error:
        raise CliError(str(error), hint=error.hint, code=ExitCode.CONFLICT) from None
    except EditError as error:
        raise CliError(str(error), hint=error.hint) from None

    def people() -> None:
        command = _command()
        usual = made.folder == Path("~/.clawbox").expanduser()
        option = "" if usual else f" --config {shlex.quote(str(made.config_file))}"
        token = "" if usual else f" --token-file {shlex.quote(str(made.token_file))}"
        lines = [
            f"Settings: {made.config_file}" + ("" if made.wrote_config else " (left as they were)"),
            f"Token:    {made.token_file} (may do everything; readable by you alone)",
            *(["The old token is void. Restart a server that runs with it."] if made.voided else []),
            "",
            "Next:",
            f"  {command} serve{option}",
            f"  {command} py{token} 'print(6 * 7)'   (in another shell)",
        ]
        write(escape("\n".join(lines) + "\n"))

    answer = {
        "folder": str(made.folder),
        "config_file": str(made.config_file),
        "token_file": str(made.token_file),
        "wrote_config": made.wrote_config,
        "voided": made.voided,
    }
    show(answer, as_json=as_json, people=people)


def _command() -> str:
    """How to call this program from here: as it was called, where ``clawbox`` alone would not find it."""
    called = Path(sys.argv[0])
    if called.name != "clawbox" or shutil.which("clawbox") == str(called.absolute()):
        return "clawbox"
    return shlex.quote(sys.argv[0])
