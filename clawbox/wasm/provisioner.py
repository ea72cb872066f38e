"""Sees to it that there are enough workers, and that they know the tools that calls wait for.

When workers cannot be started, nothing is tried for a while, and who waits is told so.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from clawbox.children.launcher import (
    ChildrenUnavailableError,
    ForkServerGoneError,
    Launcher,
    LoadFailedError,
)
from clawbox.errors import ClawboxError, Reason
from clawbox.wasm.choosing import is_overdue
from clawbox.wasm.messages import ArtifactSpec
from clawbox.wasm.pool_worker import Employer, PoolWorker
from clawbox.wasm.starts import Starts, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from clawbox.wasm.model import ToolCode
    from clawbox.wasm.roster import Roster
    from clawbox.wasm.waiting import WaitingCalls

_log = logging.getLogger(__name__)

T = TypeVar("T")

WORKER: Final = "worker"
"""What the launcher calls the kind of child that a worker is."""
_START_SECONDS: Final = 15.0
_STARTS_AT_ONCE: Final = 4

_encoder = msgspec.msgpack.Encoder()


class Provisioner:
    """Starts workers and loads tools for them while entered. Leaving gives up what is under way.

    ``employer`` is told what workers say. ``dispatch`` is called when a worker or a tool became ready, or did
    not. ``data_bytes`` is the most memory that a worker can ever allow itself.
    """

    def __init__(
        self,
        launcher: Launcher,
        workers: Roster,
        waiting: WaitingCalls,
        starts: Starts,
        *,
        employer: Employer,
        dispatch: Callable[[], None],
        data_bytes: int,
    ) -> None:
        self._launcher = launcher
        self._workers = workers
        self._waiting = waiting
        self._starts = starts
        self._employer = employer
        self._dispatch = dispatch
        self._data_bytes = data_bytes
        self.starting = 0
        """Workers that were asked for and are not ready yet."""
        self._loading: dict[str, asyncio.Task[ClawboxError | None]] = {}
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[Any]] = set()
        self._open = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._tasks.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        for task in list(self._running):
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def provide(self) -> None:
        """Load what waiting calls need, replace spares that lack something, and start workers."""
        now = self._loop.time()
        if self._starts.paused_for(now) > 0:
            return
        waiting = overdue = 0
        for call in self._waiting:
            if call.digest not in self._launcher.loaded(WORKER):
                self.load(call.run.code)
            else:
                waiting += 1
                overdue += is_overdue(call, now)
        workers = self._workers
        busy = len(workers.busy)
        missing = max(min(waiting, workers.size - busy), min(overdue, workers.most - busy))
        if not self._loading:
            for spare in list(workers.spare):
                if self._launcher.loaded(WORKER) - spare.child.loaded:
                    workers.retire(spare)
        room = workers.most + workers.size - len(workers) - self.starting
        wanted = max(missing, workers.size - busy - len(workers.idle), 1)
        wanted -= len(workers.spare) + self.starting
        for _ in range(min(wanted, room, _STARTS_AT_ONCE - self.starting)):
            self.starting += 1
            self._spawn(self._start_worker())

    def load(self, code: ToolCode) -> asyncio.Task[ClawboxError | None]:
        """Have workers that are started from now on know ``code``; the task's result is why they cannot."""
        task = self._loading.get(code.digest)
        if task is None:
            task = self._loading[code.digest] = self._spawn(self._load_now(code))
        return task

    def ended(self, worker: PoolWorker) -> None:
        """A worker is dead. When one after the other dies before its first call, it is time to pause."""
        if worker.why == "lost" and not worker.calls and (seconds := self._starts.failed()) is not None:
            self._pause("workers end as they start", seconds)
        self._reconsider()

    async def _load_now(self, code: ToolCode) -> ClawboxError | None:
        failure: ClawboxError | None = None
        try:
            spec = _encoder.encode(ArtifactSpec(code.abi, code.artifact))
            await self._launcher.load(WORKER, code.digest, spec)
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
            self.starting -= 1
            self._dispatch()

    async def _start_and_wait(self) -> None:
        child, channel, descriptors = await self._launcher.fork(WORKER, data_bytes=self._data_bytes)
        worker = PoolWorker(child, descriptors, self._employer)
        self._workers.add(worker)
        try:
            await self._loop.create_unix_connection(lambda: worker.protocol, sock=channel)
            async with asyncio.timeout(_START_SECONDS):
                ready = await worker.ready
        except BaseException:
            worker.kill("lost")
            if not worker.connected:
                channel.close()
                self._workers.discard(worker)
            raise
        if not ready:
            return
        self._workers.ready(worker)
        self._starts.succeeded()
        self._reconsider()

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

    def _spawn(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task
