"""One process inside a container: started behind the gate, held by its pidfd, ended by its cgroup.

Which process it is, the engine says, never anything inside (docs/security.md, 86). Before it runs one
instruction of what was asked for it is in a cgroup of its own, in which everything that it starts is too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import ConflictError, EngineError, ExecFacts, NotThereError
from clawbox.containers.gate import FOLDER
from clawbox.containers.host.cgroups import CgroupError
from clawbox.containers.host.fifo import GateStuckError
from clawbox.containers.host.gate_check import UnsafeContainerError, check_exec_gate
from clawbox.containers.host.processes import (
    PROC,
    ProcessGoneError,
    check_same,
    has_ended,
    open_process,
    send_signal,
)
from clawbox.containers.spec import ExecPlan, build_exec
from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.uninterrupted import meanwhile, uninterrupted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clawbox.containers.backend import ContainerBackend, ExecStream
    from clawbox.containers.execs.calls import Order
    from clawbox.containers.host.cgroups import Cgroup, ChildCgroup
    from clawbox.containers.host.fifo import Fifo
    from clawbox.containers.quarters import Quarters

START_SECONDS: Final = 30.0
"""How long the engine may take to start a process, and a gate to be let go."""
UNDO_SECONDS: Final = 10.0
CODE_SECONDS: Final = 5.0
"""How long the engine may take to say how a process ended that has ended."""
KILL_SECONDS: Final = 5.0
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05
_EARLY_PAUSE: Final = 0.003
_EARLY_SECONDS: Final = 0.5
"""A process is mostly there after 50 ms: until then it is asked for at short intervals."""
_ASK_SECONDS: Final = 0.1
"""How often the engine is asked about a process of which no gate has come."""
_MAX_WORDS: Final = 4096
_EXITING: Final = 0x4
"""PF_EXITING of Linux, in field 9 of ``/proc/PID/stat``."""
_REFUSALS: Final = (
    EngineError,
    CgroupError,
    UnsafeContainerError,
    GateStuckError,
    ProcessGoneError,
    OSError,
)

_log = logging.getLogger(__name__)


class InsideProcess:
    """Made by :meth:`start`; to be closed."""

    def __init__(self, backend: ContainerBackend, quarters: Quarters, name: str, cgroup: Cgroup) -> None:
        self.stream: ExecStream
        self.exec_id = ""
        """The engine's."""
        self.pid = 0
        self.cgroup: ChildCgroup = cgroup.child(name)
        self.started = 0.0
        """When it was let go, by :func:`time.monotonic`."""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it has ended."""
        self._backend = backend
        self._quarters = quarters
        self._container = cgroup
        self._name = name
        self._pidfd = -1
        self._fifo: Fifo | None = None

    @classmethod
    async def start(cls, backend: ContainerBackend, quarters: Quarters, order: Order) -> InsideProcess:
        """Start a process in a container; when this returns it runs.

        Failed or cancelled at any step it leaves neither process, FIFO nor cgroup. Raises WRONG_STATE when
        the container does not run (any more), INVALID_FIELD for a working folder that it does not have,
        SANDBOX_UNAVAILABLE when it could not be started safely, and DOCKER_UNAVAILABLE.
        """
        cgroup = quarters.cgroup
        if cgroup is None or not quarters.pid or quarters.ended.is_set():
            raise not_running(quarters.container_id)
        process = cls(backend, quarters, f"exec-{uuid.uuid4().hex}", cgroup)
        try:
            await process._begin(order)
        except BaseException as error:
            await uninterrupted(process._undo())
            if isinstance(error, _REFUSALS):
                raise process._refusal(error) from error
            raise
        return process

    # Its start

    async def _begin(self, order: Order) -> None:
        quarters = self._quarters
        plan = ExecPlan(
            command=order.command,
            fifo=f"{FOLDER}/{self._name}",
            user=order.user,
            environment=order.environment,
            working_dir=order.working_dir,
            tty=order.tty,
        )
        body = build_exec(plan)
        async with meanwhile(self._backend.create_exec(quarters.engine_id, body)) as creating:
            await uninterrupted(asyncio.to_thread(self._prepare))
            self.exec_id = await creating
        await uninterrupted(self._open_stream(order))
        facts = await self._known()
        if not facts.pid:
            raise await self._not_started()
        self._hold(facts.pid)
        await self._arrive()
        await uninterrupted(asyncio.to_thread(self._secure, order))
        self.started = time.monotonic()
        assert self._fifo is not None
        await self._fifo.release(START_SECONDS)

    def _prepare(self) -> None:
        """What is there before the engine is asked to start it. Blocking."""
        self._fifo = self._quarters.folder.make_fifo(self._name)
        self.cgroup.make()

    async def _open_stream(self, order: Order) -> None:
        self.stream = await self._backend.start_exec(
            self.exec_id, tty=order.tty, rows=order.rows, columns=order.columns
        )

    async def _known(self) -> ExecFacts:
        """What the engine says once it has started the process, or failed to."""
        until, pause = time.monotonic() + START_SECONDS, _FIRST_PAUSE
        while time.monotonic() < until:
            # A gate at its FIFO costs less to see than an answer, of which most would be "not yet".
            async for _ in _moments(_ASK_SECONDS):
                if self._fifo is not None and self._fifo.waiting:
                    break
            facts = await self._backend.inspect_exec(self.exec_id)
            if facts.pid or facts.exit_code is not None:
                return facts
            if self._quarters.ended.is_set():
                raise not_running(self._quarters.container_id)
            # The engine knows it some milliseconds after its gate has come.
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise _unavailable("the engine does not start it in time")

    async def _not_started(self) -> ClawboxError:
        """The error for a process that the engine could not start; its words come as output."""
        words = b""
        with suppress(EngineError, ClawboxError, TimeoutError):
            async with asyncio.timeout(1.0):
                while len(words) < _MAX_WORDS and (piece := await self.stream.read()) is not None:
                    words += piece[1]
        text = words[:_MAX_WORDS].decode(errors="replace").strip()
        _log.warning("the engine starts no process in %s: %r", self._quarters.container_id, text)
        if self.container_ends():
            return not_running(self._quarters.container_id)
        if "chdir to cwd" in text or "initial working directory" in text:
            return invalid_field("working_dir", "is no folder that its user may enter", "path")
        return _unavailable("the engine could not start it")

    def _hold(self, pid: int) -> None:
        """Hold the process that the engine named, and learn of its end."""
        pidfd = open_process(pid)
        if not self._container.holds(pid):
            os.close(pidfd)
            raise UnsafeContainerError([f"process {pid} is not in the container"])
        self.pid, self._pidfd = pid, pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._has_gone)

    async def _arrive(self) -> None:
        """Wait until it is the gate, which has come to its FIFO."""
        if self._fifo is None:
            raise ProcessGoneError(self.pid)
        async for _ in _moments(START_SECONDS):
            if self.gone.done():
                raise ProcessGoneError(self.pid)
            if self._fifo.waiting:
                return
        raise GateStuckError("no gate came to its FIFO")

    def _secure(self, order: Order) -> None:
        """See that it is our gate and nothing else, and move it into its own cgroup. Blocking."""
        if not self._container.holds(self.pid):
            raise UnsafeContainerError([f"process {self.pid} is not in the container"])
        check_exec_gate(
            self.pid,
            pidfd=self._pidfd,
            user=order.user,
            gate=self._quarters.folder.gate,
            container_pid=self._quarters.pid,
        )
        self.cgroup.add(self.pid)
        check_same(self.pid, self._pidfd)
        # The gate has it open: nothing else is to come there.
        self._quarters.folder.remove_fifo(self._name)

    async def _undo(self) -> None:
        """Leave nothing of what was begun."""
        folder = self._quarters.folder
        # First the name, so that no gate comes any more; then whoever waits is refused.
        with suppress(OSError):
            await asyncio.to_thread(folder.remove_fifo, self._name)
        if self._fifo is not None:
            self._fifo.close()
        if hasattr(self, "stream"):
            with suppress(EngineError, ClawboxError):
                await self._end_begun()
        await self.close(kill=True)

    async def _end_begun(self) -> None:
        """The engine may still be starting it: kill it as soon as it is there."""
        async for _ in _moments(UNDO_SECONDS):
            facts = await self._backend.inspect_exec(self.exec_id)
            if facts.exit_code is not None or self.gone.done() or self._quarters.ended.is_set():
                return
            if facts.pid and not self.pid:
                with suppress(ProcessGoneError, UnsafeContainerError):
                    self._hold(facts.pid)
            if self.pid:
                send_signal(self._pidfd, 9)
        _log.error("a process that is to be undone in %s does not end", self._quarters.container_id)

    def _refusal(self, error: Exception) -> ClawboxError:
        if self.container_ends() or isinstance(error, (ConflictError, NotThereError)):
            return not_running(self._quarters.container_id)
        _log.warning("no process in %s: %s", self._quarters.container_id, error)
        return _unavailable("it could not be started safely; the log says why")

    # Its life

    async def kill(self) -> bool:
        """Kill it and everything that it started; False: something lives still, as in a frozen container."""
        with suppress(CgroupError, OSError):
            await self.cgroup.kill(KILL_SECONDS)
            return True
        return False

    def signal(self, number: int) -> None:
        """Send a signal to the process group of the process, as far as it is in its cgroup. Blocking."""
        if self.gone.done():
            return
        group = _group(self.pid)
        if group is None or has_ended(self._pidfd):
            return
        for pid in self.cgroup.pids():
            with suppress(ProcessGoneError):
                pidfd = open_process(pid)
                try:
                    # Looked at after it is held, so that this is about the process that is sent to.
                    if self.cgroup.holds(pid) and _group(pid) == group:
                        check_same(pid, pidfd)
                        send_signal(pidfd, number)
                finally:
                    os.close(pidfd)

    def left_nothing(self) -> bool:
        """Whether it has ended, and nothing that it started goes on. Blocking."""
        return self.gone.done() and not self.cgroup.pids()

    async def facts(self) -> ExecFacts | None:
        """What the engine says of it; None: it does not answer, or knows nothing of it."""
        try:
            return await self._backend.inspect_exec(self.exec_id)
        except (EngineError, ClawboxError):
            return None

    async def exit_code(self) -> int | None:
        """How it ended, as the engine says, once it is :attr:`gone`; None: the engine does not say."""
        async for _ in _moments(CODE_SECONDS):
            facts = await self.facts()
            if facts is None:
                return None
            if not facts.running:
                return facts.exit_code
        return None

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal another size; nothing happens when it has ended."""
        with suppress(EngineError):
            await self._backend.resize_exec(self.exec_id, rows=rows, columns=columns)

    async def close(self, *, kill: bool) -> bool:
        """Let go of it, with ``kill`` of all that it left; whether its cgroup is gone, too."""
        if hasattr(self, "stream"):
            with suppress(EngineError, ClawboxError):
                await self.stream.close()
        if kill:
            await self.kill()
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        try:
            await asyncio.to_thread(self.cgroup.remove)
        except CgroupError:
            return False
        return True

    def _has_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self.gone.done():
            self.gone.set_result(None)

    def container_ends(self) -> bool:
        """Whether its container's first process ends, or has ended."""
        quarters = self._quarters
        if quarters.ended.is_set() or (quarters.pidfd >= 0 and has_ended(quarters.pidfd)):
            return True
        # The kernel ends the others of a pid namespace while its first process ends, before that has ended.
        fields = _stat(quarters.pid)
        return fields is None or bool(int(fields[6]) & _EXITING)


def not_running(container_id: str) -> ClawboxError:
    """The error for a container that ended, or was frozen, meanwhile."""
    return ClawboxError(
        Reason.WRONG_STATE,
        "the container {container_id} does not run any more",
        precondition=("STATE", container_id),
        container_id=container_id,
    )


def _unavailable(why: str) -> ClawboxError:
    return ClawboxError(Reason.SANDBOX_UNAVAILABLE, "no process was started: {why}", why=why, retry_after=1.0)


def _stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` from the third on; None: it is gone."""
    try:
        text = (PROC / f"{pid}/stat").read_text("utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second is a name that the process chose, in parentheses.
    return text.rpartition(")")[2].split()


def _group(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[2])


async def _moments(seconds: float) -> AsyncIterator[None]:
    """Now, and again at growing intervals, for ``seconds``."""
    began = time.monotonic()
    pause = _FIRST_PAUSE
    while True:
        yield
        passed = time.monotonic() - began
        if passed >= seconds:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, _EARLY_PAUSE if passed < _EARLY_SECONDS else _LONGEST_PAUSE)
