"""Write ``docs/cli.md`` from the commands themselves; with ``--check``, only compare them."""

import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from clawbox.cli.app import build_app
from clawbox.cli.errors import ExitCode

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


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


def main(arguments: list[str]) -> int:
    """Write or check the page; return the exit status."""
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text() == page():
            return 0
        print("docs/cli.md is not what clawbox/cli makes; `make generate` writes it anew.")
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
