"""Containers by what a person types: an id, or as much of its beginning as is enough."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.errors import CliError, ExitCode, describe
from clawbox.cli.output import print_error

if TYPE_CHECKING:
    from clawbox_client import SyncClient

IdArgument = Annotated[
    str,
    typer.Argument(
        help="Id of the container, or an unambiguous beginning of it.", metavar="ID", show_default=False
    ),
]
IdsArgument = Annotated[
    list[str],
    typer.Argument(
        help="Ids of containers, or unambiguous beginnings of them.", metavar="ID…", show_default=False
    ),
]

SHOWN = 12
"""How much of an id tables show: enough, among some thousands."""

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BEGINNING = re.compile(r"[0-9a-f-]{1,35}")
_NAME_PREFIX = "clawbox-"


def resolve(client: "SyncClient", text: str) -> str:
    """The id that begins with the text. Raises CliError when none does, or more than one."""
    wanted = text.removeprefix(_NAME_PREFIX).lower()
    if _ID.fullmatch(wanted):
        return wanted
    if not _BEGINNING.fullmatch(wanted):
        raise CliError(
            f"{text!r} is not the id of a container",
            hint="`clawbox ps -a` shows them",
            code=ExitCode.NOT_FOUND,
        )
    found = [
        one.container_id
        for one in client.list_containers(include_finished=True, page_size=1000)
        if one.container_id.startswith(wanted)
    ]
    if not found:
        raise CliError(
            f"no container's id begins with {wanted}",
            hint="`clawbox ps -a` shows them",
            code=ExitCode.NOT_FOUND,
        )
    if len(found) > 1:
        raise CliError(f"the ids of {len(found)} containers begin with {wanted}", hint="Give more of it")
    return found[0]


def for_each(ids: Sequence[str], action: Callable[[str], None]) -> None:
    """Does something to each; one that fails is told and keeps no other from it. Exits as the first did."""
    code = ExitCode.OK
    for one in ids:
        try:
            action(one)
        except Exception as error:
            if len(ids) == 1:
                raise
            failure = describe(error)
            if failure.code is ExitCode.INTERNAL and not hasattr(error, "reason"):
                raise
            print_error(str(failure))
            code = code or failure.code
    if code:
        raise typer.Exit(code)
