"""One sandbox's way out, as control sees it: its sidecar, kept alive, and what leads to it.

Whatever a sidecar had, control has too (duplicates of listeners, digests of tokens, the grant), so that a
dead one is followed by another at the same sockets (docs/security.md, 58). Between the two nothing is
answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from clawbox.children.channel import ChannelClosedError, FrameError
from clawbox.children.launcher import ChildrenUnavailableError
from clawbox.egress.cleaning import OutputCleaner
from clawbox.egress.crashes import Crashes
from clawbox.egress.joining import joined
from clawbox.egress.listeners import Listeners
from clawbox.egress.messages import (
    MAX_FRAME_BYTES,
    Activity,
    Admit,
    AuditState,
    Cleaned,
    CloseListeners,
    Configure,
    Finish,
    Finished,
    FromSidecar,
    Grant,
    Peer,
    PeerChecked,
    Ready,
    Revoke,
    Row,
    Spent,
    Suspend,
    Suspended,
    Unwritten,
)
from clawbox.egress.process import ChildProcess
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clawbox.egress.cleaning import CleanOutput
    from clawbox.egress.dialer.control import DialerControl
    from clawbox.egress.keeper.control import Keeper
    from clawbox.egress.process import Forker
    from clawbox.egress.recording import EgressUsage, SandboxRecorder
    from clawbox.egress.spending import Spending

SIDECAR: Final = "sidecar"
"""The launcher's name of the kind."""
START_SECONDS: Final = 10.0
"""How long a sidecar may take until it serves, and whoever needs one waits."""
FINISH_SECONDS: Final = 5.0
"""How long a sidecar may take to end what is under way before it is killed."""

_log = logging.getLogger(__name__)
_decoder: msgspec.msgpack.Decoder[FromSidecar] = msgspec.msgpack.Decoder(FromSidecar)


class Restarts(Protocol):
    """Where restarts are counted: :class:`clawbox.telemetry.Metrics`."""

    def egress_restarted(self, process: str) -> None:
        """A process ended by itself."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all doors of a server share."""

    forker: Forker
    keeper: Keeper
    dialer: DialerControl
    upstream_ca: tuple[str, ...]
    spending: Spending
    number: Callable[[], int]
    """Gives numbers that were never given before."""
    recordable: Callable[[], bool]
    restarts: Restarts


class SandboxDoor:
    """Keeps one sidecar serving, from :meth:`open` until :meth:`close`."""

    def __init__(self, grant: Grant, around: Surroundings, recorder: SandboxRecorder) -> None:
        self.grant = grant
        self.tunnels = 0
        """Open now."""
        self._around = around
        self._recorder = recorder
        self._process: ChildProcess[FromSidecar] | None = None
        self._ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._failure = ""
        self._closing = False
        self._finished = False
        self._retired = False
        self._listeners = Listeners(around.dialer)
        self._tokens: dict[bytes, Admit] = {}
        self._crashes = Crashes()
        self._cleaner = OutputCleaner()
        self._keeping: asyncio.Task[None] | None = None
        self._ca_pem = ""
        self._holds: Callable[[int], bool] = lambda _: False

    async def open(self, tasks: asyncio.TaskGroup) -> None:
        """Start the sidecar and return once it serves; it is kept alive by a task of ``tasks``.

        Raises SANDBOX_UNAVAILABLE.
        """
        self._keeping = tasks.create_task(self._keep(), name=f"sidecar of {self.grant.sandbox}")
        try:
            await self.ready()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the sidecar, and remove what led to it; nothing happens the second time.

        What is under way ends, and has its row: nothing is lost by leaving at once.
        """
        if not self._closing:
            self._closing = True
            await self._finish()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        self._listeners.close()
        self._recorder.close()

    async def _finish(self) -> None:
        process = self._process
        if process is None or not self.serving:
            return
        process.send(Finish())
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await process.gone()
        except TimeoutError:
            self._recorder.event("egress_gap", "recorded", "sidecar did not end when it was told to")
        else:
            if not self._finished:
                self._recorder.event("egress_gap", "recorded", "sidecar ended before it had told all")

    async def ready(self) -> None:
        """Return once the sidecar serves. Raises SANDBOX_UNAVAILABLE when it does not, or never will."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(self._ready)
        except TimeoutError:
            raise _unavailable("its sidecar does not start in time") from None

    @property
    def serving(self) -> bool:
        """Whether its sidecar serves just now."""
        return self._ready.done() and self._ready.exception() is None

    @property
    def failure(self) -> str:
        """Why its sidecar is not started any more; empty while it is."""
        return self._failure

    @property
    def usage(self) -> EgressUsage:
        """What the sandbox did outside since this was opened, over all lives of its sidecar."""
        return self._recorder.usage

    @property
    def ca_pem(self) -> str:
        """The certificate of the sandbox's own CA, the same over restarts."""
        return self._ca_pem

    # What leads to it

    def admit(self, token: bytes, call: str = "") -> None:
        """Accept requests with the token that has this SHA-256, now and after restarts."""
        self._recorder.expect(call)
        self._tokens[token] = admit = Admit(token, call)
        self._send(admit)

    def revoke(self, token: bytes) -> None:
        """Refuse it from now on, and end what is under way with it."""
        if self._tokens.pop(token, None) is not None:
            self._send(Revoke(token))

    def listen_unix(self, path: Path, holds: Callable[[int], bool]) -> None:
        """Make a Unix socket that the sidecar serves; see UnixListener for what is raised.

        Of a connection nothing is read unless ``holds`` says of the process that made it, by its pid here,
        that it is the sandbox's, now (docs/security.md, 74). It is asked at once and must not block.
        """
        self._holds = holds
        self._listeners.add_unix(path, self._hand)

    def listen_tcp(self, sock: socket.socket) -> None:
        """Have the sidecar serve a socket that listens, TCP as a rule; requests there need the token.

        ``sock`` is closed with the door.
        """
        self._listeners.add_tcp(sock, self._hand, namespace=False)

    def listen_namespace(self, sock: socket.socket) -> None:
        """As :meth:`listen_tcp`, for one bound in the sandbox's own network namespace: no token is needed."""
        self._listeners.add_tcp(sock, self._hand, namespace=True)

    def connect(self, token: bytes, call: str) -> socket.socket:
        """A connection to the sidecar, for requests with this token, which is accepted from now on.

        A Unix stream socket in blocking mode, the caller's to close. Raises SANDBOX_UNAVAILABLE.
        """
        process = self._process
        if self._retired:
            raise _unavailable("it ended")
        if process is None or not self.serving:
            raise _unavailable("its sidecar does not run just now")
        self._recorder.expect(call)
        number = self._around.number()
        # Served only when its token is known there: the two go over different sockets.
        self._tokens[token] = Admit(token, call)
        process.send(Admit(token, call, number))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                process.hand("connection", number, theirs.fileno())
            except ChannelClosedError as error:
                ours.close()
                self.revoke(token)
                self._await_next()
                raise _unavailable("its sidecar ended just now") from error
        return ours

    def retire(self) -> None:
        """Close the listeners, and serve no request any more: what is left is to clean output."""
        self._retired = True
        self._listeners.close()
        for token in list(self._tokens):
            self.revoke(token)
        self._send(CloseListeners())

    async def clean(self, stream: int, data: bytes, *, end: bool, shapes: bool) -> bytes:
        """Take the sandbox's known secrets out of a stream of output, of which ``data`` is the next piece.

        ``stream`` is a number that no other stream of this server has. Raises REDACTION_UNAVAILABLE; then
        nothing of the stream may be shown any more.
        """
        return (await self.scan(stream, data, end=end, shapes=shapes)).data

    def new_stream(self) -> int:
        """A number that no other stream of output has."""
        return self._around.number()

    async def scan(
        self, stream: int, data: bytes, *, end: bool = False, flush: bool = False, shapes: bool
    ) -> CleanOutput:
        """As :meth:`clean`, and what was found; with ``flush`` nothing is held back, and the stream goes on.

        ``shapes``: everything that the output of tools is searched for, not known secrets alone.
        """
        if not self._ready.done():
            with contextlib.suppress(ClawboxError):
                await self.ready()
        process = self._process if self.serving else None
        return await self._cleaner.clean(process, stream, data, end=end, shapes=shapes, flush=flush)

    def forget_stream(self, stream: int) -> None:
        """Nobody wants the rest of a stream of output."""
        self._cleaner.forget(stream)

    def audit_state(self, *, available: bool) -> None:
        """Rows can be written, or cannot."""
        self._send(AuditState(available))

    # Its life

    async def _keep(self) -> None:
        """Start a sidecar whenever there is none, until it is hopeless."""
        try:
            while True:
                await self._live_once()
                if self._closing or not self._may_restart():
                    return
                await asyncio.sleep(self._crashes.pause(time.monotonic()))
        finally:
            self._not_serving("its sidecar was stopped")

    async def _live_once(self) -> None:
        try:
            process = await ChildProcess.start(
                self._around.forker, SIDECAR, _decoder, self._received, max_bytes=MAX_FRAME_BYTES
            )
        except (ChildrenUnavailableError, OSError) as error:
            # Not this sandbox's fault, so it is tried again for ever; but nobody is kept waiting for it.
            _log.error("the sidecar of %s cannot be started: %s", self.grant.sandbox, error)
            self._not_serving(f"no sidecar can be started ({error})")
            await asyncio.sleep(getattr(error, "retry_after", 1.0))
            self._await_next()
            return
        self._process = process
        was_ready = False
        try:
            async with joined(process, self.grant, self._around.keeper, self._around.dialer):
                try:
                    was_ready = await self._serve(process)
                finally:
                    self._process = None
        finally:
            # Cancelled or not: nothing of it is left.
            await asyncio.shield(process.end())
            self._lost()
        self._crashed("ended" if was_ready else "ended before it served")

    async def _serve(self, process: ChildProcess[FromSidecar]) -> bool:
        """Set a sidecar up and stay until it is gone; whether it ever served."""
        try:
            self._set_up(process)
            async with asyncio.timeout(START_SECONDS):
                await self._until_ready_or_gone(process)
        except (ChannelClosedError, TimeoutError):
            process.kill()
        was_ready = self.serving
        await process.gone()
        return was_ready

    def _set_up(self, process: ChildProcess[FromSidecar]) -> None:
        """Tell a new sidecar everything at once; it says when it has all of it."""
        spent = self._around.spending.of(self.grant.sandbox)
        process.send(Configure(self.grant, self._around.upstream_ca, spent))
        if not self._around.recordable():
            process.send(AuditState(available=False))
        if self._recorder.suspends:
            process.send(Suspend())
        for admit in self._tokens.values():
            process.send(admit)
        self._listeners.hand_all(process.hand)
        if self._retired:
            process.send(CloseListeners())

    async def _until_ready_or_gone(self, process: ChildProcess[FromSidecar]) -> None:
        gone = asyncio.create_task(process.gone())
        self._ready.add_done_callback(lambda _: gone.cancel())
        try:
            await asyncio.wait([gone])
        finally:
            gone.cancel()

    def _received(self, message: FromSidecar) -> None:
        match message:
            case Row():
                before = self._recorder.suspends
                self._recorder.row(message)
                if self._recorder.suspends and not before:
                    self._recorder.suspended()
                    self._send(Suspend())
            case Cleaned():
                self._cleaner.answered(message)
                self._recorder.cleaned(message.found)
            case Peer(number, pid):
                self._check_peer(number, pid)
            case Activity(tunnels) if 0 <= tunnels <= self.grant.limits.max_tunnels:
                self.tunnels = tunnels
            case Unwritten(count):
                self._recorder.unwritten(count)
            case Spent(credential) if credential in self.grant.credentials:
                self._around.spending.note(self.grant.sandbox, message)
            case Suspended():
                self._recorder.suspended()
            case Finished():
                self._finished = True
            case Ready(ca_pem) if not self._ready.done():
                self._ca_pem = ca_pem
                self._ready.set_result(ca_pem)
            case _:
                raise FrameError(f"{type(message).__name__} out of turn")

    def _check_peer(self, number: int, pid: int) -> None:
        inside = self._holds(pid)
        if not inside:
            self._recorder.stranger()
        self._send(PeerChecked(number, inside))

    def _lost(self) -> None:
        """Nothing that was asked of the sidecar will be answered."""
        self.tunnels = 0
        self._cleaner.lost()
        self._await_next()

    def _crashed(self, what: str) -> None:
        if self._closing:
            return
        self._crashes.add(time.monotonic())
        self._around.restarts.egress_restarted(SIDECAR)
        # Requests that were under way have no row of their own (property 55).
        self._recorder.event("egress_gap", "recorded", f"sidecar {what}")

    def _may_restart(self) -> bool:
        if not self._crashes.hopeless(time.monotonic()):
            return True
        self._failure = str(self._crashes)
        _log.error("%s has no way out any more: %s", self.grant.sandbox, self._failure)
        self._recorder.event("egress_failed", "denied", self._failure)
        self._listeners.close()
        return False

    def _await_next(self) -> None:
        if self._ready.done():
            self._ready = asyncio.get_running_loop().create_future()

    def _not_serving(self, why: str) -> None:
        self._await_next()
        self._ready.set_exception(_unavailable(self._failure or why))
        self._ready.exception()  # nobody need have waited for it

    @property
    def _hand(self) -> Callable[[str, int, int], None] | None:
        return None if self._process is None else self._process.hand

    def _send(self, message: object) -> None:
        if self._process is not None:
            self._process.send(message)


def _unavailable(why: str) -> ClawboxError:
    return ClawboxError(
        Reason.SANDBOX_UNAVAILABLE, "the sandbox has no way out: {why}", retry_after=1.0, why=why
    )
