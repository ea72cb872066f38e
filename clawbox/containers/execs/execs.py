"""All processes that callers started inside containers."""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from clawbox.containers.backend import Stream
from clawbox.containers.execs.apart import ApartProcess, end_left
from clawbox.containers.execs.calls import check, check_exec_id
from clawbox.containers.execs.events import RunResult
from clawbox.containers.execs.inside import KILL_SECONDS, InsideProcess
from clawbox.containers.execs.life import Life, Why
from clawbox.containers.execs.output import ProcessOutput
from clawbox.containers.execs.process import ExecProcess
from clawbox.containers.execs.run import Beginnings, feed
from clawbox.containers.host.cgroups import CgroupError
from clawbox.containers.runtimes import has_own_kernel
from clawbox.containers.states import Operation, require
from clawbox.errors import ClawboxError, Reason
from clawbox.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from types import TracebackType

    from clawbox.auth import Principal
    from clawbox.containers.backend import ContainerBackend
    from clawbox.containers.execs.calls import ExecCall, RunCall
    from clawbox.containers.execs.process import Exec
    from clawbox.containers.host.cgroups import ChildCgroup
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.record import Container

MAX_PER_CONTAINER: Final = 32
"""Processes at the same time, those of RunCommand among them."""
MAX_REMEMBERED: Final = 1024
"""Processes with an id, running and ended."""
MAX_REMEMBERED_BYTES: Final = 64 << 20
"""Of output of processes that have ended and to which nobody is attached. A caller soon has 2 MiB of each."""
_RETRY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExecTimes:
    """How long processes wait for callers, in seconds."""

    detached: float = 30.0
    """Nobody being attached, until one is killed that is not to go on."""
    remembered: float = 60.0
    """After its end."""


class Execs:
    """A ``Companion`` of containers, and an async context manager that ends every process when it is left.

    ``taken`` are the uids that sandboxes get; ``shapes``: whether output is searched for what looks like a
    credential, besides the secrets that are known.
    """

    def __init__(
        self, backend: ContainerBackend, *, taken: range, shapes: bool, times: ExecTimes | None = None
    ) -> None:
        self._backend = backend
        self._taken = taken
        self._shapes = shapes
        self._times = times or ExecTimes()
        self._known: dict[tuple[str, str], ExecProcess] = {}
        """By principal and id, the oldest first."""
        self._lives: dict[str, set[Life]] = {}
        self._begun: dict[str, int] = {}
        """Of each container: processes that run or are being started."""
        self._left: dict[str, set[ChildCgroup]] = {}
        """Of each container: where something goes on that an ended process started."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        lives = [life for of_one in self._lives.values() for life in of_one]
        for life in lives:
            life.kill(Why.SHUTDOWN)
        await _all_over(lives, 2 * KILL_SECONDS)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        for process in tuple(self._known.values()):
            self._forget(process)

    # For callers

    async def start(
        self, container: Container, quarters: Quarters, call: ExecCall, principal: Principal
    ) -> Exec:
        """Start a process and attach to it; cancelled before it returns, nothing was started.

        The same call again, with the id of a process that exists, attaches to that one from its first byte.
        Raises WRONG_STATE, INVALID_FIELD, POLICY_DENIED, EXEC_EXISTS, EXEC_LIMIT, SANDBOX_UNAVAILABLE and
        DOCKER_UNAVAILABLE.
        """
        order = check(call, working_dir=container.working_dir, own=quarters.user, taken=self._taken)
        while (known := self._known.get((principal.name, call.exec_id))) is not None:
            if known.call != call or known.container_id != container.container_id:
                raise ClawboxError(
                    Reason.EXEC_EXISTS, "the exec {exec_id} exists and is another one", exec_id=call.exec_id
                )
            if not known.ready.done():
                # If that start fails, this one is tried.
                await asyncio.wait({known.ready})
                continue
            return known.attach(again=True)
        require(container.status, Operation.EXEC, container.container_id)
        self._make_room()
        process = ExecProcess(
            call,
            call.exec_id or str(uuid.uuid4()),
            container.container_id,
            principal.name,
            self._times.detached,
        )
        key = (process.owner, process.exec_id)
        self._known[key] = process
        try:
            with self._slot(container.container_id) as slot:
                inside = await _kind(container).start(self._backend, quarters, order)
                slot.keep()
        except BaseException:
            del self._known[key]
            process.ready.set_result(None)
            raise
        output = ProcessOutput(
            inside.stream, quarters.door, shapes=self._shapes, tty=order.tty, take=process.take
        )
        process.life = Life(inside, output)
        held = process.attach(again=False)
        process.ready.set_result(None)
        task = asyncio.create_task(self._live(process), name=f"exec {process.exec_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return held

    def attach(self, exec_id: str, principal: Principal, stdout_offset: int, stderr_offset: int) -> Exec:
        """Go on with a process that runs, or ended less than a minute ago. Whoever was attached is cut.

        Raises EXEC_NOT_FOUND, also for another principal's, and INVALID_FIELD.
        """
        check_exec_id(exec_id)
        process = self._known.get((principal.name, exec_id))
        if process is None and principal.is_admin:
            of_others = [one for one in self._known.values() if one.exec_id == exec_id]
            process = of_others[0] if len(of_others) == 1 else None
        if process is None or not process.ready.done():
            raise ClawboxError(
                Reason.EXEC_NOT_FOUND,
                "there is no exec {exec_id}",
                resource=("exec", exec_id),
                exec_id=exec_id,
            )
        return process.attach(again=True, stdout_offset=stdout_offset, stderr_offset=stderr_offset)

    async def run(self, container: Container, quarters: Quarters, call: RunCall) -> RunResult:
        """Run a process to its end; cancelled, it is killed with everything that it started.

        Raises as :meth:`start`, and REDACTION_UNAVAILABLE when its output could not be cleaned.
        """
        order = check(call, working_dir=container.working_dir, own=quarters.user, taken=self._taken)
        require(container.status, Operation.EXEC, container.container_id)
        most = quarters.max_output_bytes
        if call.max_output_bytes is not None:
            most = min(most, call.max_output_bytes)
        kept = Beginnings(most)
        with self._slot(container.container_id):
            inside = await _kind(container).start(self._backend, quarters, order)
            output = ProcessOutput(
                inside.stream, quarters.door, shapes=self._shapes, tty=False, take=kept.take
            )
            life = Life(inside, output)
            feeding = asyncio.create_task(feed(inside.stream, call.stdin))
            try:
                with self._among(container.container_id, life):
                    ended = await life.run(order.seconds)
            finally:
                feeding.cancel()
                await uninterrupted(asyncio.wait({feeding}))
                await self._sweep(container.container_id)
        if output.failure is not None:
            raise output.failure
        return RunResult(
            ended=ended,
            stdout=kept.of(Stream.STDOUT),
            stderr=kept.of(Stream.STDERR),
            truncations=kept.cuts(),
        )

    # A companion of containers

    async def began(self, container: Container, quarters: Quarters, *, adopted: bool) -> None:
        """Kill what an earlier server started in an adopted container: nobody has its streams any more."""
        if not adopted or quarters.cgroup is None:
            return
        if has_own_kernel(container.runtime):
            await end_left(self._backend, quarters)
        for child in await asyncio.to_thread(quarters.cgroup.children):
            try:
                await child.kill()
                await asyncio.to_thread(child.remove)
            except CgroupError as error:
                _log.error("in %s: %s", container.container_id, error)
                self._left.setdefault(container.container_id, set()).add(child)
        for name in await asyncio.to_thread(quarters.folder.exec_fifos):
            await asyncio.to_thread(quarters.folder.remove_fifo, name)

    async def ended(self, container: Container, quarters: Quarters) -> None:  # noqa: ARG002
        """Wait until each of its processes is known to have ended: the kernel has killed them."""
        await _all_over(self._lives.get(container.container_id, ()), 2 * KILL_SECONDS)
        await self._sweep(container.container_id)

    async def forgotten(self, container_id: str) -> None:
        """Forget its processes."""
        for process in [one for one in self._known.values() if one.container_id == container_id]:
            if process.ready.done():
                self._forget(process)
        self._left.pop(container_id, None)

    async def abandoned(self, known: Collection[str]) -> None:
        """Nothing of processes outlives this one's memory but what they run in."""

    # What runs

    async def _live(self, process: ExecProcess) -> None:
        container_id = process.container_id
        try:
            with self._among(container_id, process.life):
                await process.live()
        except Exception:  # noqa: BLE001 - one process's; the others go on
            _log.exception("the exec %s broke off", process.exec_id)
        finally:
            self._free(container_id)
        if not self._closing:
            process.forget_after(self._times.remembered, self._forget)
            self._bound_output()
        await self._sweep(container_id)

    @contextmanager
    def _among(self, container_id: str, life: Life) -> Iterator[None]:
        """Count a process among its container's, while it lives."""
        lives = self._lives.setdefault(container_id, set())
        lives.add(life)
        if self._closing:
            life.kill(Why.SHUTDOWN)
        try:
            yield
        finally:
            lives.discard(life)
            if not lives and self._lives.get(container_id) is lives:
                del self._lives[container_id]
            if life.left:
                self._left.setdefault(container_id, set()).add(life.inside.cgroup)

    async def _sweep(self, container_id: str) -> None:
        """Remove the cgroups in which nothing goes on any more."""
        for child in tuple(self._left.get(container_id, ())):
            try:
                await asyncio.to_thread(child.remove)
            except CgroupError:
                continue
            if (left := self._left.get(container_id)) is not None:
                left.discard(child)
                if not left:
                    del self._left[container_id]

    # How many

    @contextmanager
    def _slot(self, container_id: str) -> Iterator[_Slot]:
        """One of the processes that a container may have. Raises EXEC_LIMIT and SHUTTING_DOWN."""
        if self._closing:
            raise ClawboxError(Reason.SHUTTING_DOWN, "the server is stopping")
        if self._begun.get(container_id, 0) >= MAX_PER_CONTAINER:
            raise _limit(f"the container runs {MAX_PER_CONTAINER} processes of callers already")
        self._begun[container_id] = self._begun.get(container_id, 0) + 1
        slot = _Slot()
        try:
            yield slot
        finally:
            if not slot.kept:
                self._free(container_id)

    def _free(self, container_id: str) -> None:
        self._begun[container_id] -= 1
        if not self._begun[container_id]:
            del self._begun[container_id]

    def _make_room(self) -> None:
        """Forget the oldest process that has ended when too many are remembered. Raises EXEC_LIMIT."""
        if len(self._known) < MAX_REMEMBERED:
            return
        for process in self._known.values():
            if process.is_over and not process.is_attached:
                self._forget(process)
                return
        raise _limit(f"the server has {MAX_REMEMBERED} processes of callers already")

    def _bound_output(self) -> None:
        """Drop output of those that ended first. How they ended is still told, and no id is free again."""
        ended = [one for one in self._known.values() if one.is_over and not one.is_attached]
        too_much = sum(one.kept for one in ended) - MAX_REMEMBERED_BYTES
        for process in ended:
            if too_much <= 0:
                return
            too_much -= process.kept
            process.drop_output()

    def _forget(self, process: ExecProcess) -> None:
        process.forget()
        key = (process.owner, process.exec_id)
        if self._known.get(key) is process:
            del self._known[key]


class _Slot:
    """Whether what was begun goes on after the call."""

    def __init__(self) -> None:
        self.kept = False

    def keep(self) -> None:
        self.kept = True


def _kind(container: Container) -> type[InsideProcess]:
    """How its processes are started and ended."""
    return ApartProcess if has_own_kernel(container.runtime) else InsideProcess


def _limit(why: str) -> ClawboxError:
    return ClawboxError(Reason.EXEC_LIMIT, "{why}", why=why, retry_after=_RETRY_SECONDS)


async def _all_over(lives: Iterable[Life], seconds: float) -> None:
    waits = [asyncio.create_task(life.over.wait()) for life in lives]
    if not waits:
        return
    try:
        await asyncio.wait(waits, timeout=seconds)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
