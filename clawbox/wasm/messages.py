"""What the pool and a worker say to each other; see :mod:`clawbox.children.channel` for the frames.

A unary call is one message each way. A worker may say what a run wrote before it ends; what it said then
is not repeated in :class:`Done`. The pool does not believe a worker: it counts what arrives against the
run's own limits.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from clawbox.wasm.model import (
    Abi,
    Level,
    Limits,
    Outcome,
    OutputStream,
    Violation,
)

MAX_CONTROL_FRAME_BYTES = 80 << 20
"""Largest frame that a worker accepts: parameters of the largest gRPC message and two schemas, amply."""

MAX_MESSAGE_CHARS = 4096
"""Longest text in which a worker says what went wrong."""

MAX_VIOLATIONS = 20

_MAX_ENTRIES = 1000
_MAX_TRUNCATIONS = 3

_DATA_ALLOWANCE = 64 << 20
"""Memory of a worker beside what the guest holds: copies of small inputs and outputs, thread stacks."""
_HOST_COPIES = 3
"""How often what a guest returns exists outside of it for a moment, while it is lifted and checked."""
_ANSWER_COPIES = 20
"""Bytes for each byte of the body of an HTTP answer: it comes as base64, is text of up to four bytes a
character, and a JSON reply in which each can be six."""

BEGUN = b"\x01"
"""A worker writes this to the socket of descriptors before a call has any effect.

Control looks for it once the worker is dead: without it the call can be given to another. It is no frame,
since each frame wakes control up.
"""

FRAME_ALLOWANCE_BYTES = 256 << 10
"""What a frame of a worker may hold beside the bytes that the limits of a run count."""


class WayOut(msgspec.Struct, frozen=True, array_like=True):
    """The connection to one call's sidecar, which is handed to the worker before the RunFrame is sent."""

    number: int
    """Of the ``Handed`` beside the descriptor."""
    token: str
    max_body_bytes: int
    """Largest body of an answer."""

    def __repr__(self) -> str:
        """Without the token."""
        return f"WayOut({self.number})"


class RunFrame(msgspec.Struct, frozen=True, array_like=True):
    """Control to worker: run this."""

    digest: str
    abi: Abi
    params: bytes
    limits: Limits
    streamed: bool
    """Say at once what the run writes; otherwise only what is older than a few ten milliseconds."""
    input_schema: bytes | None
    output_schema: bytes | None
    network: bool = False
    """Whether the run was granted anything to reach."""
    way_out: WayOut | None = None


class Written(msgspec.Struct, frozen=True, array_like=True):
    """Bytes that a run wrote to stdout or stderr."""

    stream: OutputStream
    data: bytes


MAX_PIECES = 256
"""Most :class:`Written` in one message; neighbours are of different streams, and none is empty."""


class Logged(msgspec.Struct, frozen=True, array_like=True):
    """An entry that a run logged, and when, in microseconds since its start."""

    level: Level
    message: str
    offset_us: int


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """Worker to control: confined, and waiting for a run."""


Pieces = Annotated[list[Written], msgspec.Meta(max_length=MAX_PIECES)]
Entries = Annotated[list[Logged], msgspec.Meta(max_length=_MAX_ENTRIES)]
Violations = Annotated[list[Violation], msgspec.Meta(max_length=MAX_VIOLATIONS)]
Truncations = Annotated[list[tuple[OutputStream, int]], msgspec.Meta(max_length=_MAX_TRUNCATIONS)]
ExitCode = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]


class Wrote(msgspec.Struct, frozen=True, tag="wrote", array_like=True):
    """Worker to control: what the run wrote and logged since the last message, each stream in order."""

    written: Pieces
    logged: Entries


class Refused(msgspec.Struct, frozen=True, tag="refused", array_like=True):
    """Worker to control: the parameters break the input schema; nothing ran."""

    violations: Violations


class Done(msgspec.Struct, frozen=True, tag="done", array_like=True):
    """Worker to control: the run ended."""

    outcome: Outcome
    message: str
    output: bytes | None
    """What a component returned; None where stdout is the output."""
    written: Pieces
    logged: Entries
    truncated: Truncations
    exit_code: ExitCode | None
    trapped: bool
    """It did not end by itself: this worker serves no further run."""
    bloated: bool
    """The worker kept memory that it should have given back."""
    prepares: bool
    """The worker frees this instance and makes the next one now, and says Prepared when it is done."""
    fuel_consumed: int
    peak_memory_bytes: int
    host_calls: int
    egress_calls: int
    duration_us: int


class Prepared(msgspec.Struct, frozen=True, tag="prepared", array_like=True):
    """Worker to control: the next instance of what ran last stands ready, or could not be made."""

    bloated: bool
    """As in :class:`Done`, which came before the last instance was freed."""


FromWorker = Ready | Wrote | Refused | Done | Prepared


class ArtifactSpec(msgspec.Struct, frozen=True):
    """What the forkserver needs to load a compiled tool; the key is its digest."""

    abi: Abi
    path: str


def data_allowance(limits: Limits, params_bytes: int, answer_bytes: int) -> int:
    """Private memory that a worker may have for a run beside what it had before (docs/security.md, 92).

    ``answer_bytes``: the largest body of an HTTP answer; 0 without a way out.
    """
    streams = limits.stdout_bytes + limits.stderr_bytes + limits.log_bytes
    copies = 4 * streams + 8 * params_bytes + _ANSWER_COPIES * answer_bytes
    return (1 + _HOST_COPIES) * limits.memory_bytes + copies + _DATA_ALLOWANCE


def frame_limit(limits: Limits) -> int:
    """The largest frame that a worker can honestly send while a run with ``limits`` goes on."""
    return 2 * limits.stdout_bytes + limits.stderr_bytes + 2 * limits.log_bytes + FRAME_ALLOWANCE_BYTES
