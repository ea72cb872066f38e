"""What callers ask of processes inside containers, as received, and what is made of it. Pure."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from clawbox.containers.commands import check_command
from clawbox.containers.environment import check_environment
from clawbox.containers.mounts import check_working_dir
from clawbox.containers.users import User, exec_user
from clawbox.errors import invalid_field

if TYPE_CHECKING:
    from collections.abc import Mapping

SIGNALS: Final = ("HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "TSTP", "WINCH")
_EXEC_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LARGEST_SIZE: Final = 65_535
_LONGEST_MS: Final = 1 << 53
"""More than two hundred thousand years; clocks count it exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecCall:
    """What an Exec asks for, not yet checked."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    working_dir: str = ""
    """Empty: the container's."""
    user: str = ""
    """``UID`` or ``UID:GID``; empty: the container's."""
    tty: bool = False
    rows: int = 24
    columns: int = 80
    timeout_ms: int | None = None
    """From its start; None: it has no limit of its own."""
    exec_id: str = ""
    """Empty: one is made."""
    keep_running: bool = False
    """Whether it goes on while nobody is attached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCall:
    """What a RunCommand asks for, not yet checked."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    working_dir: str = ""
    user: str = ""
    stdin: bytes = field(default=b"", repr=False)
    timeout_ms: int | None = None
    max_output_bytes: int | None = None
    """Kept of each stream; None, or more than the container's: the container's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A process to start: checked."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    working_dir: str
    user: User
    tty: bool = False
    rows: int = 24
    columns: int = 80
    seconds: float | None = None
    """Most time from its start."""


def check(call: ExecCall | RunCall, *, working_dir: str, own: User, taken: range) -> Order:
    """Check a call for a container with that working folder and user; ``taken`` as in ``exec_user``.

    Raises INVALID_FIELD, and POLICY_DENIED for a user that it may not be.
    """
    check_command(call.command)
    check_environment(call.env)
    seconds = None
    if call.timeout_ms is not None:
        if not 0 < call.timeout_ms <= _LONGEST_MS:
            raise invalid_field("timeout_ms", f"must be from 1 to {_LONGEST_MS}", "range")
        seconds = call.timeout_ms / 1000
    order = Order(
        command=call.command,
        environment=call.env,
        working_dir=check_working_dir(call.working_dir) if call.working_dir else working_dir,
        user=exec_user(call.user, own=own, taken=taken),
        seconds=seconds,
    )
    if isinstance(call, RunCall):
        return order
    if call.exec_id:
        check_exec_id(call.exec_id)
    check_size(call.rows, call.columns, field="size")
    return Order(
        command=order.command,
        environment=order.environment,
        working_dir=order.working_dir,
        user=order.user,
        tty=call.tty,
        rows=call.rows,
        columns=call.columns,
        seconds=seconds,
    )


def check_exec_id(exec_id: str) -> None:
    """Raise INVALID_FIELD for what cannot be the id of an exec."""
    if _EXEC_ID.fullmatch(exec_id) is None:
        raise invalid_field("exec_id", "must be 1 to 64 letters, digits, _ and -", "pattern")


def check_size(rows: int, columns: int, *, field: str) -> None:
    """Raise INVALID_FIELD for what no terminal's size can be."""
    for name, number in (("rows", rows), ("columns", columns)):
        if not 1 <= number <= _LARGEST_SIZE:
            raise invalid_field(f"{field}.{name}", f"must be from 1 to {_LARGEST_SIZE}", "range")


def signal_number(name: str) -> int:
    """The number of a signal by its name without SIG. Raises INVALID_FIELD for one that is not offered."""
    if name not in SIGNALS:
        raise invalid_field("signal.name", f"must be one of {', '.join(SIGNALS)}", "enum")
    return signal.Signals[f"SIG{name}"].value
