"""Options that mean the same wherever a command has them."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings file; default: CLAWBOX_CONFIG, ~/.clawbox/config.toml, config/default.toml.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]
