"""What callers are told of processes inside containers: values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clawbox.containers.backend import Stream
    from clawbox.containers.output.findings import OutputFinding


@dataclass(frozen=True, slots=True)
class Started:
    """It runs; always first."""

    exec_id: str
    stdin_offset: int
    """Bytes of input that it was given so far."""
    attached: bool
    """Whether it was started before."""


@dataclass(frozen=True, slots=True)
class Output:
    """What it wrote, redacted; at most 64 KiB."""

    stream: Stream
    offset: int
    """Redacted bytes of this stream that came before."""
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gap:
    """What it wrote and is no longer there."""

    stream: Stream
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """How it ended; always last."""

    exit_code: int | None
    """As the engine tells it; None: nobody knows."""
    timed_out: bool = False
    lost: bool = False
    """It ended with its container, the engine or this server."""
    reason: str = ""
    """One sentence about an end other than its own."""
    duration_ms: int = 0
    findings: tuple[OutputFinding, ...] = ()


ExecEvent = Started | Output | Gap | Exited


@dataclass(frozen=True, slots=True)
class Cut:
    """A stream of which only the beginning was kept. Bytes are redacted ones."""

    stream: Stream
    kept_bytes: int
    dropped_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a process wrote and how it ended."""

    ended: Exited
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    truncations: tuple[Cut, ...] = ()
