"""The gate: the first program of every container and every exec.

It waits at a FIFO until the sandbox's way out listens, and then becomes the program that was asked for: same
pid, arguments, environment and descriptors. It is bound into the container as one file, so an image needs
neither a shell nor a libc for it. ``gate_x86_64.S`` says what it does; beside each source is the machine code
that ``make generate`` assembles from it, which ``make check`` compares. The program of a container that is
only held comes the same way.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Final

from clawbox.containers.gate.elf import MACHINES, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER: Final = "/run/clawbox"
"""Where a container sees its run folder."""
GATE_PATH: Final = f"{FOLDER}/gate"
HOLD_PATH: Final = f"{FOLDER}/hold"
GO_PATH: Final = f"{FOLDER}/go"
"""The FIFO of the container's own program: one byte lets one gate go, the end of the file refuses it."""

NOT_FOUND: Final = 127
"""How the gate exits when it is not let go, and when there is no such command."""
NOT_EXECUTABLE: Final = 126
"""How it exits when the command is there and cannot be executed."""


def behind_gate(command: Sequence[str], *, fifo: str = GO_PATH) -> list[str]:
    """The arguments that run ``command`` behind the gate, which waits at ``fifo``.

    Each exec has a FIFO of its own: of two gates at one, nobody could say which is let go.
    """
    return [GATE_PATH, fifo, *command]


def gate_binary(machine: str) -> bytes:
    """The gate as a static ELF executable for ``machine``, as uname(2) names it.

    Raises ValueError for a machine that has none.
    """
    return _binary("gate", machine)


def hold_binary(machine: str) -> bytes:
    """The program that does nothing until a signal ends it; as :func:`gate_binary`."""
    return _binary("hold", machine)


def _binary(program: str, machine: str) -> bytes:
    if machine not in MACHINES:
        raise ValueError(f"there is no gate for {machine}; there are {', '.join(MACHINES)}")
    code = files(__package__).joinpath(f"{program}_{machine}.hex").read_text("ascii")
    return pack(machine, bytes.fromhex(code))
