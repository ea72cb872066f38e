"""A process inside a container that has a kernel of its own (gVisor's runsc): the host sees nothing of it.

What the engine names is a process of the runtime's that stands for it, outside of the container. That one is
watched for its end and never signalled, for signals do not reach what it stands for. So one process inside
cannot be ended alone: where it must be, its container is (docs/runtimes.md).

As long as it runs its FIFO is there: by that the next server knows that the container has one.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from clawbox.containers.backend import EngineError
from clawbox.containers.execs.inside import KILL_SECONDS, UNDO_SECONDS, InsideProcess
from clawbox.containers.host.processes import open_process
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from clawbox.containers.backend import ContainerBackend
    from clawbox.containers.execs.calls import Order
    from clawbox.containers.quarters import Quarters

_ASK_SECONDS = 0.05
_log = logging.getLogger(__name__)


class ApartProcess(InsideProcess):
    """Made by :meth:`start`; to be closed."""

    def _prepare(self) -> None:
        self._fifo = self._quarters.folder.make_fifo(self._name)

    def _hold(self, pid: int) -> None:
        self.pid, self._pidfd = pid, open_process(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._has_gone)

    def _secure(self, order: Order) -> None:
        """Nothing of it can be seen; the gate that has come to the FIFO is the engine's word for it."""

    async def _end_begun(self) -> None:
        # Its gate is refused, and so ends by itself.
        for _ in range(round(UNDO_SECONDS / _ASK_SECONDS)):
            facts = await self._backend.inspect_exec(self.exec_id)
            if facts.exit_code is not None or self.gone.done() or self._quarters.ended.is_set():
                return
            await asyncio.sleep(_ASK_SECONDS)
        await kill_container(self._backend, self._quarters, "a process that is to be undone does not end")

    async def kill(self) -> bool:
        """Kill its container, if it was let go and has not ended."""
        if self.started and not self.gone.done():
            await kill_container(self._backend, self._quarters, "a process inside has to end")
            await asyncio.wait({self.gone}, timeout=KILL_SECONDS)
            return self.gone.done()
        return True

    def signal(self, number: int) -> None:
        """Raise NOT_SERVED: no signal reaches one process of another kernel."""
        if not self.gone.done():
            raise ClawboxError(
                Reason.NOT_SERVED,
                "a process under the container's own kernel takes no signal ({signal}) from outside",
                signal=number,
            )

    def left_nothing(self) -> bool:
        """Nobody outside sees what it left."""
        return False

    async def close(self, *, kill: bool) -> bool:
        """As for others; what it started goes on when it has ended by itself."""
        closed = await super().close(kill=kill)
        with suppress(OSError):
            await asyncio.to_thread(self._quarters.folder.remove_fifo, self._name)
        return closed


async def end_left(backend: ContainerBackend, quarters: Quarters) -> None:
    """Kill an adopted container in which an earlier server may have left a process."""
    if await asyncio.to_thread(quarters.folder.exec_fifos):
        await kill_container(backend, quarters, "an earlier server left a process inside")


async def kill_container(backend: ContainerBackend, quarters: Quarters, why: str) -> None:
    """Kill a container, and all in it with its kernel."""
    _log.warning("container %s is killed: %s", quarters.container_id, why)
    with suppress(EngineError, ClawboxError):
        await backend.signal(quarters.engine_id, "KILL")
