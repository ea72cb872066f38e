"""The command line: ``clawbox``. Built on the public Python client, one module for each group of commands."""

import sys


def main() -> None:
    """Runs the command line and exits with one of the codes of :class:`clawbox.cli.errors.ExitCode`."""
    try:
        from clawbox.cli.app import run  # noqa: PLC0415 - the package itself must stay quick to import

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
