"""Ways out for calls of tools: calls with one owner and one grant share a sidecar, each with its own token.

A grant's digest includes its owner (docs/security.md, 66), so no two principals' requests meet in a process.
A sidecar starts with the first call that needs it, and ends when none has used it for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec

from clawbox.egress.messages import Grant, Limits
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from clawbox.egress.sandbox_door import SandboxDoor
    from clawbox.network_rules import ShapeAction
    from clawbox.policy import ToolGrant

IDLE_SECONDS: Final = 60.0
"""How long a sidecar that no call uses is kept for the next one."""
MAX_SIDECARS: Final = 64
"""Owners and grants that can have calls under way at once, each with a sidecar."""
_TOKEN_BYTES: Final = 32


class Supervisor(Protocol):
    """What starts sidecars: :class:`clawbox.egress.supervisor.EgressSupervisor`."""

    def sandbox(self, grant: Grant) -> AbstractAsyncContextManager[SandboxDoor]:
        """A way out with this grant. Entering raises SANDBOX_UNAVAILABLE or SHUTTING_DOWN."""


@dataclass(eq=False, slots=True)
class _Shared:
    """One sidecar, from the first call that needs it until it was idle for long enough."""

    grant: Grant
    opened: asyncio.Future[SandboxDoor] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    over: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    idle: asyncio.TimerHandle | None = None


class WasmDoors:
    """Implements :class:`clawbox.egress.door.Door` while entered; leaving ends every sidecar.

    At most ``max_sidecars`` run; where all are in use, a call that needs another one is refused.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        limits: Limits,
        on_shape: ShapeAction,
        *,
        idle_seconds: float = IDLE_SECONDS,
        max_sidecars: int = MAX_SIDECARS,
    ) -> None:
        self._supervisor = supervisor
        self._limits = limits
        self._on_shape = on_shape
        self._idle_seconds = idle_seconds
        self._max_sidecars = max_sidecars
        self._shared: dict[str, _Shared] = {}  # by sandbox; those that are idle longest come first
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shared in list(self._shared.values()):
            self._end(shared)
        # Not told of an error of the body, which the group would put into an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)

    @contextlib.asynccontextmanager
    async def call(self, owner: str, grant: ToolGrant, call: str) -> AsyncIterator[CallLease]:
        """A way out for one call; see :class:`clawbox.egress.door.Door`."""
        shared = self._sidecar_for(self._grant_of(owner, grant))
        shared.calls += 1
        if shared.idle is not None:
            shared.idle.cancel()
            shared.idle = None
        try:
            door = await asyncio.shield(shared.opened)
            token = secrets.token_urlsafe(_TOKEN_BYTES)
            digest = hashlib.sha256(token.encode()).digest()
            with await _connect(door, digest, call) as connection:
                lease = CallLease(door, connection, token, self._limits.call_max_response_bytes)
                try:
                    yield lease
                finally:
                    door.revoke(digest)
                    lease.forget()
        finally:
            shared.calls -= 1
            if not shared.calls:
                self._rest(shared)

    def _grant_of(self, owner: str, grant: ToolGrant) -> Grant:
        rules = grant.network.rules
        credentials = tuple(sorted(grant.credentials))
        text = msgspec.json.encode([owner, [rule.to_json() for rule in rules], credentials])
        sandbox = f"wasm-{hashlib.sha256(text).hexdigest()[:32]}"
        return Grant(sandbox, owner, rules, credentials, self._on_shape, self._limits)

    def _sidecar_for(self, grant: Grant) -> _Shared:
        shared = self._shared.get(grant.sandbox)
        if shared is None:
            if len(self._serving) >= self._max_sidecars:
                self._make_room()
            former = self._serving.get(grant.sandbox)
            shared = self._shared[grant.sandbox] = _Shared(grant)
            task = self._tasks.create_task(self._serve(shared, former), name=f"way out {grant.sandbox}")
            self._serving[grant.sandbox] = task
        return shared

    async def _serve(self, shared: _Shared, former: asyncio.Task[None] | None) -> None:
        """Keep one sidecar for as long as it is wanted."""
        sandbox = shared.grant.sandbox
        try:
            if former is not None:
                await asyncio.wait([former])  # its namesake is gone first
            async with self._supervisor.sandbox(shared.grant) as door:
                shared.opened.set_result(door)
                await shared.over.wait()
        except ClawboxError as error:
            if shared.opened.done():
                raise
            self._end(shared)
            shared.opened.set_exception(error)
            shared.opened.exception()  # whoever asked may be gone
        finally:
            self._end(shared)
            shared.opened.cancel()
            if self._serving.get(sandbox) is asyncio.current_task():
                del self._serving[sandbox]

    def _rest(self, shared: _Shared) -> None:
        """No call uses it now."""
        if self._shared.get(shared.grant.sandbox) is shared:
            self._shared[shared.grant.sandbox] = self._shared.pop(shared.grant.sandbox)
            loop = asyncio.get_running_loop()
            shared.idle = loop.call_later(self._idle_seconds, self._end, shared)

    def _make_room(self) -> None:
        """End the one that is idle longest. Raises SANDBOX_UNAVAILABLE when all are in use."""
        idle = next((shared for shared in self._shared.values() if not shared.calls), None)
        if idle is None:
            raise ClawboxError(
                Reason.SANDBOX_UNAVAILABLE,
                "calls with {number} different grants are under way, each with a way out of its own",
                retry_after=1.0,
                number=len(self._shared),
            )
        self._end(idle)

    def _end(self, shared: _Shared) -> None:
        """No further call gets it."""
        if shared.idle is not None:
            shared.idle.cancel()
            shared.idle = None
        if self._shared.get(shared.grant.sandbox) is shared:
            del self._shared[shared.grant.sandbox]
        shared.over.set()


async def _connect(door: SandboxDoor, digest: bytes, call: str) -> socket.socket:
    """A connection to the sidecar, or to the next if it died this instant. Raises SANDBOX_UNAVAILABLE."""
    await door.ready()
    try:
        return door.connect(digest, call)
    except ClawboxError:
        await door.ready()
        return door.connect(digest, call)


class CallLease:
    """What one call has; see :class:`clawbox.egress.door.CallDoor`."""

    def __init__(
        self, door: SandboxDoor, connection: socket.socket, token: str, max_response_bytes: int
    ) -> None:
        self.connection = connection
        self.token = token
        self.max_response_bytes = max_response_bytes
        self.has_secrets = bool(door.grant.credentials)
        self._door = door
        self._streams: dict[str, int] = {}

    async def clean(self, stream: str, data: bytes, *, end: bool) -> bytes:
        """Take the known secrets of this sandbox out of one stream of output."""
        number = self._streams.setdefault(stream, next(_stream_numbers))
        try:
            return await self._door.clean(number, data, end=end, shapes=False)
        finally:
            if end:
                self._streams.pop(stream, None)

    def forget(self) -> None:
        """Nobody wants the rest of any stream."""
        while self._streams:
            self._door.forget_stream(self._streams.popitem()[1])


_stream_numbers = itertools.count(1)
