"""Write ``docs/cli.md`` from the commands themselves; with ``--check``, only compare them."""

import sys

import typer
from typer.cli import get_docs_for_click

from clawbox.cli.app import build_app
from clawbox.cli.errors import ExitCode
from tools.generated_page import DOCS, write_or_check

PAGE = DOCS / "cli.md"


def page() -> str:
    """The whole page: every command with its arguments and options, then the exit codes."""
    command = typer.main.get_command(build_app())
    # The help's epilog is the table of exit codes, drawn for a terminal.
    command.epilog = None
    context = typer.Context(command, info_name="clawbox")
    commands = get_docs_for_click(obj=command, ctx=context, name="clawbox", title="The command line")
    title, _, rest = commands.partition("\n")
    codes = "".join(f"| {code.value} | {code.meaning} |\n" for code in ExitCode)
    made = "<!-- Made from clawbox/cli by `make generate`; do not edit. -->"
    return f"{title}\n\n{made}\n{rest.rstrip()}\n\n## Exit codes\n\n| code | meaning |\n|---|---|\n{codes}"


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), source="clawbox/cli", arguments=sys.argv[1:]))
