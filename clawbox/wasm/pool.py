"""Control's side of the workers: which process runs which call, and when a process has served its time.

A worker serves one principal, one call at a time, and at most :data:`CALLS_PER_WORKER` calls. Whatever goes
wrong in one is answered by killing it: a worker is cheap (a fork), and nothing in it is worth saving.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

import msgspec

from clawbox.children.channel import FrameError
from clawbox.children.enforcement import Enforcement, probe
from clawbox.children.launcher import (
    ChildrenUnavailableError,
    ForkServerGoneError,
    Launcher,
    LoadFailedError,
)
from clawbox.errors import ClawboxError, Reason
from clawbox.wasm.call import Call
from clawbox.wasm.choosing import OVERDUE_SECONDS, choose_worker, is_overdue
from clawbox.wasm.messages import (
    MAX_CONTROL_FRAME_BYTES,
    MAX_VIOLATIONS,
    ArtifactSpec,
    Done,
    FromWorker,
    Prepared,
    Ready,
    Refused,
    Wrote,
    data_allowance,
    frame_limit,
)
from clawbox.wasm.model import InvalidInputError, Limits, OnEvent, Outcome, Run, RunResult, ToolCode
from clawbox.wasm.pool_worker import PoolWorker
from clawbox.wasm.starts import Starts, unavailable
from clawbox.wasm.waiting import WaitingCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from clawbox.children.uids import UidRange
    from clawbox.egress.door import CallDoor

_log = logging.getLogger(__name__)

T = TypeVar("T")

KIND: Final = "clawbox.wasm.worker:KIND"
_WORKER: Final = "worker"
CALLS_PER_WORKER: Final = 1000
MAX_MEMORY_BYTES: Final = 1 << 30
MAX_RESPONSE_BYTES: Final = 1 << 20
GRACE_SECONDS: Final = 0.1
"""How much longer than its limit a run may take before its worker is killed; the worker ends most itself."""
SURPLUS_IDLE_SECONDS: Final = 10.0
START_SECONDS: Final = 15.0
PREPARE_SECONDS: Final = 2.0
_STARTS_AT_ONCE: Final = 4

_encoder = msgspec.msgpack.Encoder()

_ENDED_WELL: Final = frozenset({Outcome.OK, Outcome.TOOL_ERROR, Outcome.INVALID_OUTPUT})


class PoolObserver(Protocol):
    """Is told what becomes of workers; for metrics."""

    def worker_started(self) -> None:
        """A worker is ready."""

    def worker_ended(self, why: str) -> None:
        """A worker is dead. ``why``: ``retired``, ``overstayed``, ``cancelled``, ``lost``."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What the pool holds now, and what it did so far."""

    busy: int
    idle: int
    spare: int
    starting: int
    waiting: int
    started_total: int
    lost_total: int
    forkserver_restarts_total: int

    @property
    def workers(self) -> int:
        """Worker processes that are ready."""
        return self.busy + self.idle + self.spare


class WorkerPool:
    """Runs tools in workers while entered. Leaving ends every worker and every run.

    ``workers`` are kept warm (0: as many as there are cores); at most ``max_concurrent`` calls run at once.
    ``uids`` is None where workers cannot have uids of their own. ``max_memory_bytes`` is the largest
    ``Limits.memory_bytes`` of any run, and ``max_response_bytes`` the largest body that a run's sidecar
    answers with: no worker can ever allow itself much more.
    """

    def __init__(
        self,
        *,
        workers: int,
        max_concurrent: int,
        uids: UidRange | None,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        observer: PoolObserver | None = None,
    ) -> None:
        self._size = min(workers or os.cpu_count() or 1, max_concurrent)
        self._max = max_concurrent
        self._observer = observer
        self._launcher = Launcher({_WORKER: KIND}, uids, self._dispatch)
        self._data_bytes = _data_bytes(max_memory_bytes, max_response_bytes)
        self._spare: list[PoolWorker] = []
        self._idle: list[PoolWorker] = []  # longest idle first
        self._busy: set[PoolWorker] = set()
        self._starting = 0
        self._workers: set[PoolWorker] = set()
        self._waiting = WaitingCalls()
        self._loading: dict[str, asyncio.Task[ClawboxError | None]] = {}
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[Any]] = set()
        self._stack = contextlib.AsyncExitStack()
        self._open = False
        self._starts = Starts(lambda: bool(self._spare or self._idle or self._busy), self._dispatch)
        self._started_total = 0
        self._lost_total = 0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._stack.enter_async_context(self._launcher)
        await self._stack.enter_async_context(self._tasks)
        self._open = True
        self._dispatch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        for call in self._waiting.take():
            call.fail(ClawboxError(Reason.SHUTTING_DOWN, "the server is stopping"))
        for worker in list(self._workers):
            worker.kill("cancelled" if worker.call is not None else "retired")
        for task in list(self._running):
            task.cancel()
        await self._stack.__aexit__(None, None, None)
        for worker in list(self._workers):
            # Dead, but the end of its channel was not read yet.
            worker.protocol.close()
            self.worker_gone(worker)
        await asyncio.sleep(0)

    def stats(self) -> PoolStats:
        """What the pool holds now."""
        return PoolStats(
            busy=len(self._busy),
            idle=len(self._idle),
            spare=len(self._spare),
            starting=self._starting,
            waiting=len(self._waiting),
            started_total=self._started_total,
            lost_total=self._lost_total,
            forkserver_restarts_total=self._launcher.restarts,
        )

    def enforcements(self) -> tuple[Enforcement, ...]:
        """What confines the workers on this machine, and what does not."""
        return probe(self._launcher.status)

    def watch_availability(self, tell: Callable[[bool], None]) -> None:
        """Tell whether calls can be served, now and whenever it changes.

        They cannot while no worker is ready and none can be started.
        """
        self._starts.watch(tell)

    async def preload(self, code: ToolCode) -> None:
        """Have workers that are started from now on know ``code``, so that its first call need not wait.

        Raises SANDBOX_UNAVAILABLE.
        """
        error = await asyncio.shield(self._load(code))
        if error is not None:
            raise error

    async def run(self, run: Run, on_event: OnEvent | None = None, door: CallDoor | None = None) -> RunResult:
        """Run a tool once, in a fresh instance, and say what came of it.

        With ``on_event`` what the run writes and logs is told as it happens; the result holds it in any case.
        With ``door`` its connection goes to the worker that gets the call, and is closed here.
        Raises :class:`InvalidInputError` when the parameters break the input schema, and SANDBOX_UNAVAILABLE
        or SHUTTING_DOWN when no worker can be had. Cancelling kills the worker, and returns when it is dead.
        """
        if not self._open:
            raise ClawboxError(Reason.SHUTTING_DOWN, "the server is stopping")
        call = Call(run, on_event, self._loop.time(), door)
        worker = self._choose(call) if not self._waiting else None
        if worker is not None:
            self._assign(worker, call)
        else:
            pause = self._starts.paused_for(call.queued_at)
            if pause > 0:
                raise unavailable("workers cannot be started", pause)
            self._waiting.add(call)
            self._loop.call_later(OVERDUE_SECONDS, self._dispatch)
            self._dispatch()
        try:
            return await call.done
        except asyncio.CancelledError:
            await self._abandon(call)
            raise

    # Which worker gets which call.

    def _choose(self, call: Call) -> PoolWorker | None:
        return choose_worker(
            call,
            self._loop.time(),
            idle=self._idle,
            spare=self._spare,
            busy=len(self._busy),
            size=self._size,
            most=self._max,
        )

    def _assign(self, worker: PoolWorker, call: Call) -> None:
        if worker.owner is None:
            self._spare.remove(worker)
            worker.owner = call.run.owner
            if self._idle and len(self._busy) + len(self._idle) >= self._size:
                self._idle[0].kill("retired")
                self._forget(self._idle[0])
        else:
            self._idle.remove(worker)
        self._busy.add(worker)
        worker.call = call
        worker.calls += 1
        worker.last_digest = call.digest
        now = call.started_at = self._loop.time()
        limits = call.run.limits
        call.deadline = self._loop.call_at(
            now + limits.timeout_ms / 1000 + GRACE_SECONDS, self._overstayed, worker, call
        )
        worker.protocol.limit(frame_limit(limits))
        if call.door is not None:
            worker.hand(call.door.connection, worker.calls)
        worker.protocol.send(call.frame(worker.calls))
        if not self._spare:
            self._provide()

    def _dispatch(self) -> None:
        """Give waiting calls to workers, in turn by owner, then see to it that there are enough workers."""
        if not self._open:
            return
        progress = True
        while progress:
            progress = False
            for call in self._waiting.firsts():
                worker = self._choose(call)
                if worker is not None:
                    self._waiting.served(call)
                    self._assign(worker, call)
                    progress = True
        self._provide()

    def _provide(self) -> None:
        """Load what waiting calls need, replace spares that lack something, and start workers."""
        now = self._loop.time()
        if not self._open or self._starts.paused_for(now) > 0:
            return
        waiting = overdue = 0
        for call in self._waiting:
            if call.digest not in self._launcher.loaded(_WORKER):
                self._load(call.run.code)
            else:
                waiting += 1
                overdue += is_overdue(call, now)
        busy = len(self._busy)
        missing = max(min(waiting, self._size - busy), min(overdue, self._max - busy))
        if not self._loading:
            for spare in list(self._spare):
                if self._launcher.loaded(_WORKER) - spare.child.loaded:
                    spare.kill("retired")
                    self._forget(spare)
        room = self._max + self._size - len(self._workers) - self._starting
        wanted = max(missing, self._size - len(self._busy) - len(self._idle), 1)
        wanted -= len(self._spare) + self._starting
        for _ in range(min(wanted, room, _STARTS_AT_ONCE - self._starting)):
            self._starting += 1
            self._spawn(self._start_worker())

    def _load(self, code: ToolCode) -> asyncio.Task[ClawboxError | None]:
        task = self._loading.get(code.digest)
        if task is None:
            task = self._loading[code.digest] = self._spawn(self._load_now(code))
        return task

    async def _load_now(self, code: ToolCode) -> ClawboxError | None:
        failure: ClawboxError | None = None
        try:
            spec = _encoder.encode(ArtifactSpec(code.abi, code.artifact))
            await self._launcher.load(_WORKER, code.digest, spec)
        except LoadFailedError as error:
            _log.error("the compiled code of tool %s cannot be loaded: %s", code.name, error)
            failure = ClawboxError(
                Reason.SANDBOX_UNAVAILABLE,
                "the compiled code of tool {tool} cannot be loaded",
                tool=code.name,
            )
            for call in self._waiting.take(code.digest):
                call.fail(failure)
        except ForkServerGoneError as error:
            failure = unavailable(str(error), error.retry_after)
        except ChildrenUnavailableError as error:
            failure = self._pause(str(error), error.retry_after)
        except OSError as error:
            failure = self._pause(str(error), 1.0)
        finally:
            del self._loading[code.digest]
            self._dispatch()
        return failure

    # The life of a worker.

    async def _start_worker(self) -> None:
        try:
            await self._start_and_wait()
        except ForkServerGoneError:
            pass  # the launcher starts another, and the next worker waits for it
        except ChildrenUnavailableError as error:
            self._pause(str(error), error.retry_after)
        except OSError as error:  # out of descriptors; or not ready in time
            self._pause(str(error) or "a worker was not ready in time", 1.0)
        finally:
            self._starting -= 1
            self._dispatch()

    async def _start_and_wait(self) -> None:
        child, channel, descriptors = await self._launcher.fork(_WORKER, data_bytes=self._data_bytes)
        worker = PoolWorker(child, descriptors, self)
        self._workers.add(worker)
        try:
            await self._loop.create_unix_connection(lambda: worker.protocol, sock=channel)
            async with asyncio.timeout(START_SECONDS):
                ready = await worker.ready
        except BaseException:
            worker.kill("lost")
            if not worker.connected:
                channel.close()
                self._workers.discard(worker)
            raise
        if not ready:
            return
        self._spare.append(worker)
        self._started_total += 1
        self._starts.succeeded()
        self._reconsider()
        if self._observer is not None:
            self._observer.worker_started()

    def received(self, worker: PoolWorker, message: FromWorker) -> None:
        """A worker said something. Raises :class:`FrameError` when it should not have."""
        call = worker.call
        match message:
            case Wrote(written, logged) if call is not None:
                call.take(written, logged, self._loop.time())
            case Done() if call is not None:
                result = call.finish(message, self._loop.time())
                self._released(worker, call)
                well = result.outcome in _ENDED_WELL and not message.trapped and not message.bloated
                self._rest(worker, prepares=message.prepares) if well else self._retire(worker)
                call.resolve(result)
                self._starts.served()
                self._dispatch_if_waiting()
            case Refused(violations) if call is not None:
                self._released(worker, call)
                self._rest(worker, prepares=False)
                call.fail(InvalidInputError(tuple(violations[:MAX_VIOLATIONS])))
                self._dispatch_if_waiting()
            case Prepared(bloated) if worker.preparing is not None:
                worker.preparing.cancel()
                worker.preparing = worker.preparing_since = None
                if bloated and worker in self._idle:
                    self._retire(worker)
                elif bloated:
                    worker.calls = CALLS_PER_WORKER  # the call that it got meanwhile is its last
            case Ready() if not worker.ready.done():
                worker.ready.set_result(True)
            case Ready() if worker.ready.cancelled():
                pass  # whoever waited for it went away, and it is being killed
            case _:
                raise FrameError(f"{type(message).__name__} out of turn")

    def broken(self, worker: PoolWorker) -> None:
        """A worker's channel ended: it is dying, and must not get another call before that is known."""
        self._forget(worker)

    def worker_gone(self, worker: PoolWorker) -> None:
        """A worker is dead, and everything that it said was read."""
        self._workers.discard(worker)
        self._forget(worker)
        if worker.preparing is not None:
            worker.preparing.cancel()
        if not worker.ready.done():
            worker.ready.set_result(False)
        call = worker.call
        if call is not None:
            self._released(worker, call)
            call.resolve(worker.lost_result(call, self._loop.time()))
        if worker.why == "lost":
            self._lost_total += 1
            if not worker.calls and (seconds := self._starts.failed()) is not None:
                self._pause("workers end as they start", seconds)
        if self._observer is not None:
            self._observer.worker_ended(worker.why)
        self._reconsider()
        self._dispatch()

    def _released(self, worker: PoolWorker, call: Call) -> None:
        worker.call = None
        self._busy.discard(worker)
        if call.deadline is not None:
            call.deadline.cancel()

    def _rest(self, worker: PoolWorker, *, prepares: bool) -> None:
        if worker.killed or worker.calls >= CALLS_PER_WORKER:
            self._retire(worker)
            return
        now = worker.idle_since = self._loop.time()
        self._idle.append(worker)
        if prepares:
            worker.preparing_since = now
            worker.preparing = self._loop.call_later(PREPARE_SECONDS, worker.kill, "overstayed")
        if len(self._busy) + len(self._idle) > self._size:
            self._loop.call_later(SURPLUS_IDLE_SECONDS, self._retire_surplus, worker, now)

    def _retire(self, worker: PoolWorker) -> None:
        worker.kill("retired")
        self._forget(worker)

    def _retire_surplus(self, worker: PoolWorker, idle_since: float) -> None:
        surplus = len(self._busy) + len(self._idle) > self._size
        if surplus and worker in self._idle and worker.idle_since == idle_since:
            self._retire(worker)

    def _forget(self, worker: PoolWorker) -> None:
        """No call goes to it any more."""
        for workers in (self._spare, self._idle):
            if worker in workers:
                workers.remove(worker)

    def _overstayed(self, worker: PoolWorker, call: Call) -> None:
        call.overstayed = True
        worker.kill("overstayed")

    async def _abandon(self, call: Call) -> None:
        """The caller went away: nothing of its call goes on."""
        if call.started_at is None:
            self._waiting.discard(call)
            return
        for worker in self._busy:
            if worker.call is call:
                worker.kill("cancelled")
                await worker.child.dead()
                return

    # What goes wrong around workers.

    def _pause(self, why: str, seconds: float) -> ClawboxError:
        """Start nothing for a while, and keep nobody waiting for it."""
        error = self._starts.pause(why, seconds)
        self._reconsider()
        for call in self._waiting.take():
            call.fail(error)
        return error

    def _reconsider(self) -> None:
        if self._open:
            self._starts.reconsider()

    def _dispatch_if_waiting(self) -> None:
        if self._waiting:
            self._dispatch()

    def _spawn(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def _data_bytes(max_memory_bytes: int, max_response_bytes: int) -> int:
    """The hard limit of a worker: what the largest run may need, and an instance that was prepared for it."""
    largest = Limits(timeout_ms=1, fuel=1, memory_bytes=max_memory_bytes)
    return data_allowance(largest, MAX_CONTROL_FRAME_BYTES, max_response_bytes) + max_memory_bytes
