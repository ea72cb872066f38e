"""What a container runs: the request's command, the template's, or the image's own. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clawbox.containers.gate import HOLD_PATH
from clawbox.errors import invalid_field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clawbox.containers.image_facts import ImageFacts

MAX_ARGUMENTS: Final = 1024
MAX_BYTES: Final = 131_072
"""Of all arguments, each with its NUL."""


def check_command(command: Sequence[str], *, field: str = "command") -> None:
    """Check an argument vector of a request. Raises INVALID_FIELD."""
    if not command or not command[0]:
        raise invalid_field(field, "names no program", "required")
    if len(command) > MAX_ARGUMENTS:
        raise invalid_field(field, f"has more than {MAX_ARGUMENTS} arguments", "max_items")
    for index, argument in enumerate(command):
        if "\0" in argument:
            raise invalid_field(f"{field}[{index}]", "has a NUL", "pattern")
    if sum(len(argument.encode("utf-8", "surrogatepass")) + 1 for argument in command) > MAX_BYTES:
        raise invalid_field(field, f"is larger than {MAX_BYTES} bytes", "max_length")


def container_command(
    requested: Sequence[str], *, hold: bool, template: Sequence[str], image: ImageFacts
) -> tuple[str, ...]:
    """The argument vector of a container: the request's, else the template's, else the image's own.

    One that is only held gets a program that does nothing, whatever template and image say.
    Raises INVALID_FIELD for ``command`` or ``hold``.
    """
    if hold:
        if requested:
            raise invalid_field("hold", "excludes a command", "conflict")
        return (HOLD_PATH,)
    command = tuple(requested) or tuple(template) or (*image.entrypoint, *image.command)
    if not command:
        raise invalid_field("command", "is needed: the image has none of its own; or hold it", "required")
    check_command(command)
    return command
