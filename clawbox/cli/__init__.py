"""The command line: ``clawbox``. Built on the public Python client, one module for each group of commands."""

import sys


def main() -> None:
    """Runs the command line and exits with one of the codes of :class:`clawbox.cli.errors.ExitCode`."""
    from clawbox.cli.app import run  # noqa: PLC0415 - importing the package must not read the command line's parts

    sys.exit(run(sys.argv[1:]))
