"""The grant file, as commands take it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.errors import CliError

if TYPE_CHECKING:
    from clawbox.egress.grant_file import GrantFile

GrantOption = Annotated[
    Path, typer.Option("--grant", help="File that says what may be reached.", metavar="FILE")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings file, for the credentials; default: CLAWBOX_CONFIG, ~/.clawbox/config.toml, "
        "config/default.toml.",
    ),
]


def load(path: Path) -> "GrantFile":
    """The grant file. Raises CliError with all that is wrong."""
    from clawbox.config import ConfigError  # noqa: PLC0415 - not for --help
    from clawbox.egress.grant_file import load_grant  # noqa: PLC0415

    try:
        return load_grant(path)
    except ConfigError as error:
        raise CliError("; ".join(map(str, error.problems))) from None


def authorities(file: "GrantFile", path: Path) -> tuple[str, ...]:
    """The PEM texts that it names. Raises CliError."""
    from clawbox.config import ConfigError  # noqa: PLC0415 - not for --help
    from clawbox.egress.grant_file import read_authorities  # noqa: PLC0415

    try:
        return read_authorities(file, path)
    except ConfigError as error:
        raise CliError("; ".join(map(str, error.problems))) from None
