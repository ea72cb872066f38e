"""The words that the parts of ``clawbox.wasm`` share: what is run, within which limits, and what came of it.

Everything here is a value. Sizes are bytes and times are milliseconds or microseconds, as the names say.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import msgspec


class Abi(enum.Enum):
    """What kind of WebAssembly a tool is."""

    COMMAND_MODULE = "command_module"
    """A core module, WASI preview 1: JSON on stdin and stdout, ``_start``, ``clawbox.host_call``."""
    COMPONENT = "component"
    """A component that exports ``run`` of the world ``clawbox:tool/tool``."""
    COMMAND_COMPONENT = "command_component"
    """A component that exports ``wasi:cli/run``: JSON on stdin and stdout."""


class Outcome(enum.Enum):
    """How the run of untrusted code ended; see ``Outcome`` in sandbox.proto."""

    OK = "ok"
    TOOL_ERROR = "tool_error"
    TIMEOUT = "timeout"
    FUEL_EXHAUSTED = "fuel_exhausted"
    MEMORY_EXCEEDED = "memory_exceeded"
    OUTPUT_EXCEEDED = "output_exceeded"
    HOST_CALLS_EXCEEDED = "host_calls_exceeded"
    INVALID_OUTPUT = "invalid_output"
    BLOCKED = "blocked"
    SANDBOX_LOST = "sandbox_lost"
    CANCELLED = "cancelled"


class Level(enum.Enum):
    """How serious a tool says that a log entry is."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"
    UNKNOWN = "unknown"


class OutputStream(enum.Enum):
    """Where a run writes to."""

    STDOUT = "stdout"
    STDERR = "stderr"
    LOG = "log"


class LogEntry(msgspec.Struct, frozen=True):
    """One entry that a tool logged; ``offset_us`` counts from the start of the run."""

    level: Level
    message: str
    offset_us: int


class OutputChunk(msgspec.Struct, frozen=True):
    """Bytes that a run wrote to stdout or stderr; ``offset`` is how many came before."""

    stream: OutputStream
    data: bytes
    offset: int


class Limits(msgspec.Struct, frozen=True):
    """What one run may use. Every value is already narrowed and capped, and greater than zero."""

    timeout_ms: int
    fuel: int
    memory_bytes: int
    stdout_bytes: int = 1 << 20
    stderr_bytes: int = 64 << 10
    log_bytes: int = 64 << 10
    host_calls: int = 100
    table_elements: int = 10_000
    instances: int = 64
    """Core instances: a module has one, an interpreter's component a few dozen."""


class Violation(msgspec.Struct, frozen=True):
    """One way in which a value breaks a JSON Schema."""

    path: str
    """JSON pointer (RFC 6901) to the offending value; empty for the whole."""
    rule: str
    """The schema keyword: ``required``, ``type``, ``pattern`` …"""
    message: str


@dataclass(frozen=True, slots=True)
class ToolCode:
    """A compiled tool in the cache: what a worker needs to run it."""

    name: str
    digest: str
    """SHA-256 of the WebAssembly bytes, 64 hexadecimal digits."""
    abi: Abi
    artifact: str
    """Path of the ahead-of-time compiled artifact in the cache folder, which only the server can write."""
    input_schema: bytes | None = None
    """JSON text of the schema for parameters; None accepts everything."""
    output_schema: bytes | None = None
    table_elements: int = 10_000


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a tool."""

    code: ToolCode
    owner: str
    """The principal: no worker that served one principal serves another."""
    params: bytes
    """JSON text, UTF-8."""
    limits: Limits
    network: bool = False
    """Whether it may reach anything; where it is given no way out to do so, it is told that there is none."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run. ``output`` is None when the tool returned nothing before it ended."""

    outcome: Outcome
    message: str = ""
    output: bytes | None = None
    """A component's returned string (of ``ok`` or ``err``), or a command's stdout; not yet scanned."""
    stdout: bytes = b""
    """Filled when stdout is not the output, or when the run did not end OK."""
    stderr: bytes = b""
    logs: tuple[LogEntry, ...] = ()
    truncated: tuple[tuple[OutputStream, int], ...] = ()
    """Which streams were cut, and how many bytes were kept."""
    exit_code: int | None = None
    fuel_consumed: int = 0
    peak_memory_bytes: int = 0
    host_calls: int = 0
    egress_calls: int = 0
    duration_us: int = 0
    queued_us: int = 0


RunEvent = OutputChunk | LogEntry
"""What a running tool does before it ends."""

OnEvent = Callable[[RunEvent], None]
"""Called on the event loop for each event of a run, in order."""


class InvalidInputError(Exception):
    """The parameters break the tool's input schema; nothing ran."""

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        self.violations = violations
        super().__init__(f"{len(violations)} violations of the input schema")
