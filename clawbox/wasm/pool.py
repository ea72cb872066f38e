"""Control's side of the workers: which process runs which call, and how each call ends.

A worker serves one principal, one call at a time. Whatever goes wrong in a call is answered by killing its
worker: a worker is cheap (a fork), and nothing in it is worth saving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from clawbox.children.channel import FrameError
from clawbox.children.enforcement import Enforcement, probe
from clawbox.children.launcher import Launcher
from clawbox.errors import ClawboxError, Reason
from clawbox.wasm.call import Call
from clawbox.wasm.choosing import OVERDUE_SECONDS
from clawbox.wasm.messages import (
    MAX_CONTROL_FRAME_BYTES,
    MAX_VIOLATIONS,
    Done,
    FromWorker,
    Prepared,
    Ready,
    Refused,
    Wrote,
    data_allowance,
)
from clawbox.wasm.model import InvalidInputError, Limits, OnEvent, Outcome, Run, RunResult, ToolCode
from clawbox.wasm.provisioner import WORKER, Provisioner
from clawbox.wasm.roster import PoolObserver, Roster
from clawbox.wasm.starts import Starts, unavailable
from clawbox.wasm.waiting import WaitingCalls

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from clawbox.children.uids import UidRange
    from clawbox.egress.door import CallDoor
    from clawbox.wasm.pool_worker import PoolWorker

KIND: Final = "clawbox.wasm.worker:KIND"
MAX_MEMORY_BYTES: Final = 1 << 30
MAX_RESPONSE_BYTES: Final = 1 << 20
GRACE_SECONDS: Final = 0.1
"""How much longer than its limit a run may take before its worker is killed; the worker ends most itself."""

_ENDED_WELL: Final = frozenset({Outcome.OK, Outcome.TOOL_ERROR, Outcome.INVALID_OUTPUT})


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
        size = min(workers or os.cpu_count() or 1, max_concurrent)
        self._workers = Roster(size, max_concurrent, observer)
        self._waiting = WaitingCalls()
        self._starts = Starts(self._workers.usable, self._dispatch)
        self._launcher = Launcher({WORKER: KIND}, uids, self._dispatch)
        self._provisioner = Provisioner(
            self._launcher,
            self._workers,
            self._waiting,
            self._starts,
            employer=self,
            dispatch=self._dispatch,
            data_bytes=_data_bytes(max_memory_bytes, max_response_bytes),
        )
        self._stack = contextlib.AsyncExitStack()
        self._open = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._stack.enter_async_context(self._launcher)
        await self._stack.enter_async_context(self._provisioner)
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
        await self._stack.__aexit__(None, None, None)
        for worker in list(self._workers):
            # Dead, but the end of its channel was not read yet.
            worker.protocol.close()
            self.worker_gone(worker)
        await asyncio.sleep(0)

    def stats(self) -> PoolStats:
        """What the pool holds now."""
        return PoolStats(
            busy=len(self._workers.busy),
            idle=len(self._workers.idle),
            spare=len(self._workers.spare),
            starting=self._provisioner.starting,
            waiting=len(self._waiting),
            started_total=self._workers.started_total,
            lost_total=self._workers.lost_total,
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
        error = await asyncio.shield(self._provisioner.load(code))
        if error is not None:
            raise error

    async def run(self, run: Run, on_event: OnEvent | None = None, door: CallDoor | None = None) -> RunResult:
        """Run a tool once, in a fresh instance, and say what came of it.

        With ``on_event`` what the run writes and logs is told as it happens; the result holds it in any case.
        With ``door`` the worker that gets the call gets a duplicate of its connection, which is closed here.
        When a worker dies before it begins the call, another one gets it.
        Raises :class:`InvalidInputError` when the parameters break the input schema, and SANDBOX_UNAVAILABLE
        or SHUTTING_DOWN when no worker can be had. Cancelling kills the worker, and returns when it is dead.
        """
        if not self._open:
            raise ClawboxError(Reason.SHUTTING_DOWN, "the server is stopping")
        call = Call(run, on_event, self._loop.time(), door)
        worker = self._workers.choose(call, call.queued_at) if not self._waiting else None
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
        finally:
            if door is not None:
                door.connection.close()

    # Which worker gets which call.

    def _assign(self, worker: PoolWorker, call: Call) -> None:
        self._workers.engage(worker, call)
        now = call.started_at = self._loop.time()
        ends = now + call.run.limits.timeout_ms / 1000 + GRACE_SECONDS
        call.deadline = self._loop.call_at(ends, self._overstayed, worker, call)
        worker.give(call)
        if not self._workers.spare:
            self._provisioner.provide()

    def _dispatch(self) -> None:
        """Give waiting calls to workers, in turn by owner, then see to it that there are enough workers."""
        if not self._open:
            return
        progress = True
        while progress:
            progress = False
            for call in self._waiting.firsts():
                worker = self._workers.choose(call, self._loop.time())
                if worker is not None:
                    self._waiting.served(call)
                    self._assign(worker, call)
                    progress = True
        self._provisioner.provide()

    # What workers tell.

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
                if well:
                    self._workers.rest(worker, prepares=message.prepares)
                else:
                    self._workers.retire(worker)
                call.resolve(result)
                self._starts.served()
                self._dispatch_if_waiting()
            case Refused(violations) if call is not None:
                self._released(worker, call)
                self._workers.rest(worker, prepares=False)
                call.fail(InvalidInputError(tuple(violations[:MAX_VIOLATIONS])))
                self._dispatch_if_waiting()
            case Prepared(bloated) if worker.preparing is not None:
                self._workers.prepared(worker, bloated=bloated)
            case Ready() if not worker.ready.done():
                worker.ready.set_result(True)
            case Ready() if worker.ready.cancelled():
                pass  # whoever waited for it went away, and it is being killed
            case _ if worker.killed:
                pass  # it said so before it was
            case _:
                raise FrameError(f"{type(message).__name__} out of turn")

    def broken(self, worker: PoolWorker) -> None:
        """A worker is dying or dead, and must not get another call before all that it said was read."""
        self._workers.forget(worker)

    def worker_gone(self, worker: PoolWorker) -> None:
        """A worker is dead, and everything that it said was read."""
        self._workers.gone(worker)
        if not worker.ready.done():
            worker.ready.set_result(False)
        call = worker.call
        if call is not None:
            self._released(worker, call)
            if self._open and worker.left_its_call and not call.overstayed and call.may_go_to_another():
                self._waiting.put_back(call)
            else:
                call.resolve(worker.lost_result(call, self._loop.time()))
        self._provisioner.ended(worker)
        self._dispatch()

    def _released(self, worker: PoolWorker, call: Call) -> None:
        self._workers.release(worker)
        if call.deadline is not None:
            call.deadline.cancel()

    def _overstayed(self, worker: PoolWorker, call: Call) -> None:
        call.overstayed = True
        worker.kill("overstayed")

    async def _abandon(self, call: Call) -> None:
        """The caller went away: nothing of its call goes on."""
        if call.started_at is None:
            self._waiting.discard(call)
            return
        for worker in self._workers.busy:
            if worker.call is call:
                worker.kill("cancelled")
                await worker.child.dead()
                return

    def _dispatch_if_waiting(self) -> None:
        if self._waiting:
            self._dispatch()


def _data_bytes(max_memory_bytes: int, max_response_bytes: int) -> int:
    """The hard limit of a worker: what the largest run may need, and an instance that was prepared for it."""
    largest = Limits(timeout_ms=1, fuel=1, memory_bytes=max_memory_bytes)
    return data_allowance(largest, MAX_CONTROL_FRAME_BYTES, max_response_bytes) + max_memory_bytes
