"""One run of one guest in a fresh store: instantiate, call, and say by its cause how it ended.

Nothing is concluded from words that a guest can choose (names in its backtrace): the cause is a trap code or
the exit status. What the store has left, and what this program itself did to end the run, are for
:mod:`clawbox.wasm.verdict` to consider.
"""

from __future__ import annotations

import ctypes
import json
from ctypes import byref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime import component

from clawbox.wasm.artifacts import Artifact, Artifacts, CommandModule
from clawbox.wasm.messages import MAX_MESSAGE_CHARS
from clawbox.wasm.model import Limits, Outcome

if TYPE_CHECKING:
    from clawbox.wasm.capture import Capture

_MAX_TABLES: Final = 64
_BACKTRACE_CHARS: Final = 2048
_NO_MEMORY: Final = "out of memory (failed to allocate "
_OUT_OF_MEMORY_TYPE: Final = "MemoryError"

_TRAPS: Final = {
    wasmtime.TrapCode.STACK_OVERFLOW: "call stack exhausted",
    wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS: "memory access out of bounds",
    wasmtime.TrapCode.TABLE_OUT_OF_BOUNDS: "table access out of bounds",
    wasmtime.TrapCode.INDIRECT_CALL_TO_NULL: "call of a null function",
    wasmtime.TrapCode.BAD_SIGNATURE: "indirect call with the wrong type",
    wasmtime.TrapCode.INTEGER_OVERFLOW: "integer overflow",
    wasmtime.TrapCode.INTEGER_DIVISION_BY_ZERO: "integer division by zero",
    wasmtime.TrapCode.BAD_CONVERSION_TO_INTEGER: "conversion of no integer to an integer",
    wasmtime.TrapCode.UNREACHABLE: "unreachable code reached",
}


class Pipes:
    """Where the WASI output of an instance goes: nowhere until its run begins."""

    def __init__(self) -> None:
        self.capture: Capture | None = None

    def stdout(self, data: bytes) -> int:
        """Take the call-back of wasmtime for stdout."""
        return self.capture.stdout(data) if self.capture is not None else len(data)

    def stderr(self, data: bytes) -> int:
        """Take the call-back of wasmtime for stderr."""
        return self.capture.stderr(data) if self.capture is not None else len(data)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the guest's code ended, before its output is looked at."""

    outcome: Outcome
    message: str = ""
    output: bytes | None = None
    exit_code: int | None = None
    trapped: bool = False


class Guest:
    """An instance in a store of its own. Close it: it holds all of the guest's memory."""

    def __init__(self, artifacts: Artifacts, artifact: Artifact, limits: Limits, fuel: int) -> None:
        self._artifacts = artifacts
        self._artifact = artifact
        self._limits = limits
        self._memory: wasmtime.Memory | None = None
        self._pipes = Pipes()
        self._given = fuel
        store = self._store = wasmtime.Store(artifacts.engine)
        store.set_fuel(fuel)
        store.set_epoch_deadline(1)
        store.set_limits(
            memory_size=limits.memory_bytes,
            table_elements=limits.table_elements,
            instances=limits.instances,
            tables=_MAX_TABLES,
            memories=1,
        )

    def close(self) -> None:
        """Free everything that the guest held."""
        self._store.close()

    def fuel_left(self) -> int:
        """What is left of the fuel it was given last."""
        return self._store.get_fuel()

    def memory_bytes(self) -> int | None:
        """Size of a core module's memory now; None for components, whose memory is not visible."""
        return self._memory.data_len(self._store) if self._memory is not None else None

    def instantiate_component(self) -> component.Func:
        """Link and instantiate a component. Raises :class:`wasmtime.WasmtimeError`, traps included."""
        artifact = self._artifact
        assert not isinstance(artifact, CommandModule)
        instance = self._artifacts.components.instantiate(self._store, artifact.code)
        function = instance.get_func(self._store, artifact.run)
        if function is None:
            raise wasmtime.WasmtimeError("the component exports no run function")
        return function

    def set_wasi(self, stdin: bytes) -> None:
        """Give it the bytes of its stdin, and its outputs; no arguments, environment, files or sockets."""
        config = wasmtime.WasiConfig()
        if stdin:
            vector = ffi.wasm_byte_vec_t()
            data = (ctypes.c_ubyte * len(stdin)).from_buffer_copy(stdin)
            ffi.wasm_byte_vec_new(byref(vector), len(stdin), data)
            ffi.wasi_config_set_stdin_bytes(config.ptr(), byref(vector))
        config.stdout_custom = self._pipes.stdout
        config.stderr_custom = self._pipes.stderr
        self._store.set_wasi(config)

    def begin(self, capture: Capture, fuel: int) -> None:
        """What it does from now on belongs to a run, with ``fuel`` in all, and its time counts."""
        self._pipes.capture = capture
        used = self._given - self._store.get_fuel()
        self._given = fuel
        self._store.set_fuel(max(fuel - used, 0))
        self._store.set_epoch_deadline(1)

    def call_module(self) -> None:
        """Instantiate a core module and call ``_start``. Raises what wasmtime raises."""
        assert isinstance(self._artifact, CommandModule)
        instance = self._artifact.pre.instantiate(self._store)
        exports = instance.exports(self._store)
        memory = exports.get("memory")
        if isinstance(memory, wasmtime.Memory):
            self._memory = memory
        start = exports.get("_start")
        if not isinstance(start, wasmtime.Func):
            raise wasmtime.WasmtimeError("the module exports no _start function")
        start(self._store)

    def call_component(self, function: component.Func, *params: str) -> object:
        """Call the function; what it returned. Raises what wasmtime raises."""
        return function(self._store, *params)


def failed(error: Exception, *, instantiated: bool) -> Ended:
    """What an error of wasmtime means, where nothing that this program did explains it."""
    if isinstance(error, wasmtime.ExitTrap):
        if error.code == 0:
            return Ended(Outcome.OK, exit_code=0)
        return Ended(Outcome.TOOL_ERROR, f"exited with status {error.code}", exit_code=error.code)
    code = error.trap_code if isinstance(error, wasmtime.Trap) else None
    text = str(error)
    backtrace, _, cause = text.rpartition("Caused by:\n")
    cause = _TRAPS.get(code, "") if code is not None else cause.strip().removeprefix("wasm trap: ")
    if code is wasmtime.TrapCode.OUT_OF_FUEL:
        return Ended(Outcome.FUEL_EXHAUSTED, trapped=True)
    if code is wasmtime.TrapCode.ALLOCATION_TOO_LARGE:
        return Ended(Outcome.MEMORY_EXCEEDED, trapped=True)
    if not instantiated and not isinstance(error, wasmtime.Trap) and text.endswith("exceeds memory limits"):
        # The store's own words about the module's declaration; no guest code has run.
        return Ended(Outcome.MEMORY_EXCEEDED, "the tool needs more memory to start than it may have")
    if not instantiated and not isinstance(error, wasmtime.Trap) and text.startswith(_NO_MEMORY):
        return Ended(Outcome.MEMORY_EXCEEDED, "the tool needs more tables to start than there is memory for")
    message = f"trap: {cause or 'unknown'}"
    if backtrace:
        message += "\n" + backtrace.strip()[:_BACKTRACE_CHARS]
    return Ended(Outcome.TOOL_ERROR, message[:MAX_MESSAGE_CHARS], trapped=True)


def returned(value: object) -> Ended:
    """What the value means that a component's ``run`` returned: ``result<string, string>``."""
    if not isinstance(value, component.Variant):
        return Ended(Outcome.TOOL_ERROR, "run returned something else than a result")
    if value.payload is None:
        # ``wasi:cli/run``: a result without values.
        if value.tag == "ok":
            return Ended(Outcome.OK)
        return Ended(Outcome.TOOL_ERROR, "the command failed", exit_code=1)
    if not isinstance(value.payload, str):
        return Ended(Outcome.TOOL_ERROR, "run returned something else than result<string, string>")
    output = value.payload.encode("utf-8", "surrogatepass")
    if value.tag == "ok":
        return Ended(Outcome.OK, output=output)
    message, out_of_memory = error_message(value.payload)
    outcome = Outcome.MEMORY_EXCEEDED if out_of_memory else Outcome.TOOL_ERROR
    return Ended(outcome, message, output=output)


def error_message(text: str) -> tuple[str, bool]:
    """The message in what a tool returned as its error, and whether it says that it ran out of memory.

    A JSON object with an ``error`` member says it there: as a string, or as ``type`` and ``message``, and
    ``"type": "MemoryError"`` means what it says. Anything else is the message itself.
    """
    message, kind = text, ""
    if text.startswith("{"):
        try:
            error = json.loads(text).get("error")
        except (ValueError, RecursionError):
            error = None
        if isinstance(error, str):
            message = error
        elif isinstance(error, dict):
            kind = str(error.get("type") or "")
            detail = str(error.get("message") or "")
            message = f"{kind}: {detail}" if kind and detail else kind or detail or text
    # The escapes of JSON can name half of a surrogate pair, which no message can carry.
    message = message[:MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()
    return message, kind == _OUT_OF_MEMORY_TYPE
