"""The workers that there are: which are spare, at work or idle, and when one has served its time.

A worker serves one principal, and at most :data:`CALLS_PER_WORKER` calls. Nothing in it is worth saving: what
becomes doubtful is killed, for another costs a fork.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from clawbox.wasm.choosing import choose_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.wasm.call import Call
    from clawbox.wasm.pool_worker import PoolWorker

CALLS_PER_WORKER: Final = 1000
_SURPLUS_IDLE_SECONDS: Final = 10.0
_PREPARE_SECONDS: Final = 2.0


class PoolObserver(Protocol):
    """Is told what becomes of workers; for metrics."""

    def worker_started(self) -> None:
        """A worker is ready."""

    def worker_ended(self, why: str) -> None:
        """A worker is dead. ``why``: ``retired``, ``overstayed``, ``cancelled``, ``lost``."""


class Roster:
    """Every worker of a pool, from its fork to its death.

    ``size`` workers are kept warm; at most ``most`` run calls at once.
    """

    def __init__(self, size: int, most: int, observer: PoolObserver | None) -> None:
        self.size = size
        self.most = most
        self.spare: list[PoolWorker] = []
        """Ready, and nobody's yet."""
        self.idle: list[PoolWorker] = []
        """Between two calls of one principal; longest idle first."""
        self.busy: set[PoolWorker] = set()
        self.started_total = 0
        self.lost_total = 0
        self._observer = observer
        self._all: set[PoolWorker] = set()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[PoolWorker]:
        return iter(self._all)

    def usable(self) -> bool:
        """Whether there is a worker that takes calls, now or once it has done what it does."""
        return bool(self.spare or self.idle or self.busy)

    # From the fork to the death.

    def add(self, worker: PoolWorker) -> None:
        """A worker was forked. It gets no call until it is ready."""
        self._all.add(worker)

    def discard(self, worker: PoolWorker) -> None:
        """A worker could not be reached from the first, so that nothing will tell of its death."""
        self._all.discard(worker)

    def ready(self, worker: PoolWorker) -> None:
        """A worker can be given its first call."""
        self.spare.append(worker)
        self.started_total += 1
        if self._observer is not None:
            self._observer.worker_started()

    def retire(self, worker: PoolWorker) -> None:
        """End a worker that has served its time."""
        worker.kill("retired")
        self.forget(worker)

    def forget(self, worker: PoolWorker) -> None:
        """No call goes to it any more."""
        for workers in (self.spare, self.idle):
            if worker in workers:
                workers.remove(worker)

    def gone(self, worker: PoolWorker) -> None:
        """A worker is dead."""
        self._all.discard(worker)
        self.forget(worker)
        if worker.preparing is not None:
            worker.preparing.cancel()
        if worker.why == "lost":
            self.lost_total += 1
        if self._observer is not None:
            self._observer.worker_ended(worker.why)

    # From call to call.

    def choose(self, call: Call, now: float) -> PoolWorker | None:
        """A worker that may run ``call`` now, if there is one; ``now`` is the loop's time."""
        return choose_worker(
            call,
            now,
            idle=self.idle,
            spare=self.spare,
            busy=len(self.busy),
            size=self.size,
            most=self.most,
        )

    def engage(self, worker: PoolWorker, call: Call) -> None:
        """Put a worker that was chosen to work. A spare one is its principal's from now on."""
        if worker.owner is None:
            self.spare.remove(worker)
            worker.owner = call.run.owner
            if self.idle and len(self.busy) + len(self.idle) >= self.size:
                self.retire(self.idle[0])
        else:
            self.idle.remove(worker)
        self.busy.add(worker)
        worker.call = call
        worker.calls += 1
        worker.last_digest = call.digest

    def release(self, worker: PoolWorker) -> None:
        """The call that a worker had is over; it rests now, or is retired."""
        worker.call = None
        self.busy.discard(worker)

    def rest(self, worker: PoolWorker, *, prepares: bool) -> None:
        """Keep a worker for its principal's next call, unless it has served its time.

        ``prepares``: it makes its next instance now, and is killed when that takes too long.
        """
        if not worker.child.alive:
            return  # what it still said is being read
        if worker.killed or worker.calls >= CALLS_PER_WORKER:
            self.retire(worker)
            return
        loop = asyncio.get_running_loop()
        now = worker.idle_since = loop.time()
        self.idle.append(worker)
        if prepares:
            worker.preparing_since = now
            worker.preparing = loop.call_later(_PREPARE_SECONDS, worker.kill, "overstayed")
        if len(self.busy) + len(self.idle) > self.size:
            loop.call_later(_SURPLUS_IDLE_SECONDS, self._retire_surplus, worker, now)

    def prepared(self, worker: PoolWorker, *, bloated: bool) -> None:
        """A worker has made its next instance, or cannot; ``bloated``: it keeps too much memory to go on."""
        if worker.preparing is not None:
            worker.preparing.cancel()
        worker.preparing = worker.preparing_since = None
        if bloated and worker in self.idle:
            self.retire(worker)
        elif bloated:
            worker.calls = CALLS_PER_WORKER  # the call that it got meanwhile is its last

    def _retire_surplus(self, worker: PoolWorker, idle_since: float) -> None:
        surplus = len(self.busy) + len(self.idle) > self.size
        if surplus and worker in self.idle and worker.idle_since == idle_since:
            self.retire(worker)
