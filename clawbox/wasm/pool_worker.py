"""One worker process as the pool sees it, from its fork to its death."""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
from typing import TYPE_CHECKING, Protocol

import msgspec

from clawbox.children.channel import ChannelClosedError, FrameProtocol
from clawbox.children.handing import hand
from clawbox.egress.messages import Handed
from clawbox.wasm.messages import BEGUN, FRAME_ALLOWANCE_BYTES, FromWorker, frame_limit
from clawbox.wasm.model import Outcome, RunResult

if TYPE_CHECKING:
    from clawbox.children.child import Child
    from clawbox.wasm.call import Call

_log = logging.getLogger(__name__)

_decoder = msgspec.msgpack.Decoder(FromWorker)


class Fit(enum.IntEnum):
    """How well a worker suits a call, best first."""

    READY = 0
    """It ran the same tool last, and what it made ready then is ready."""
    PREPARING = 1
    OTHER_TOOL = 2
    PREPARING_OTHER = 3


class Employer(Protocol):
    """What a worker tells of itself: :class:`clawbox.wasm.pool.WorkerPool`."""

    def received(self, worker: PoolWorker, message: FromWorker) -> None:
        """It said something. Raises :class:`~clawbox.children.channel.FrameError` when it should not have."""

    def broken(self, worker: PoolWorker) -> None:
        """Its channel ended, it broke the protocol, or it is dead."""

    def worker_gone(self, worker: PoolWorker) -> None:
        """It is dead, and everything that it said was read."""


class PoolWorker:
    """One child, from its fork to its death."""

    def __init__(self, child: Child, descriptors: socket.socket, pool: Employer) -> None:
        self.child = child
        self.descriptors = descriptors
        """Over which it is handed descriptors; closed when it is dead."""
        self.owner: str | None = None
        self.calls = 0
        self.call: Call | None = None
        self.last_digest = ""
        self.idle_since = 0.0
        self.preparing_since: float | None = None
        self.preparing: asyncio.TimerHandle | None = None
        self.why = "lost"
        """Why it ended, once it has; a worker that nobody ended is lost."""
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.left_its_call = False
        """Once it is dead: it died before it began the call that it had been given, and not because that was
        cancelled."""
        self.killed = False
        self.gone = False
        self._pool = pool
        self._channel_ended = False
        self.protocol: FrameProtocol[FromWorker] = FrameProtocol(
            _decoder, self._received, self._broken, max_bytes=FRAME_ALLOWANCE_BYTES
        )
        child.when_dead(self._dead)

    @property
    def connected(self) -> bool:
        """Whether the channel is in the hands of :attr:`protocol`."""
        return self.protocol.connected

    def kill(self, why: str) -> None:
        """End it. The first reason stands."""
        if not self.killed:
            self.killed = True
            self.why = why
        self.child.kill()

    def give(self, call: Call) -> None:
        """Send it the call that it is engaged for, and a duplicate of the connection to the call's sidecar.

        A worker that cannot take them is killed.
        """
        self._has_begun()  # which an earlier call left there
        self.protocol.limit(frame_limit(call.run.limits))
        if call.door is not None:
            self._hand(call.door.connection)
        self.protocol.send(call.frame(self.calls))

    def _hand(self, connection: socket.socket) -> None:
        try:
            hand(self.descriptors, Handed("connection", self.calls), connection.fileno())
        except (ChannelClosedError, OSError) as error:
            _log.warning("worker %d could not be handed its connection: %s", self.child.pid, error)
            self.kill("lost")

    def _received(self, message: FromWorker) -> None:
        self._pool.received(self, message)

    def _broken(self, error: Exception | None) -> None:
        # The channel's end is read before the death counts, so that nothing that was said is missed.
        if error is not None:
            _log.warning("worker %d broke the protocol and is killed: %s", self.child.pid, error)
        self._channel_ended = True
        self.child.kill()
        self._pool.broken(self)
        self._check_gone()

    def _dead(self) -> None:
        self._pool.broken(self)
        self._close_descriptors()
        self._check_gone()

    def _close_descriptors(self) -> None:
        if self.descriptors.fileno() >= 0:
            # Killed it may have been: one that makes its next instance for too long may have a call by then.
            self.left_its_call = self.why != "cancelled" and not self._has_begun()
            self.descriptors.close()

    def _has_begun(self) -> bool:
        """Whether it said that it begins a call since this was last asked."""
        try:
            return bool(self.descriptors.recv(len(BEGUN), socket.MSG_DONTWAIT))
        except (BlockingIOError, ConnectionResetError):
            return False  # reset: what it was handed for the call lies there unread

    def _check_gone(self) -> None:
        if self._channel_ended and not self.child.alive and not self.gone:
            self.gone = True
            self._close_descriptors()
            self._pool.worker_gone(self)

    def can_run(self, call: Call) -> bool:
        """Whether it has the code of the call's tool."""
        return call.digest in self.child.loaded and not self.child.orphaned

    def fit(self, call: Call) -> Fit:
        """How well it suits a call that it can run."""
        if self.preparing_since is None:
            return Fit.READY if self.last_digest == call.digest else Fit.OTHER_TOOL
        return Fit.PREPARING if self.last_digest == call.digest else Fit.PREPARING_OTHER

    def lost_result(self, call: Call, now: float) -> RunResult:
        """What became of the call that it ran when it died."""
        if call.overstayed:
            return call.lost(Outcome.TIMEOUT, f"ran longer than {call.run.limits.timeout_ms} ms", now)
        if self.why == "cancelled":
            return call.lost(Outcome.CANCELLED, "the server stopped", now)
        return call.lost(Outcome.SANDBOX_LOST, "the process of the sandbox died", now)
