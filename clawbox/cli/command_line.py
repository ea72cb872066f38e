"""Commands whose arguments end with somebody else's command line."""

from typing import Any

from typer.core import TyperCommand

from clawbox.cli.errors import CliError

COMMAND = "command"
"""Name of the parameter that takes it."""


class WithCommand(TyperCommand):
    """All that follows the first ``--`` is the command, untouched; before it stand options and arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes the command out before anybody reads its options."""
        command: list[str] = []
        if "--" in args:
            at = args.index("--")
            args, command = args[:at], args[at + 1 :]
        rest = super().parse_args(ctx, args)
        if ctx.params.get(COMMAND):
            raise CliError(f"what is {ctx.params[COMMAND][0]!r}?", hint="The command goes after `--`")
        ctx.params[COMMAND] = command
        return rest
