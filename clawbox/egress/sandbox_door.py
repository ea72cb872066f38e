"""One sandbox's way out, as control sees it: what leads to its sidecar, what that is told, and what it says.

Whatever a sidecar had, control has too (duplicates of listeners, digests of tokens, the grant), so that a
dead one is followed by another at the same sockets (docs/security.md, 58).
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from clawbox.children.channel import ChannelClosedError, FrameError
from clawbox.egress.cleaning import OutputCleaner
from clawbox.egress.listeners import Listeners
from clawbox.egress.messages import (
    Activity,
    Admit,
    AuditState,
    Cleaned,
    CloseListeners,
    Configure,
    Finished,
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
from clawbox.egress.sidecar_supervisor import SidecarSupervisor, no_way_out
from clawbox.errors import ClawboxError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from clawbox.egress.cleaning import CleanOutput
    from clawbox.egress.messages import FromSidecar, Grant
    from clawbox.egress.process import ChildProcess
    from clawbox.egress.recording import EgressUsage, SandboxRecorder
    from clawbox.egress.surroundings import Surroundings


class SandboxDoor:
    """One way out, with its sidecar behind it from :meth:`open` until :meth:`close`."""

    def __init__(self, grant: Grant, around: Surroundings, recorder: SandboxRecorder) -> None:
        self.grant = grant
        self.tunnels = 0
        """Open now."""
        self._around = around
        self._recorder = recorder
        self._retired = False
        self._listeners = Listeners(around.dialer)
        self._tokens: dict[bytes, Admit] = {}
        self._cleaner = OutputCleaner()
        self._holds: Callable[[int], bool] = lambda _: False
        self._sidecar = SidecarSupervisor(
            grant,
            around,
            recorder,
            set_up=self._set_up,
            received=self._received,
            lost=self._lost,
            given_up=self._listeners.close,
        )

    async def open(self, tasks: asyncio.TaskGroup) -> None:
        """Start the sidecar and return once it serves; it is kept alive by a task of ``tasks``.

        Raises SANDBOX_UNAVAILABLE.
        """
        self._sidecar.start(tasks)
        try:
            await self.ready()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the sidecar, and remove what led to it; nothing happens the second time.

        What is under way ends, and has its row: nothing is lost by leaving at once.
        """
        await self._sidecar.close()
        self._listeners.close()
        self._recorder.close()

    async def ready(self) -> None:
        """Return once the sidecar serves. Raises SANDBOX_UNAVAILABLE when it does not, or never will."""
        await self._sidecar.ready()

    @property
    def serving(self) -> bool:
        """Whether its sidecar serves just now."""
        return self._sidecar.serving

    @property
    def failure(self) -> str:
        """Why its sidecar is not started any more; empty while it is."""
        return self._sidecar.failure

    @property
    def usage(self) -> EgressUsage:
        """What the sandbox did outside since this was opened, over all lives of its sidecar."""
        return self._recorder.usage

    @property
    def ca_pem(self) -> str:
        """The certificate of the sandbox's own CA, the same over restarts."""
        return self._sidecar.ca_pem

    # What leads to it

    def admit(self, token: bytes, call: str = "") -> None:
        """Accept requests with the token that has this SHA-256, now and after restarts."""
        self._recorder.expect(call)
        self._tokens[token] = admit = Admit(token, call)
        self._sidecar.send(admit)

    def revoke(self, token: bytes) -> None:
        """Refuse it from now on, and end what is under way with it."""
        if self._tokens.pop(token, None) is not None:
            self._sidecar.send(Revoke(token))

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
        process = self._sidecar.process
        if self._retired:
            raise no_way_out("it ended")
        if process is None or not self.serving:
            raise no_way_out("its sidecar does not run just now")
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
                self._sidecar.await_next()
                raise no_way_out("its sidecar ended just now") from error
        return ours

    def retire(self) -> None:
        """Close the listeners, and serve no request any more: what is left is to clean output."""
        self._retired = True
        self._listeners.close()
        for token in list(self._tokens):
            self.revoke(token)
        self._sidecar.send(CloseListeners())

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
        begun = self._cleaner.has_begun(stream)
        process = await self._cleaning_process()
        try:
            return await self._cleaner.clean(process, stream, data, end=end, shapes=shapes, flush=flush)
        except ClawboxError:
            if begun or process is None or process.alive:
                raise
        # It may have been dying, and nobody knew. Nothing of the stream was shown: the next one can begin it.
        if process is self._sidecar.process:
            self._sidecar.await_next()
        process = await self._cleaning_process()
        return await self._cleaner.clean(process, stream, data, end=end, shapes=shapes, flush=flush)

    async def _cleaning_process(self) -> ChildProcess[FromSidecar] | None:
        """The sidecar, once it serves; None where there is none."""
        if self._sidecar.starting:
            with contextlib.suppress(ClawboxError):
                await self._sidecar.ready()
        return self._sidecar.process if self._sidecar.serving else None

    def forget_stream(self, stream: int) -> None:
        """Nobody wants the rest of a stream of output."""
        self._cleaner.forget(stream)

    def audit_state(self, *, available: bool) -> None:
        """Rows can be written, or cannot."""
        self._sidecar.send(AuditState(available))

    # What the sidecar is told, and says

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

    def _received(self, message: FromSidecar) -> None:
        match message:
            case Row():
                before = self._recorder.suspends
                self._recorder.row(message)
                if self._recorder.suspends and not before:
                    self._recorder.suspended()
                    self._sidecar.send(Suspend())
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
            case Ready() | Finished():
                self._sidecar.heard(message)
            case _:
                raise FrameError(f"{type(message).__name__} out of turn")

    def _check_peer(self, number: int, pid: int) -> None:
        inside = self._holds(pid)
        if not inside:
            self._recorder.stranger()
        self._sidecar.send(PeerChecked(number, inside))

    def _lost(self) -> None:
        """Nothing that was asked of the sidecar will be answered."""
        self.tunnels = 0
        self._cleaner.lost()

    @property
    def _hand(self) -> Callable[[str, int, int], None] | None:
        process = self._sidecar.process
        return None if process is None else process.hand
