"""How containers change once they run: looked at when the engine says something, ended, finished, forgotten.

What the engine says is only ever a reason to look; what it shows then is the truth. So events may come twice,
late, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from clawbox.containers.backend import EngineError
from clawbox.containers.entry import Entry
from clawbox.containers.killing import ask_to_end, kill
from clawbox.containers.making import now_ms
from clawbox.containers.quarters import quarters_of
from clawbox.containers.record import Container, EgressState
from clawbox.containers.states import (
    Ending,
    EndingBegun,
    Exited,
    Paused,
    Resumed,
    Signalled,
    State,
    Vanished,
    after,
)
from clawbox.errors import ClawboxError, Reason
from clawbox.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from clawbox.containers.backend import ContainerFacts
    from clawbox.containers.labels import Identity
    from clawbox.containers.states import Event, Status
    from clawbox.containers.terms import Surroundings

AGAIN_SECONDS: Final = 1.0
"""After which it is tried again to end or finish a container when engine or store did not let us."""
KILL_SECONDS: Final = 10.0
"""How long a killed container may take to end before it is killed again."""

_log = logging.getLogger(__name__)

Start = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Lifecycle:
    """The changes of all containers. ``start`` starts work that nobody waits for, and owns it."""

    def __init__(self, around: Surroundings, start: Start) -> None:
        self._around = around
        self._start = start
        self._entries: dict[str, Entry] = {}
        self._by_engine: dict[str, str] = {}

    @property
    def entries(self) -> dict[str, Entry]:
        """What is held, by container id."""
        return self._entries

    def began(self, entry: Entry, container: Container) -> None:
        """A container runs: events mean it from now on, and its time limit is kept."""
        self._by_engine[container.engine_id] = entry.container_id
        self._set_timer(entry, container)
        # What it did before events meant it was not seen.
        self.look(entry.container_id)

    def restored(self, container: Container) -> None:
        """One that had finished before this server began."""
        around, identity = self._around, container.identity
        entry = self._entries[container.container_id] = Entry(container.container_id)
        folder = around.folders.container(entry.container_id)
        workspace = around.workspaces.locate(identity.owner, identity.workspace_id, entry.container_id)
        entry.quarters = quarters_of(identity, container.engine_id, folder, workspace)
        entry.quarters.ended.set()
        self._set_timer(entry, container)

    def bound(self) -> None:
        """Have the oldest finished ones forgotten where more of an owner's were restored than are kept."""
        for owner in {container.owner for container in self._around.registry}:
            self._bound(owner)

    # What the engine says

    def look_at_engine_id(self, engine_id: str) -> None:
        """Something happened to the container that the engine calls so."""
        container_id = self._by_engine.get(engine_id)
        if container_id is not None:
            self.look(container_id)

    def look(self, container_id: str) -> None:
        """Look how a container is, soon."""
        entry = self._entries.get(container_id)
        if entry is None:
            return
        entry.look_again = True
        if entry.looking is None or entry.looking.done():
            entry.looking = self._start(self._look(entry), f"look at {container_id}")

    def signalled(self, engine_id: str, number: int) -> None:
        """The engine sent a container a signal, perhaps because clawbox asked it to."""
        container_id = self._by_engine.get(engine_id)
        entry = None if container_id is None else self._entries.get(container_id)
        if entry is not None:
            # Before whatever look comes next; and nobody's lock keeps other containers' events waiting.
            self._start(self._note_signal(entry, number), f"signal to {container_id}")

    async def _note_signal(self, entry: Entry, number: int) -> None:
        async with entry.lock:
            try:
                await self._apply(entry, Signalled(number))
            except ClawboxError as error:
                _log.warning("a signal to container %s was not kept: %s", entry.container_id, error)

    async def _look(self, entry: Entry) -> None:
        while entry.look_again:
            entry.look_again = False
            try:
                async with entry.lock:
                    await self._look_once(entry)
            except (ClawboxError, EngineError) as error:
                # Engine or store is away; of the engine another look tells when it is back.
                _log.warning("container %s could not be looked at: %s", entry.container_id, error)
                await asyncio.sleep(AGAIN_SECONDS)
                away = isinstance(error, ClawboxError) and error.reason is Reason.STATE_UNAVAILABLE
                entry.look_again = away or entry.look_again

    async def _look_once(self, entry: Entry) -> None:
        if entry.outcome is not None:
            await self._conclude(entry, entry.outcome)
            return
        container = self._around.registry.get(entry.container_id)
        if container is None or container.status.state not in {State.RUNNING, State.PAUSED}:
            return
        facts = await self._around.backend.inspect(container.engine_id)
        event = _told_by(facts)
        if event is None:
            return
        if isinstance(event, Exited | Vanished):
            await self._finish(entry, container, after(container.status, event), facts)
        else:
            await self._apply(entry, event)

    async def _apply(self, entry: Entry, event: Event) -> None:
        """Whoever calls has the entry's lock."""
        container = self._around.registry.get(entry.container_id)
        if container is None:
            return
        status = after(container.status, event)
        if status != container.status:
            await self._around.registry.put(replace(container, status=status))

    # Its end

    async def end(self, entry: Entry, ending: Ending, grace_seconds: float) -> None:
        """Begin to end a container, which goes on whoever waits; a grace of 0 kills at once.

        Of two graces the one that is over first holds. That the state cannot be written keeps nothing from
        being ended but what a caller wants stopped: raises STATE_UNAVAILABLE, and then nothing was begun.
        """
        async with entry.lock:
            container = self._around.registry.get(entry.container_id)
            if container is None or not container.active:
                return
            status = after(container.status, EndingBegun(ending))
            if status != container.status:
                registry = self._around.registry
                put = registry.put if ending is Ending.STOP else registry.put_or_tell
                await put(replace(container, status=status))
            by = asyncio.get_running_loop().time() + grace_seconds
            if entry.ending is None or entry.ending.done() or by < entry.ends_by:
                if entry.ending is not None:
                    entry.ending.cancel()
                entry.ends_by = by
                work = self._end(entry, container, grace_seconds)
                entry.ending = self._start(work, f"end {entry.container_id}")

    async def _end(self, entry: Entry, container: Container, grace_seconds: float) -> None:
        quarters = entry.quarters
        if quarters is None or quarters.ended.is_set():
            return
        backend = self._around.backend
        if grace_seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(entry.ends_by):
                    if await ask_to_end(backend, container, quarters):
                        await quarters.ended.wait()
        while not quarters.ended.is_set():
            await kill(backend, container, quarters)
            self.look(entry.container_id)
            try:
                async with asyncio.timeout(KILL_SECONDS):
                    await quarters.ended.wait()
            except TimeoutError:
                _log.warning("container %s was killed and is still there", entry.container_id)

    async def _finish(
        self, entry: Entry, container: Container, status: Status, facts: ContainerFacts | None
    ) -> None:
        """Its program has ended. Whoever calls has the entry's lock. Raises what :meth:`_conclude` does."""
        around, quarters = self._around, entry.quarters
        entry.cancel_timer()
        self._by_engine.pop(container.engine_id, None)
        if quarters is not None:
            quarters.ended.set()
            for companion in around.companions:
                try:
                    await companion.ended(container, quarters)
                except Exception:  # noqa: BLE001 - the container has ended all the same
                    _log.exception("container %s ended, and not all that goes with it", entry.container_id)
            quarters.pid, quarters.pidfd, quarters.cgroup = 0, -1, None
        await entry.local.give_back()
        if quarters is not None:
            quarters.door = None
        finished = (facts.finished_ms if facts is not None else None) or now_ms()
        entry.outcome = replace(
            container,
            status=status,
            egress=EgressState.NONE,
            egress_detail="",
            finished_ms=finished,
            expires_ms=None,
            purge_ms=now_ms() + around.retention_ms,
        )
        await self._conclude(entry, entry.outcome)

    async def _conclude(self, entry: Entry, container: Container) -> None:
        """Keep how it ended, then tell it. Whoever calls has the entry's lock.

        Raises STATE_UNAVAILABLE, and is to be called again then; until it was kept the engine knows it.
        """
        await self._around.registry.keep(container)
        await entry.lasting.give_back()
        await self._around.registry.put(container, keep=False)
        entry.outcome = None
        self._set_timer(entry, container)
        self._bound(container.owner)

    # What comes after

    def _bound(self, owner: str) -> None:
        """What is too much ends its retention now: all goes on as if its time were over."""
        for container in self._around.registry.finished(owner)[: -self._around.max_finished]:
            entry = self._entries.get(container.container_id)
            if entry is not None:
                self._call_later(entry, 0)

    async def forget(self, entry: Entry, *, delete_workspace: bool | None = None) -> None:
        """Nothing of a finished container is kept any more; once begun that is done, cancelled or not.

        ``delete_workspace`` holds also when somebody else is just forgetting it. Raises STATE_UNAVAILABLE,
        WORKSPACE_LIMIT and SANDBOX_UNAVAILABLE (its workspace cannot be kept), and then it is still there,
        unless somebody else was just forgetting it.
        """
        if delete_workspace is not None:
            entry.delete_workspace = delete_workspace
        try:
            async with entry.lock:
                # Of what is in no row any more the next start alone would find the rest.
                await uninterrupted(self._forget(entry))
            if delete_workspace is False and entry.unsettled is not None:
                raise entry.unsettled
        finally:
            if delete_workspace is not None:
                entry.delete_workspace = None

    async def _forget(self, entry: Entry) -> None:
        """Whoever calls has the entry's lock."""
        container = self._around.registry.get(entry.container_id)
        if container is None or container.active:
            return
        identity = container.identity
        if entry.delete_workspace is False and identity.workspace_id:
            # First, because it can be refused.
            await self._around.workspaces.keep(identity.owner, identity.workspace_id)
        await self._around.registry.forget(entry.container_id)
        await self.clear(entry, container)

    async def clear(self, entry: Entry, container: Container) -> None:
        """Remove what is left of a container that is no more in the registry."""
        await self.let_go(entry)
        await self._settle_workspace(entry, container.identity)

    async def let_go(self, entry: Entry) -> None:
        """Hold a container no more, nor does anything that goes along with it."""
        entry.cancel_timer()
        self._entries.pop(entry.container_id, None)
        for companion in self._around.companions:
            try:
                await companion.forgotten(entry.container_id)
            except Exception:  # noqa: BLE001 - the others are told all the same
                _log.exception("container %s is forgotten, and not all of it", entry.container_id)

    async def _settle_workspace(self, entry: Entry, identity: Identity) -> None:
        """Delete a workspace that goes with its container, or keep one that is to stay."""
        workspaces, workspace_id = self._around.workspaces, identity.workspace_id
        if not workspace_id:
            return
        delete = entry.delete_workspace
        try:
            if identity.workspace_goes if delete is None else delete:
                await workspaces.delete(identity.owner, workspace_id)
            elif delete is False:
                await workspaces.keep(identity.owner, workspace_id)
        except ClawboxError as error:
            # Another container has it by now, and then it is that one's to settle; or it cannot be kept.
            entry.unsettled = error if delete is False else None
            _log.info("the workspace of container %s stays: %s", identity.container_id, error)
        except OSError:
            _log.exception("the workspace of container %s is left", identity.container_id)

    def _set_timer(self, entry: Entry, container: Container) -> None:
        """Have the next thing done that time brings."""
        entry.cancel_timer()
        due = container.expires_ms if container.active else container.purge_ms
        if due is not None:
            self._call_later(entry, max(due - now_ms(), 0) / 1000)

    def _call_later(self, entry: Entry, seconds: float) -> None:
        entry.cancel_timer()
        entry.timer = asyncio.get_running_loop().call_later(seconds, self._due, entry)

    def _due(self, entry: Entry) -> None:
        self._start(self._keep_time(entry), f"time of {entry.container_id}")

    async def _keep_time(self, entry: Entry) -> None:
        container = self._around.registry.get(entry.container_id)
        if container is None:
            return
        try:
            if container.active:
                limits = container.identity.grant.limits
                lifetime = limits.max_lifetime_ms
                over = lifetime is not None and now_ms() >= container.identity.created_ms + lifetime
                await self.end(entry, Ending.LIFETIME if over else Ending.TIMEOUT, 0)
            else:
                await self.forget(entry)
        except ClawboxError as error:
            _log.warning("the time of container %s is over: %s", entry.container_id, error)
            self._call_later(entry, AGAIN_SECONDS)


def _told_by(facts: ContainerFacts | None) -> Event | None:
    """What happened when a container is so."""
    if facts is None:
        return Vanished()
    match facts.status:
        case "exited" | "dead":
            if facts.exit_code is None:
                return Vanished()
            return Exited(facts.exit_code, oom_killed=facts.oom_killed, error=facts.error)
        case "paused":
            return Paused()
        case "running":
            return Resumed()
        case _:
            return None
