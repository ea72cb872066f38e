"""Control's record of one run: what arrived from the worker, counted against its limits, and the result.

A worker may be in the hands of what it runs, so nothing that it says is believed beyond those limits.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.children.channel import FrameError
from clawbox.wasm.messages import MAX_MESSAGE_CHARS, MAX_PIECES, Done, Logged, RunFrame, WayOut, Written
from clawbox.wasm.model import (
    Abi,
    LogEntry,
    OnEvent,
    Outcome,
    OutputChunk,
    OutputStream,
    Run,
    RunEvent,
    RunResult,
)

if TYPE_CHECKING:
    from clawbox.egress.door import CallDoor

_log = logging.getLogger(__name__)

MAX_WORKERS: Final = 5
"""So many workers may die, one after the other, before they begin a call; it is lost then."""
_LARGEST: Final = (1 << 63) - 1
_MESSAGES_AT_ONCE: Final = 1024
_MESSAGES_PER_SECOND: Final = 1000


class Call:
    """One run between ``WorkerPool.run`` and its worker."""

    def __init__(self, run: Run, on_event: OnEvent | None, now: float, door: CallDoor | None = None) -> None:
        self.run = run
        self.door = door
        """The way out, if there is one."""
        self.done: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()
        self.queued_at = now
        self.started_at: float | None = None
        """When a worker got it; None while it waits. Seconds on the loop's clock."""
        self.overstayed = False
        """Control killed its worker because its time was over."""
        self.deadline: asyncio.TimerHandle | None = None
        self._on_event = on_event
        self._streams = {OutputStream.STDOUT: bytearray(), OutputStream.STDERR: bytearray()}
        self._room = {
            OutputStream.STDOUT: run.limits.stdout_bytes,
            OutputStream.STDERR: run.limits.stderr_bytes,
        }
        self._logs: list[LogEntry] = []
        self._log_room = run.limits.log_bytes
        self._messages = 0
        self._workers = 0

    @property
    def digest(self) -> str:
        """Which code it runs."""
        return self.run.code.digest

    def frame(self, number: int) -> RunFrame:
        """What the worker is told; ``number`` is that of the connection that it was handed, if any."""
        door = self.door
        code, limits = self.run.code, self.run.limits
        if code.table_elements > limits.table_elements:
            limits = msgspec.structs.replace(limits, table_elements=code.table_elements)
        return RunFrame(
            digest=code.digest,
            abi=code.abi,
            params=self.run.params,
            limits=limits,
            streamed=self._on_event is not None,
            input_schema=code.input_schema,
            output_schema=code.output_schema,
            network=self.run.network,
            way_out=WayOut(number, door.token, door.max_response_bytes) if door is not None else None,
        )

    def may_go_to_another(self) -> bool:
        """Make it wait again, its worker having died before it began it; False: it is lost."""
        self._workers += 1
        if self._workers >= MAX_WORKERS or self._messages or self.done.done():
            return False
        self.started_at = self.deadline = None
        return True

    def take(self, written: list[Written], logged: list[Logged], now: float) -> None:
        """Keep what the run wrote and logged. Raises :class:`FrameError` when that is more than it may."""
        self._messages += 1
        since = now - (self.started_at or now)
        if self._messages > _MESSAGES_AT_ONCE + since * _MESSAGES_PER_SECOND:
            raise FrameError("more messages than a worker sends")
        if len(written) > MAX_PIECES:
            raise FrameError("more pieces of output than a worker sends")
        before = None
        for piece in written:
            # What costs nothing of its limit, and could come without end, still costs time.
            if not piece.data or piece.stream is before:
                raise FrameError("output in smaller pieces than a worker sends")
            before = piece.stream
            room = self._room.get(piece.stream, -1) - len(piece.data)
            if room < 0:
                raise FrameError(f"more of {piece.stream.value} than the run may write")
            self._room[piece.stream] = room
            kept = self._streams[piece.stream]
            self._tell(OutputChunk(piece.stream, piece.data, len(kept)))
            kept += piece.data
        for entry in logged:
            self._log_room -= len(entry.message.encode("utf-8", "surrogatepass"))
            if self._log_room < 0 or len(self._logs) >= self.run.limits.host_calls:
                raise FrameError("more log entries than the run may make")
            kept_entry = LogEntry(entry.level, entry.message, _count(entry.offset_us))
            self._logs.append(kept_entry)
            self._tell(kept_entry)

    def finish(self, done: Done, now: float) -> RunResult:
        """The result by what the worker says. Raises :class:`FrameError` as :meth:`take` does."""
        self.take(done.written, done.logged, now)
        if done.output is not None and len(done.output) > self.run.limits.stdout_bytes:
            raise FrameError("more output than the run may have")
        if done.outcome in {Outcome.BLOCKED, Outcome.SANDBOX_LOST, Outcome.CANCELLED}:
            raise FrameError("an outcome that is not the worker's to say")
        if done.outcome is Outcome.OK and done.output is None and self.run.code.abi is Abi.COMPONENT:
            raise FrameError("a component's run that ended well without output")
        output, stdout = done.output, bytes(self._streams[OutputStream.STDOUT])
        if done.outcome is Outcome.OK and self.run.code.abi is not Abi.COMPONENT:
            output, stdout = stdout, b""
        return RunResult(
            done.outcome,
            done.message[:MAX_MESSAGE_CHARS],
            output,
            stdout,
            bytes(self._streams[OutputStream.STDERR]),
            tuple(self._logs),
            tuple((stream, _count(kept)) for stream, kept in done.truncated[: len(OutputStream)]),
            exit_code=done.exit_code,
            fuel_consumed=_count(done.fuel_consumed),
            peak_memory_bytes=_count(done.peak_memory_bytes),
            host_calls=min(_count(done.host_calls), self.run.limits.host_calls + 1),
            egress_calls=min(_count(done.egress_calls), self.run.limits.host_calls) if self.door else 0,
            duration_us=_count(done.duration_us),
            queued_us=self._queued_us(),
        )

    def lost(self, outcome: Outcome, message: str, now: float) -> RunResult:
        """The result of a run whose worker is dead: what had arrived by then."""
        return RunResult(
            outcome,
            message,
            None,
            bytes(self._streams[OutputStream.STDOUT]),
            bytes(self._streams[OutputStream.STDERR]),
            tuple(self._logs),
            duration_us=int((now - (self.started_at or now)) * 1e6),
            queued_us=self._queued_us(),
        )

    def resolve(self, result: RunResult) -> None:
        """Give the caller the result, unless it went away."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: Exception) -> None:
        """Give the caller an error, unless it went away."""
        if not self.done.done():
            self.done.set_exception(error)

    def _queued_us(self) -> int:
        return int(((self.started_at or self.queued_at) - self.queued_at) * 1e6)

    def _tell(self, event: RunEvent) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:  # noqa: BLE001 - it is logged, and must not end the worker
                _log.exception("what watches a run of %s failed; it is told no more", self.run.code.name)
                self._on_event = None


def _count(value: int) -> int:
    return min(max(value, 0), _LARGEST)
