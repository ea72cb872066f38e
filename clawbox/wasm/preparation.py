"""The instance that stands ready for the next run of what ran last.

A worker makes it between two runs, so that no call waits until an interpreter has started. It served nobody
before, as every instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import wasmtime

from clawbox.wasm.artifacts import Artifact, Artifacts, CommandModule
from clawbox.wasm.guest import Guest

if TYPE_CHECKING:
    from wasmtime import component

    from clawbox.wasm.memory import OwnMemory
    from clawbox.wasm.messages import RunFrame
    from clawbox.wasm.model import Limits

_FUEL: Final = 200_000
"""What an instance may use before its call is there: enough for an interpreter's start."""


@dataclass(frozen=True, slots=True)
class PreparedInstance:
    """An instance for a run of one tool with these limits."""

    digest: str
    limits: Limits
    guest: Guest
    function: component.Func
    base: int
    """Memory that the process had of its own before the instance was made, in bytes."""


class Preparation:
    """What a worker makes ready, and the last run's instance, which it frees before."""

    def __init__(self, artifacts: Artifacts, memory: OwnMemory) -> None:
        self._artifacts = artifacts
        self._memory = memory
        self._ready: PreparedInstance | None = None
        self._finished: Guest | None = None
        self._unpreparable: set[str] = set()

    def take(self, digest: str, limits: Limits) -> PreparedInstance | None:
        """What stands ready for a run, if it does; what stands ready for another is freed."""
        ready, self._ready = self._ready, None
        if ready is not None and (ready.digest, ready.limits) != (digest, limits):
            ready.guest.close()
            return None
        return ready

    def is_possible(self, artifact: Artifact, digest: str) -> bool:
        """Only for components that take no stdin, which is not known yet; a module takes microseconds."""
        return (
            not isinstance(artifact, CommandModule)
            and not artifact.is_command
            and digest not in self._unpreparable
        )

    def free_later(self, finished: Guest) -> None:
        """Keep the instance of a run until :meth:`prepare`.

        An interpreter's memory takes a while to free: the answer need not wait for it.
        """
        self._finished = finished

    def prepare(self, frame: RunFrame) -> bool:
        """Free the last instance and make the next; control replaces a worker that is not back soon.

        Returns whether the worker is bloated.
        """
        if self._finished is not None:
            self._finished.close()
            self._finished = None
        if self._memory.is_bloated():
            return True
        artifact = self._artifacts.get(frame.digest)
        assert artifact is not None
        base = self._memory.data_bytes()
        guest = Guest(self._artifacts, artifact, frame.limits, min(_FUEL, frame.limits.fuel))
        try:
            guest.set_wasi(b"")
            function = guest.instantiate_component()
        except (wasmtime.WasmtimeError, wasmtime.Trap):
            # Its start does more than starting. It is instantiated with the call, in the call's own time.
            self._unpreparable.add(frame.digest)
            guest.close()
            return False
        self._ready = PreparedInstance(frame.digest, frame.limits, guest, function, base)
        return False
