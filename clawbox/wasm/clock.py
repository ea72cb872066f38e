"""The time of a run, inside its worker: what takes too long is ended, and output is told in time."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final

from clawbox.children.channel import ChannelClosedError
from clawbox.children.linux import Timer

if TYPE_CHECKING:
    import wasmtime

    from clawbox.wasm.capture import Capture

_FLUSH_SECONDS: Final = 0.05
_STREAM_FLUSH_SECONDS: Final = 0.01


class Clock(threading.Thread):
    """Ends what takes too long, and tells control what was written meanwhile; asleep while runs are short."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        super().__init__(name="clock", daemon=True)
        self._engine = engine
        self._timer = Timer()
        self._lock = threading.Lock()
        self._capture: Capture | None = None
        self._deadline = 0.0
        self._interval = _FLUSH_SECONDS
        self.expired = False
        """The run that goes on, or went on last, took too long."""

    def begin(self, capture: Capture, seconds: float, *, streamed: bool) -> None:
        """A run begins, which may take so long; ``streamed``: what it writes is told sooner."""
        with self._lock:
            self._capture = capture
            self._deadline = time.monotonic() + seconds
            self._interval = _STREAM_FLUSH_SECONDS if streamed else _FLUSH_SECONDS
            self.expired = False
            self._timer.arm(min(self._interval, seconds))

    def end(self) -> None:
        """The run ended."""
        with self._lock:
            self._capture = None
            self._timer.disarm()

    def run(self) -> None:
        """What the thread does, until the process ends."""
        while True:
            self._timer.wait()
            with self._lock:
                capture = self._capture
                if capture is None:
                    continue
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self.expired = True
                    self._engine.increment_epoch()
                self._timer.arm(min(self._interval, left) if left > 0 else self._interval)
            try:
                capture.flush()
            except ChannelClosedError:
                os._exit(0)
