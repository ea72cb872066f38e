"""What is there already: containers that an earlier server left running, and what nobody claims.

A container is this server's when its labels carry the keeper's MAC and the engine's container is the one that
the registry, or those labels, speak of (docs/security.md, 83). Then it goes on as if nothing had happened:
same id, token, socket and listener. Everything else with this installation's label is removed, and said to
the audit log. What has another installation's label, or none, is never touched.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import EngineError
from clawbox.containers.entry import Entry
from clawbox.containers.host.cgroups import CgroupError
from clawbox.containers.host.processes import ProcessGoneError
from clawbox.containers.host.trees import TreeError
from clawbox.containers.labels import (
    INSTALLATION,
    ForeignLabelsError,
    Identity,
    from_labels,
    mac_of,
    mac_text,
)
from clawbox.containers.making import expires_ms, occupy
from clawbox.containers.mounts import WORKSPACE
from clawbox.containers.quarters import quarters_of
from clawbox.containers.record import Container
from clawbox.containers.spec import engine_name
from clawbox.containers.states import Ending, EndingBegun, State, Status, after
from clawbox.containers.way_out import listen, open_door, open_way_out
from clawbox.errors import ClawboxError, Reason
from clawbox.uninterrupted import together, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from clawbox.audit import Audit
    from clawbox.containers.backend import ContainerFacts, Listed
    from clawbox.containers.lifecycle import Lifecycle
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.terms import Surroundings

STUCK_SECONDS: Final = 10.0
"""How long the engine may take to tell of one container, or to remove it, until that is left for later."""
AT_ONCE: Final = 8
"""Containers that are adopted at the same time."""
GRACE_SECONDS: Final = 10.0
"""What is left of a grace period that an earlier server had begun."""
_GATE_ARGUMENTS: Final = 2
"""Of a container's command: the gate and its FIFO."""

_log = logging.getLogger(__name__)


class Adoption:
    """Takes over what is this server's, and removes what is nobody's. May be repeated at any time."""

    def __init__(self, around: Surroundings, lifecycle: Lifecycle, audit: Audit) -> None:
        self._around = around
        self._lifecycle = lifecycle
        self._audit = audit
        self._room = asyncio.Semaphore(AT_ONCE)
        self._turn = asyncio.Lock()
        self._first = True
        self._foreign: set[str] = set()
        """Names of other installations' containers that were there before this server was."""
        self._stuck: set[str] = set()
        """Names of the containers about which the engine did not answer this time."""
        self._left: set[str] = set()
        """What could not be removed, and was said to be left."""

    async def settle(self) -> None:
        """Compare engine, registry and folders, and leave only what belongs together.

        Raises DOCKER_UNAVAILABLE, EngineError; what was not done then is done the next time.
        """
        async with self._turn:
            await self._settle()

    async def _settle(self) -> None:
        around = self._around
        self._stuck.clear()
        if self._first:
            self._foreign = await self._others()
        found = await around.backend.list(f"{INSTALLATION}={around.installation}")
        named = {listed.name: listed for listed in found}
        await together(
            *(
                self._alone(
                    container.container_id,
                    self._take_up(container, named.get(engine_name(container.container_id))),
                )
                for container in around.registry
                if container.active and container.container_id not in self._lifecycle.entries
            )
        )
        await together(*(self._alone(listed.name, self._claim(listed)) for listed in found))
        if self._stuck:  # or is it the engine?
            await around.backend.about()
        await self._sweep()
        self._first = False

    async def _alone(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Do what is to be done about one container.

        An engine can lose one for good, and answer no question about it any more: an image whose /etc/passwd
        is a FIFO did that to Docker 20.10. That must not keep the others from being settled.
        """
        async with self._room:
            try:
                await work
            except (EngineError, ClawboxError) as error:
                if isinstance(error, ClawboxError) and error.reason is not Reason.DOCKER_UNAVAILABLE:
                    raise
                _log.error("container %s is left as it is: %s", name, error)
                self._stuck.add(name)

    async def _others(self) -> set[str]:
        """Names of the containers of other installations. No sandbox is given a uid that one of them has."""
        foreign = set[str]()
        for listed in await self._around.backend.list(INSTALLATION):
            if listed.labels.get(INSTALLATION) != self._around.installation:
                foreign.add(listed.name)
            try:
                uid = from_labels(listed.labels).uid
            except ForeignLabelsError:
                continue
            self._around.uids.reserve(uid)
        return foreign

    # Those that the registry knows

    async def _take_up(self, container: Container, listed: Listed | None) -> None:
        """One that was active when an earlier server ended."""
        if container.status.state is State.CREATING:
            await self._undo(container)
            return
        facts = None if listed is None else await self._inspect(listed.engine_id)
        same = facts is not None and facts.engine_id == container.engine_id
        if same and facts is not None and not await self._is_authentic(facts, container.identity):
            await self._reap(facts.engine_id, facts.name, "its labels are not what this server wrote")
            same = False
        await self._adopt(container, facts if same else None)

    async def _undo(self, container: Container) -> None:
        """One that was being made: nobody was ever told that it was there."""
        await self._remove(engine_name(container.container_id))
        # Whole: what was given back once may be another's when it is given back again.
        await uninterrupted(self._leave_nothing(container))

    async def _leave_nothing(self, container: Container) -> None:
        container_id, identity = container.container_id, container.identity
        entry = Entry(container_id)
        self._quarters(entry, container)
        await entry.lasting.give_back()
        identity = replace(identity, workspace_goes=not identity.workspace_kept)
        await self._lifecycle.clear(entry, replace(container, identity=identity))
        await self._around.registry.forget_or_drop(container_id)

    async def _adopt(self, container: Container, facts: ContainerFacts | None) -> None:
        """Go on with one: as it runs, or to its end when it has ended."""
        entry = Entry(container.container_id)
        quarters = self._quarters(entry, container)
        entry.quarters = quarters
        async with entry.lock:
            try:
                container = await self._settled_in(entry, container, quarters, facts)
                # Held though that cannot be kept: the next server finds the same by the row, or the labels.
                await self._around.registry.put_or_tell(container)
            except BaseException:
                # Another one's engine went away, or the server stops: it is taken over anew the next time.
                await entry.local.give_back()
                raise
            self._lifecycle.entries[entry.container_id] = entry
            self._lifecycle.began(entry, container)
        ending = container.status.ending
        if ending is not None:
            # An earlier server had begun to end it, and nobody knows how far it came.
            polite = ending in {Ending.STOP, Ending.SHUTDOWN}
            await self._lifecycle.end(entry, ending, GRACE_SECONDS if polite else 0)

    async def _settled_in(
        self, entry: Entry, container: Container, quarters: Quarters, facts: ContainerFacts | None
    ) -> Container:
        """With all that the earlier server had for it; to be ended at once where that cannot be."""
        try:
            if facts is not None and facts.runs:
                container = await self._move_in(entry, container, quarters, facts)
            elif facts is not None:
                # It has ended; what it wrote is still to be read, and cleaned.
                quarters.door = await open_door(container.identity, entry.local, self._around)
                await self._tell_companions(container, quarters)
        except (ClawboxError, ProcessGoneError, CgroupError, OSError, EngineError) as error:
            # Without its way out, or unseen, it must not go on; the look that follows sees its end.
            _log.error("container %s cannot be taken over: %s", container.container_id, error)
            status = after(container.status, EndingBegun(Ending.UNSAFE))
            container = replace(container, status=status)
            await entry.local.give_back()
            quarters.pid, quarters.pidfd, quarters.cgroup, quarters.door = 0, -1, None, None
            await self._around.backend.remove(container.engine_id)
        return container

    def _quarters(self, entry: Entry, container: Container) -> Quarters:
        """What it has on this machine, to be given back in the end."""
        around, identity = self._around, container.identity
        folder = around.folders.container(entry.container_id)
        workspace = around.workspaces.hold(identity.owner, identity.workspace_id, entry.container_id)
        uids = around.uids
        if identity.uid in uids and not self._is_anothers(container):
            uids.reserve(identity.uid)
            entry.lasting.add("its uid", lambda: uids.give_back(identity.uid))
        entry.lasting.add("its workspace", lambda: around.workspaces.release(workspace))
        entry.lasting.add("its folder", lambda: asyncio.to_thread(folder.remove))
        name = engine_name(entry.container_id)
        entry.lasting.add("its container", lambda: around.backend.remove(name))
        return quarters_of(identity, container.engine_id, folder, workspace)

    def _is_anothers(self, container: Container) -> bool:
        """Whether another has its uid: of one that was not made, whose row is left, it was given back."""
        return container.status.state is State.CREATING and any(
            one.identity.uid == container.identity.uid and one.status.state is not State.CREATING
            for one in self._around.registry
            if one.active
        )

    async def _move_in(
        self, entry: Entry, container: Container, quarters: Quarters, facts: ContainerFacts
    ) -> Container:
        """Everything that the earlier server had for it."""
        await occupy(entry, facts.pid, quarters)
        quarters.door = await open_way_out(container.identity, quarters, entry.local, self._around)
        egress, detail = await listen(container.identity, quarters)
        await self._tell_companions(container, quarters)
        return replace(container, egress=egress, egress_detail=detail)

    async def _tell_companions(self, container: Container, quarters: Quarters) -> None:
        for companion in self._around.companions:
            await companion.began(container, quarters, adopted=True)

    # Those that the engine has

    async def _claim(self, listed: Listed) -> None:
        """One with this installation's label: known, adopted, or removed."""
        around = self._around
        for known in around.registry:
            named = engine_name(known.container_id) == listed.name and known.active
            if named and known.engine_id in {"", listed.engine_id}:
                return
        facts = await self._inspect(listed.engine_id)
        if facts is None:
            return
        identity = await self._identity(facts)
        if identity is None:
            await self._reap(listed.engine_id, listed.name, "its labels are not what this server wrote")
        elif around.registry.get(identity.container_id) is not None:
            # Finished, or another one: Spawn and the end of a container leave none behind, unless cut short.
            await self._reap(listed.engine_id, listed.name, "nothing is known of it any more")
        elif not facts.runs or await self._waits(identity):
            await self._reap(listed.engine_id, listed.name, "its program does not run")
        else:
            await self._adopt_unknown(identity, facts)

    async def _adopt_unknown(self, identity: Identity, facts: ContainerFacts) -> None:
        """One that runs and that the state store lost: its labels say all that is needed."""
        _log.warning("container %s is known by its labels alone", identity.container_id)
        container = Container(
            identity=identity,
            status=Status(state=State.RUNNING, reason="its program runs"),
            command=facts.command[_GATE_ARGUMENTS:],
            working_dir=facts.working_dir or WORKSPACE,
            engine_id=facts.engine_id,
            runtime=facts.runtime,
            started_ms=facts.started_ms,
        )
        container = replace(container, expires_ms=expires_ms(container))
        self._tell("container_adopted", identity.container_id, identity.owner, "its row was lost")
        await self._adopt(container, facts)

    async def _waits(self, identity: Identity) -> bool:
        """Whether its gate was never let go."""
        folder = self._around.folders.container(identity.container_id)
        try:
            fifo = await asyncio.to_thread(folder.reattach)
        except OSError:
            return True  # no folder, so nothing that it could have been let go by
        if fifo is None:
            return False
        fifo.close()
        return True

    async def _identity(self, facts: ContainerFacts) -> Identity | None:
        """Who a container is; None when this server did not write its labels, or for another container."""
        try:
            identity = from_labels(facts.labels)
        except ForeignLabelsError:
            return None
        ours = facts.name == engine_name(identity.container_id)
        return identity if ours and await self._is_authentic(facts, identity) else None

    async def _is_authentic(self, facts: ContainerFacts, identity: Identity) -> bool:
        mac = await self._around.ways_out.mac(mac_text(facts.labels))
        if not hmac.compare_digest(mac, mac_of(facts.labels)):
            return False
        try:
            return from_labels(facts.labels) == identity
        except ForeignLabelsError:
            return False

    async def _reap(self, engine_id: str, name: str, why: str) -> None:
        _log.warning("container %s is removed: %s", name, why)
        self._tell("container_reaped", name, "", why)
        await self._remove(engine_id)

    async def _inspect(self, engine_id: str) -> ContainerFacts | None:
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                return await self._around.backend.inspect(engine_id)
        except TimeoutError:
            raise EngineError(504, "the engine does not say how it is") from None

    async def _remove(self, engine_id: str) -> None:
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await self._around.backend.remove(engine_id)
        except TimeoutError:
            raise EngineError(504, "the engine does not remove it") from None

    # What is left on disk

    async def _sweep(self) -> None:
        """Remove folders, workspaces and output of containers that are not there.

        What was this server's before it lost its identity key still has its own. What cannot be removed is
        left, and keeps nothing else waiting. Raises OSError when no container's folder can be seen.
        """
        around = self._around
        # What is there first: who is known by then, and has none yet, may have one any moment.
        folders = await asyncio.to_thread(around.folders.ids)
        known = {container.container_id for container in around.registry} | set(self._lifecycle.entries)
        for container_id in folders:
            container = around.registry.get(container_id)
            if engine_name(container_id) in self._foreign:
                known.add(container_id)
            elif container_id not in known or (container is not None and not container.active):
                folder = around.folders.container(container_id)
                await self._rid_of(f"the folder {folder.path}", asyncio.to_thread(folder.remove))
        if self._first:
            await self._rid_of("abandoned workspaces", around.workspaces.delete_abandoned(known))
            for companion in around.companions:
                await self._rid_of(f"what {type(companion).__name__} has", companion.abandoned(known))

    async def _rid_of(self, what: str, work: Awaitable[None]) -> None:
        try:
            await work
        except (OSError, TreeError) as error:
            if what not in self._left:
                _log.error("%s cannot be removed, and is left: %s", what, error)
            self._left.add(what)

    def _tell(self, kind: str, container_id: str, owner: str, why: str) -> None:
        self._audit.append(kind, principal=owner, decision="recorded", container_id=container_id, reason=why)
