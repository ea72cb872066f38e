"""Runs compilers: each in a process group of its own, with a time limit, its output kept for the error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

Progress = Callable[[str], None]
"""Is told in a few words what is being done now."""

_MAX_OUTPUT = 8000


class BuildError(Exception):
    """A tool cannot be built.

    ``message`` says why, ``hint`` what to do about it, and ``output`` is the end of what the compiler wrote.
    """

    def __init__(self, message: str, *, hint: str = "", output: str = "") -> None:
        self.message = message
        self.hint = hint
        self.output = output
        super().__init__(". ".join(part for part in (message, hint) if part))


class TakenError(BuildError):
    """What is to be made is there already."""


def run_command(
    command: Sequence[str | Path],
    *,
    what: str,
    folder: Path,
    timeout: float,
    environment: Mapping[str, str | None] | None = None,
) -> str:
    """Runs a command in ``folder`` and returns what it wrote to stdout.

    ``environment`` changes this process's own; None removes a variable. ``timeout`` is in seconds; at its end
    the whole process group is killed. Raises BuildError, with the output, when the command fails.
    """
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=_environment(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise BuildError(f"{what} could not start: {error}") from None
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            stdout, stderr = process.communicate()
            raise BuildError(f"{what} took more than {timeout:g} s", output=_end(stdout, stderr)) from None
        except BaseException:
            _kill_group(process)
            raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise BuildError(f"{what} was killed ({name})", output=_end(stdout, stderr))
    if process.returncode != 0:
        raise BuildError(f"{what} failed", output=_end(stdout, stderr))
    return stdout


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in changes}
    return environment | {key: value for key, value in changes.items() if value is not None}


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(stdout: str, stderr: str) -> str:
    return "\n".join(part for part in (stdout.strip(), stderr.strip()) if part)[-_MAX_OUTPUT:]
