"""Everything that is outside of the sandboxes' way out and keeps it: keeper, dialer, and a door for each.

Nothing runs until it is needed: the keeper when the first head of the audit log is signed, the rest with the
first sandbox that may reach anything. From then on one forkserver makes all these processes, and each that
dies is followed by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from clawbox.audit.heads import SignerGoneError
from clawbox.children.enforcement import Enforcement, probe_egress
from clawbox.children.launcher import Launcher
from clawbox.egress.dialer.control import KIND as DIALER
from clawbox.egress.dialer.control import DialerControl
from clawbox.egress.keeper.control import KIND as KEEPER
from clawbox.egress.keeper.control import Keeper, KeeperUnavailableError
from clawbox.egress.keeper.identity import installation_of
from clawbox.egress.keeper.messages import MAX_LABELS_CHARACTERS
from clawbox.egress.recording import EgressMetrics, LeakLedger, SandboxRecorder
from clawbox.egress.sandbox_door import SandboxDoor
from clawbox.egress.sidecar_supervisor import SIDECAR
from clawbox.egress.spending import Spending
from clawbox.egress.surroundings import Restarts, Surroundings
from clawbox.errors import ClawboxError, Reason, invalid_field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from clawbox.audit import AuditLog
    from clawbox.children.uids import UidRange
    from clawbox.egress.dialer.messages import AddressPolicySpec
    from clawbox.egress.keeper.bootstrap import Keys
    from clawbox.egress.messages import Grant

KINDS: Final = {
    SIDECAR: "clawbox.egress.sidecar:SIDECAR",
    KEEPER: "clawbox.egress.keeper.main:KEEPER",
    DIALER: "clawbox.egress.dialer.main:DIALER",
}
"""What the launcher forks, by name."""
FIRST_START_SECONDS: Final = 30.0
"""How long the first sandbox may wait for keeper and dialer."""
AUDIT_LOOK_SECONDS: Final = 0.5
"""How often it is asked whether audit rows can be written, while there are sidecars."""


class Metrics(EgressMetrics, Restarts, Protocol):
    """Where it is counted what happens: :class:`clawbox.telemetry.Metrics`."""

    def watch_egress(
        self, tunnels: Callable[[], float], processes: Mapping[str, Callable[[], float]]
    ) -> None:
        """Read numbers from here."""


@dataclass(frozen=True, slots=True)
class EgressSetup:
    """What the operator's settings say of every sandbox's way out."""

    store: Path
    """The encrypted file of credentials."""
    addresses: AddressPolicySpec
    upstream_ca: tuple[str, ...] = ()
    """PEM texts."""


@dataclass(frozen=True, slots=True)
class EgressStatus:
    """How the parts do, for System.GetStatus."""

    started: bool
    """Whether any sandbox needed a way out yet."""
    keeper: bool
    dialer: bool
    sidecars: int
    """Sandboxes whose sidecar serves."""
    down: int
    """Sandboxes whose sidecar does not serve just now, or never will."""
    credential_fault: str
    """Why no credential can be used, or which cannot; empty: all can."""


class EgressSupervisor:
    """Gives sandboxes their ways out while entered; leaving ends all of them.

    ``keys`` stay the caller's. ``uids`` is None where children cannot have uids of their own.
    """

    def __init__(
        self,
        setup: EgressSetup,
        keys: Keys,
        *,
        audit: AuditLog,
        metrics: Metrics,
        uids: UidRange | None,
    ) -> None:
        self._setup = setup
        self._keys = keys
        self._audit = audit
        self._metrics = metrics
        self._launcher = Launcher(KINDS, uids)
        self._keeper = Keeper(
            self._launcher, keys, setup.store, audit, functools.partial(metrics.egress_restarted, KEEPER)
        )
        self._dialer = DialerControl(
            self._launcher, setup.addresses, functools.partial(metrics.egress_restarted, DIALER)
        )
        self._doors: set[SandboxDoor] = set()
        self._leaks = LeakLedger()
        self._recordable = True
        self._starting = asyncio.Lock()
        self._launched = False
        self._keeper_started = False
        self._watching: asyncio.Task[None] | None = None
        self._tasks = asyncio.TaskGroup()
        self._stack = contextlib.AsyncExitStack()
        self._open = False
        self._around = Surroundings(
            forker=self._launcher,
            keeper=self._keeper,
            dialer=self._dialer,
            upstream_ca=setup.upstream_ca,
            spending=Spending(),
            number=itertools.count(1).__next__,
            recordable=lambda: self._recordable,
            restarts=metrics,
        )

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._tasks)
        self._metrics.watch_egress(
            lambda: sum(door.tunnels for door in self._doors),
            {
                SIDECAR: lambda: sum(door.serving for door in self._doors),
                KEEPER: lambda: self._keeper.running,
                DIALER: lambda: self._dialer.running,
            },
        )
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        await asyncio.gather(*(door.close() for door in self._doors))
        if self._watching is not None:
            self._watching.cancel()
        # Not told of an error of the body, which the task group would put into an ExceptionGroup.
        await self._stack.__aexit__(None, None, None)

    @contextlib.asynccontextmanager
    async def sandbox(self, grant: Grant) -> AsyncIterator[SandboxDoor]:
        """A way out for one sandbox, which serves when this is entered and is gone when it is left.

        No other sandbox that lives has the grant's id. Raises SANDBOX_UNAVAILABLE.
        """
        await self._need_keeper()
        await self._start_dialer()
        door = SandboxDoor(
            grant, self._around, SandboxRecorder(grant, self._audit, self._metrics, self._leaks)
        )
        self._doors.add(door)
        try:
            await door.open(self._tasks)
            yield door
        finally:
            self._doors.discard(door)
            await door.close()
            self._keeper.forget(grant.sandbox)

    def refuse_addresses(self, listeners: tuple[tuple[str, int], ...]) -> None:
        """Have no sandbox reach where this program itself listens (15)."""
        for place in listeners:
            self._dialer.refuse_listener(place)

    async def sign(self, sequence: int, digest: str) -> bytes:
        """Have the keeper sign a head of the audit log. Raises SignerGoneError."""
        if not self._open:
            raise SignerGoneError("the server is stopping")
        try:
            await self._start_keeper()
        except ClawboxError as error:
            raise SignerGoneError(str(error)) from None
        return await self._keeper.sign(sequence, digest)

    async def mac(self, text: str) -> bytes:
        """Have the keeper authenticate a container's labels (83): HMAC-SHA-256, 32 bytes.

        ``text``: the labels in their one form as JSON. The same text has the same MAC for as long as the
        installation has its identity key. Raises INVALID_FIELD for one that is too long,
        SANDBOX_UNAVAILABLE, and SHUTTING_DOWN.
        """
        if len(text) > MAX_LABELS_CHARACTERS:
            raise invalid_field(
                "labels", f"has, with the grant, more than {MAX_LABELS_CHARACTERS} characters", "max_length"
            )
        await self._need_keeper()
        try:
            return await self._keeper.authenticate_labels(text)
        except KeeperUnavailableError:
            # It had died already, maybe, and nobody knew. Of the next one the same can be asked.
            await self._need_keeper()
        try:
            return await self._keeper.authenticate_labels(text)
        except KeeperUnavailableError as error:
            raise _no_keeper(str(error)) from None

    async def installation(self) -> str:
        """The name of this installation, 32 hexadecimal digits, from its identity key.

        Raises SANDBOX_UNAVAILABLE and SHUTTING_DOWN.
        """
        await self._need_keeper()
        assert self._keeper.public_key is not None
        return installation_of(self._keeper.public_key)

    def enforcements(self) -> tuple[Enforcement, ...]:
        """What confines these processes on this machine, and what does not; nothing before one runs."""
        status = self._launcher.status
        return () if status is None else probe_egress(status)

    def status(self) -> EgressStatus:
        """How the parts do."""
        credentials = self._keeper.status
        fault = credentials.fault
        if not fault and credentials.broken:
            fault = "cannot be used: " + ", ".join(sorted(credentials.broken))
        serving = sum(door.serving for door in self._doors)
        return EgressStatus(
            started=self._watching is not None,
            keeper=self._keeper.running,
            dialer=self._dialer.running,
            sidecars=serving,
            down=len(self._doors) - serving,
            credential_fault=fault if self._keeper.running else "",
        )

    async def _need_keeper(self) -> None:
        if not self._open:
            raise ClawboxError(Reason.SHUTTING_DOWN, "the server is stopping")
        await self._start_keeper()

    async def _start_keeper(self) -> None:
        """Start the keeper, when it is needed first. Raises SANDBOX_UNAVAILABLE."""
        async with self._starting:
            # Each on its own: whoever asked first may have been cancelled between the two.
            if not self._launched:
                await self._stack.enter_async_context(self._launcher)
                self._launched = True
            if not self._keeper_started:
                await self._stack.enter_async_context(self._keeper)
                self._keeper_started = True
        try:
            async with asyncio.timeout(FIRST_START_SECONDS):
                await self._keeper.begun()
        except TimeoutError:
            raise _no_keeper("it does not start") from None

    async def _start_dialer(self) -> None:
        """Start what all sandboxes share beside the keeper, when the first one needs it."""
        async with self._starting:
            if self._watching is None:
                await self._stack.enter_async_context(self._dialer)
                self._watching = self._tasks.create_task(self._watch_audit(), name="audit state of sidecars")

    async def _watch_audit(self) -> None:
        """Tell sidecars when rows cannot be written: they refuse requests then (``audit.on_error``)."""
        while True:
            recordable = not self._audit.refuses or self._audit.available()
            if recordable is not self._recordable:
                self._recordable = recordable
                for door in self._doors:
                    door.audit_state(available=recordable)
            await asyncio.sleep(AUDIT_LOOK_SECONDS)


def _no_keeper(why: str) -> ClawboxError:
    return ClawboxError(
        Reason.SANDBOX_UNAVAILABLE,
        "the keeper of secrets does not answer: {why}",
        retry_after=1.0,
        why=why,
    )
