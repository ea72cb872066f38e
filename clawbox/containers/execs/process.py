"""A process that callers attach to: its newest output, its input, and who is attached."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import EngineError, Stream
from clawbox.containers.execs.buffer import OutputBuffer
from clawbox.containers.execs.calls import check_size, signal_number
from clawbox.containers.execs.events import Gap, Output, Started
from clawbox.containers.execs.life import Life, Why
from clawbox.errors import ClawboxError, Reason, invalid_field

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from clawbox.containers.execs.calls import ExecCall
    from clawbox.containers.execs.events import ExecEvent, Exited

STALL_SECONDS: Final = 600.0
"""How long somebody attached may let a process wait that has more to write."""


class ExecProcess:
    """One process, from its start until it is forgotten. Made by ``Execs``."""

    def __init__(self, call: ExecCall, exec_id: str, container_id: str, owner: str, detached: float) -> None:
        self.call = call
        self.exec_id = exec_id
        self.container_id = container_id
        self.owner = owner
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it was started, or could not be."""
        self.life: Life
        self.ended: Exited | None = None
        self.failure: ClawboxError | None = None
        """Why it cannot be told how it went."""
        self.buffers = {stream: OutputBuffer() for stream in Stream}
        self.stdin_offset = 0
        self._detached_seconds = detached
        self._nobody: asyncio.TimerHandle | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._attached: Exec | None = None
        self._room = asyncio.Event()
        self._input = asyncio.Lock()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and that can be told."""
        return self.ended is not None or self.failure is not None

    @property
    def kept(self) -> int:
        """Bytes of its output that are still there."""
        return sum(buffer.kept for buffer in self.buffers.values())

    def drop_output(self) -> None:
        """Keep nothing of its output; who attaches is told of a gap."""
        for buffer in self.buffers.values():
            buffer.drop()

    @property
    def is_attached(self) -> bool:
        """Whether somebody is attached."""
        return self._attached is not None

    async def live(self) -> None:
        """Stay until it has ended."""
        try:
            ended = await self.life.run(None if self.call.timeout_ms is None else self.call.timeout_ms / 1000)
            if self.life.output.failure is None:
                self.ended = ended
            else:
                self.failure = self.life.output.failure
        except Exception as error:
            self.failure = ClawboxError(Reason.INTERNAL, "what the process wrote was lost")
            raise error from None
        finally:
            if not self.is_over:
                self.failure = ClawboxError(
                    Reason.SHUTTING_DOWN, "the server stops, and the process was ended"
                )
            self._stop_waiting()
            self._wake()

    async def take(self, stream: Stream, data: bytes) -> None:
        """More was written. Waits while somebody is attached who has not read what this would push out."""
        buffer = self.buffers[stream]
        while (reader := self._attached) is not None and buffer.would_drop(len(data), reader.offsets[stream]):
            self._room.clear()
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await self._room.wait()
            except TimeoutError:
                reader.cut(Reason.SLOW_READER, "what it wrote was not read for too long")
        buffer.append(data)
        self._wake()

    # Who is attached

    def attach(self, *, again: bool, stdout_offset: int = 0, stderr_offset: int = 0) -> Exec:
        """Attach somebody; whoever was before is cut. Raises INVALID_FIELD for offsets yet to come."""
        offsets = {Stream.STDOUT: stdout_offset, Stream.STDERR: stderr_offset}
        for stream, offset in offsets.items():
            if not 0 <= offset <= self.buffers[stream].end:
                raise invalid_field(
                    f"{stream.value}_offset", f"is not from 0 to {self.buffers[stream].end}", "range"
                )
        if self._attached is not None:
            self._attached.cut(Reason.WRONG_STATE, "somebody else attached to it")
        self._stop_waiting()
        self._attached = Exec(self, offsets, again=again)
        self._room.set()
        return self._attached

    def detached(self, one: Exec) -> None:
        """Somebody is attached no more."""
        if self._attached is not one:
            return
        self._attached = None
        self._room.set()
        if not self.call.keep_running and not self.is_over:
            self._nobody = asyncio.get_running_loop().call_later(
                self._detached_seconds, self.life.kill, Why.NOBODY
            )

    def forget_after(self, seconds: float, forget: Callable[[ExecProcess], None]) -> None:
        """It has ended, and is told for so long."""
        self._forgetting = asyncio.get_running_loop().call_later(seconds, forget, self)

    def forget(self) -> None:
        """It is told no more."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._stop_waiting()

    def was_read(self) -> None:
        """There may be room again."""
        self._room.set()

    def _stop_waiting(self) -> None:
        if self._nobody is not None:
            self._nobody.cancel()
            self._nobody = None

    def _wake(self) -> None:
        if self._attached is not None:
            self._attached.news.set()

    # What it is told

    async def write(self, data: bytes) -> None:
        """Give it input; returns when there is room for more."""
        async with self._input:
            if self.is_over:
                return
            # What is given to write is written, though whoever waits for room goes away.
            self.stdin_offset += len(data)
            with suppress(EngineError):
                await self.life.inside.stream.write(data)

    async def close_stdin(self) -> None:
        """No more input comes."""
        async with self._input:
            if not self.is_over:
                await self.life.inside.stream.close_input()


class Exec:
    """Somebody's hold on a process. Only the newest one can be used; others raise WRONG_STATE."""

    def __init__(self, process: ExecProcess, offsets: dict[Stream, int], *, again: bool) -> None:
        self.offsets = offsets
        """How much of each stream was read."""
        self.news = asyncio.Event()
        self._process = process
        self._again = again
        self._cut: ClawboxError | None = None

    @property
    def exec_id(self) -> str:
        """The process's id."""
        return self._process.exec_id

    async def events(self) -> AsyncGenerator[ExecEvent]:
        """What the process does, to its end. To be iterated once.

        Raises WRONG_STATE once somebody else has attached, SLOW_READER when output waited for ten minutes,
        and REDACTION_UNAVAILABLE when output could not be cleaned (the process is then killed).
        """
        process = self._process
        yield Started(process.exec_id, process.stdin_offset, self._again)
        while True:
            self.news.clear()
            self._check()
            told = False
            for stream in Stream:
                for event in self._next(stream):
                    yield event
                    told = True
                    self._check()
            if told:
                continue
            if process.failure is not None:
                raise process.failure
            if process.ended is not None:
                yield process.ended
                return
            await self.news.wait()

    async def write(self, data: bytes) -> None:
        """Give it input; returns when there is room for more. Nothing happens when it has ended."""
        self._check()
        await self._process.write(data)

    async def close_stdin(self) -> None:
        """No more input comes."""
        self._check()
        await self._process.close_stdin()

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal another size. Raises INVALID_FIELD, also where it has no terminal."""
        self._check()
        check_size(rows, columns, field="resize")
        if not self._process.call.tty:
            raise invalid_field("resize", "is only for a process with a terminal", "conflict")
        if not self._process.is_over:
            await self._process.life.inside.resize(rows, columns)

    async def signal(self, name: str) -> None:
        """Send a signal (``TERM``) to its process group. Raises INVALID_FIELD for one that is not offered."""
        self._check()
        number = signal_number(name)
        if not self._process.is_over:
            await asyncio.to_thread(self._process.life.inside.signal, number)

    def detach(self) -> None:
        """Let go of it; nothing happens the second time. See ``ExecCall.keep_running`` for what follows."""
        self._process.detached(self)

    def cut(self, reason: Reason, why: str) -> None:
        """Take the process away from whoever has this."""
        self._cut = ClawboxError(
            reason,
            "no longer attached to the process {exec_id}: {why}",
            precondition=("EXEC", self.exec_id) if reason is Reason.WRONG_STATE else None,
            exec_id=self.exec_id,
            why=why,
        )
        self._process.detached(self)
        self.news.set()

    def _check(self) -> None:
        if self._cut is not None:
            raise self._cut

    def _next(self, stream: Stream) -> Iterator[Gap | Output]:
        """What comes next of a stream; read when whoever has it asks for more."""
        buffer, offset = self._process.buffers[stream], self.offsets[stream]
        if offset < buffer.begin:
            self.offsets[stream] = buffer.begin
            yield Gap(stream, offset, buffer.begin - offset)
            offset = self.offsets[stream]
            if offset < buffer.begin:
                return
        if data := buffer.read(offset):
            yield Output(stream, offset, data)
            self.offsets[stream] = offset + len(data)
            self._process.was_read()
