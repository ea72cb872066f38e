"""Keeps what is known of containers true: follows the engine's events, and compares both lists now and then.

While the engine is away nothing is known, and callers are told so. When it is back, everything is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from clawbox.containers.adoption import Adoption
from clawbox.containers.backend import EngineAction, EngineError
from clawbox.containers.persistence import RowError, from_row
from clawbox.containers.states import Ending, State
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.audit import Audit
    from clawbox.containers.backend import EngineEvent, EngineFacts
    from clawbox.containers.entry import Entry
    from clawbox.containers.lifecycle import Lifecycle
    from clawbox.containers.terms import Surroundings
    from clawbox.store import ContainerRows

LOOK_SECONDS: Final = 30.0
"""How often everything is compared although no event came."""
HEALTH_SECONDS: Final = 5.0
"""How often it is seen whether sidecars and workspaces are as they must be."""
RETRY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class Monitor:
    """Follows the engine for as long as :meth:`run` does."""

    def __init__(self, around: Surroundings, lifecycle: Lifecycle, audit: Audit) -> None:
        self._around = around
        self._lifecycle = lifecycle
        self._adoption = Adoption(around, lifecycle, audit)
        self._engine: EngineFacts | None = None
        self._problem = "the container engine was not asked yet"
        self._default_runtime = ""
        self._looked = asyncio.Event()
        self._told: Callable[[bool], None] = lambda _: None

    @property
    def engine(self) -> EngineFacts | None:
        """What the engine is; None while it is away."""
        return self._engine

    @property
    def default_runtime(self) -> str:
        """What the engine takes where it is asked for none; empty before it said so."""
        return self._default_runtime

    @property
    def problem(self) -> str:
        """Why containers are not served just now; empty: they are."""
        return self._problem

    def watch_availability(self, told: Callable[[bool], None]) -> None:
        """Have ``told`` called now, and whenever containers can be served, or cannot any more."""
        self._told = told
        told(not self._problem)

    def require(self) -> None:
        """Raise DOCKER_UNAVAILABLE while the engine is away, or what it has is not known yet."""
        if self._problem:
            raise self.unavailable()

    def unavailable(self) -> ClawboxError:
        """The error for what cannot be done because the engine is away, or was."""
        return ClawboxError(
            Reason.DOCKER_UNAVAILABLE,
            "containers cannot be served now: {why}",
            retry_after=RETRY_SECONDS,
            why=self._problem or "the container is being taken over",
        )

    async def first_look(self, seconds: float) -> None:
        """Return once everything that an earlier server left was looked at, or the engine is found away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._looked.wait()

    async def restore(self, rows: ContainerRows) -> None:
        """Take what was kept. Raises STATE_UNAVAILABLE."""
        restored = []
        for row in await rows.all():
            try:
                container = from_row(row)
            except RowError as error:
                # Its labels are as good, where it still runs; where it does not, it was over anyway.
                _log.error("the row of container %s is given up: %s", row.container_id, error)
                await rows.delete(row.container_id)
                continue
            if container.identity.installation != self._around.installation:
                # The identity key is another one: what it left at the engine is another installation's.
                _log.error("container %s is of another installation, and given up", row.container_id)
                await rows.delete(row.container_id)
                continue
            restored.append(container)
        # All at once: the time of one that finished may be over, and another have its workspace.
        for container in restored:
            self._around.registry.restore(container)
            if container.active:
                # It may run, however long it takes the engine to say so.
                identity = container.identity
                self._around.workspaces.hold(identity.owner, identity.workspace_id, container.container_id)
            else:
                self._lifecycle.restored(container)

    async def run(self) -> None:
        """Follow the engine until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(
                self._now_and_then(LOOK_SECONDS, self._compare_again), name="compare containers"
            )
            group.create_task(self._now_and_then(HEALTH_SECONDS, self._check), name="check containers")
            while True:
                try:
                    await self._follow()
                except (ClawboxError, EngineError) as error:
                    self._away(str(error))
                except Exception:  # noqa: BLE001 - containers go on, and so must their monitor
                    _log.exception("the engine cannot be followed")
                    self._away("what it says cannot be followed; the log says why")
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        """Look at everything, then listen, until the engine breaks off. Raises what the backend does."""
        # Whatever happens from here on is told, though it happens before anybody listens.
        since = time.time_ns()
        self._engine = await self._around.backend.about()
        self._default_runtime = self._engine.default_runtime
        await self._compare()
        self._problem = ""
        self._looked.set()
        self._told(True)  # noqa: FBT003 - the state is the value
        events = self._around.backend.events(since)
        async with contextlib.aclosing(events):
            async for event in events:
                self._heard(event)

    def _away(self, why: str) -> None:
        if not self._problem or self._engine is not None:
            _log.warning("the engine is away: %s", why)
        self._engine = None
        self._problem = why
        self._looked.set()
        self._told(False)  # noqa: FBT003

    def _heard(self, event: EngineEvent) -> None:
        if event.action is EngineAction.KILL and event.signal is not None:
            self._lifecycle.signalled(event.engine_id, event.signal)
        else:
            self._lifecycle.look_at_engine_id(event.engine_id)

    async def _now_and_then(self, seconds: float, act: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await act()  # type: ignore[misc]
            except (ClawboxError, EngineError) as error:
                _log.warning("containers could not be looked at: %s", error)
            except Exception:  # noqa: BLE001 - it would end the monitor, and no end of a container be seen
                _log.exception("containers could not be looked at")

    async def _compare_again(self) -> None:
        if not self._problem:
            await self._compare()

    async def _compare(self) -> None:
        """Adopt, finish and remove what is not as the registry has it."""
        # Those that are adopted now are looked at as they begin.
        held = list(self._lifecycle.entries)
        await self._adoption.settle()
        for container_id in held:
            container = self._around.registry.get(container_id)
            if container is not None and container.status.state in {State.RUNNING, State.PAUSED}:
                self._lifecycle.look(container_id)

    async def _check(self) -> None:
        """End containers that are not as they must be (docs/security.md, 64 and 99), engine or not."""
        for entry in list(self._lifecycle.entries.values()):
            try:
                ending = await self._wrong(entry)
                if ending is not None:
                    await self._lifecycle.end(entry, ending, 0)
            except (ClawboxError, OSError) as error:
                # The others are looked at all the same.
                _log.warning("container %s could not be checked: %s", entry.container_id, error)

    async def _wrong(self, entry: Entry) -> Ending | None:
        quarters = entry.quarters
        if quarters is None or quarters.ended.is_set() or not quarters.pid:
            return None
        if quarters.door is not None and quarters.door.failure:
            return Ending.UNSAFE
        workspaces = self._around.workspaces
        try:
            size = await workspaces.measure(quarters.workspace)
        except FileNotFoundError:
            return None  # somebody deleted it, and nothing more can be made in it
        return Ending.WORKSPACE if size > workspaces.max_bytes else None
