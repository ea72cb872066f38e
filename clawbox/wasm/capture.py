"""What a run writes and logs, kept within its limits and told to control in time."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Final

from clawbox.wasm.messages import MAX_PIECES, Logged, Written, Wrote
from clawbox.wasm.model import Level, Limits, OutputStream

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM_GAP_SECONDS: Final = 0.005
"""A streamed run that writes in small pieces sends a message at most so often …"""
STREAM_BYTES: Final = 16 << 10
"""… or when this much has come together."""


class Capture:
    """Collects the output of one run: written by the guest's thread, flushed by that and the clock's."""

    def __init__(
        self,
        limits: Limits,
        *,
        streamed: bool,
        keep_output: bool,
        send: Callable[[Wrote], None],
        stop: Callable[[], None],
    ) -> None:
        self._room = {OutputStream.STDOUT: limits.stdout_bytes, OutputStream.STDERR: limits.stderr_bytes}
        self._kept = {OutputStream.STDOUT: 0, OutputStream.STDERR: 0}
        self._streamed = streamed
        self._send = send
        self._stop = stop
        self._lock = threading.Lock()
        self._written: list[tuple[OutputStream, bytearray]] = []
        self._logged: list[Logged] = []
        self._pending = 0
        self._sent = 0.0
        self._began = time.monotonic_ns()
        self.cut: set[OutputStream] = set()
        """Streams of which something was dropped."""
        self.output = bytearray()
        """All of stdout, with ``keep_output``."""
        self._keep_output = keep_output
        self.overflowed = False
        """stdout is larger than it may be, so the run cannot end well."""

    def stdout(self, data: bytes) -> int:
        """Take what the guest wrote to stdout; how much was accepted, or minus an errno."""
        return self._take(OutputStream.STDOUT, data)

    def stderr(self, data: bytes) -> int:
        """Take what the guest wrote to stderr."""
        return self._take(OutputStream.STDERR, data)

    def log(self, level: Level, message: str) -> None:
        """Take one log entry; how much may be logged is counted by the host."""
        with self._lock:
            self._logged.append(Logged(level, message, (time.monotonic_ns() - self._began) // 1000))
            self._pending += len(message)
            self._stream()

    def flush(self) -> None:
        """Tell control everything that it was not told yet."""
        with self._lock:
            self._flush()

    def rest(self) -> tuple[list[Written], list[Logged]]:
        """What control was not told yet; it is told by whoever asks, and not again."""
        with self._lock:
            return self._drain()

    def kept(self, stream: OutputStream) -> int:
        """How many bytes of a stream were kept."""
        return self._kept[stream]

    def _take(self, stream: OutputStream, data: bytes) -> int:
        size = len(data)
        with self._lock:
            room = self._room[stream] - self._kept[stream]
            if size > room:
                self.cut.add(stream)
                data = data[:room]
            if data:
                self._kept[stream] += len(data)
                self._pending += len(data)
                if self._keep_output and stream is OutputStream.STDOUT:
                    self.output += data
                if self._written and self._written[-1][0] is stream:
                    self._written[-1][1].extend(data)
                elif len(self._written) >= MAX_PIECES:
                    # Neighbours differ, so the one before the last is of this stream. What is lost is the
                    # order between the streams, of which so many tiny pieces make little.
                    self._written[-2][1].extend(data)
                else:
                    self._written.append((stream, bytearray(data)))
                self._stream()
        if size > room and stream is OutputStream.STDOUT:
            # Half of an output is worth nothing, and code that prints without end must not go on until it has
            # used up its time or memory: end the run.
            self.overflowed = True
            self._stop()
            return -errno.EIO
        # What is only for people to look at is cut, and the run goes on.
        return size

    def _stream(self) -> None:
        if self._streamed:
            now = time.monotonic()
            if now - self._sent >= STREAM_GAP_SECONDS or self._pending >= STREAM_BYTES:
                self._sent = now
                self._flush()

    def _flush(self) -> None:
        if self._pending or self._logged:
            self._send(Wrote(*self._drain()))

    def _drain(self) -> tuple[list[Written], list[Logged]]:
        written = [Written(stream, bytes(data)) for stream, data in self._written]
        logged = self._logged
        self._written, self._logged, self._pending = [], [], 0
        return written, logged
