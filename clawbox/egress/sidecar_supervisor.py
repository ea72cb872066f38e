"""One sandbox's sidecar, kept running: one that ends by itself is followed by another, while there is hope.

Between the two nothing is answered (docs/security.md, 58). When to start the next one is ``crashes``' to say;
what it is told, and what it says, is the door's (``sandbox_door``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.children.channel import ChannelClosedError, FrameError
from clawbox.children.launcher import ChildrenUnavailableError
from clawbox.egress.crashes import Crashes
from clawbox.egress.joining import joined
from clawbox.egress.messages import MAX_FRAME_BYTES, Finish, Finished, FromSidecar, Ready
from clawbox.egress.process import ChildProcess
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.messages import Grant
    from clawbox.egress.recording import SandboxRecorder
    from clawbox.egress.surroundings import Surroundings

SIDECAR: Final = "sidecar"
"""The launcher's name of the kind."""
START_SECONDS: Final = 10.0
"""How long a sidecar may take until it serves, and whoever needs one waits."""
FINISH_SECONDS: Final = 5.0
"""How long a sidecar may take to end what is under way before it is killed."""

_log = logging.getLogger(__name__)
_decoder: msgspec.msgpack.Decoder[FromSidecar] = msgspec.msgpack.Decoder(FromSidecar)


class SidecarSupervisor:
    """Keeps one sidecar running, from :meth:`start` until :meth:`close`."""

    def __init__(
        self,
        grant: Grant,
        around: Surroundings,
        recorder: SandboxRecorder,
        *,
        set_up: Callable[[ChildProcess[FromSidecar]], None],
        received: Callable[[FromSidecar], None],
        lost: Callable[[], None],
        given_up: Callable[[], None],
    ) -> None:
        """The callables are what the door does in the course of each life.

        ``set_up`` tells a new sidecar everything at once; it may raise ChannelClosedError. ``received`` takes
        what it says, gives :meth:`heard` what that is for, and may raise FrameError, which kills it. ``lost``
        is called when it is gone: nothing that it was asked will be answered. ``given_up`` is called when no
        other follows.
        """
        self._grant = grant
        self._around = around
        self._recorder = recorder
        self._set_up = set_up
        self._received = received
        self._lost = lost
        self._given_up = given_up
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = False
        self._finished = False
        self._crashes = Crashes()
        self._keeping: asyncio.Task[None] | None = None
        self.process: ChildProcess[FromSidecar] | None = None
        """The one that there is, whether or not it serves yet."""
        self.failure = ""
        """Why no sidecar is started any more; empty while one is."""
        self.ca_pem = ""
        """The certificate of the sandbox's own CA, the same over restarts; empty until one has served."""

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start a sidecar, and keep one running in a task of ``tasks``."""
        self._keeping = tasks.create_task(self._keep(), name=f"sidecar of {self._grant.sandbox}")

    async def close(self) -> None:
        """End the sidecar; the second time it is not told to first."""
        if not self._closing:
            self._closing = True
            await self._finish()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

    async def ready(self) -> None:
        """Return once the sidecar serves. Raises SANDBOX_UNAVAILABLE when it does not, or never will."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(self._ready)
        except TimeoutError:
            raise no_way_out("its sidecar does not start in time") from None

    @property
    def starting(self) -> bool:
        """Whether there is one to wait for."""
        return not self._ready.done()

    @property
    def serving(self) -> bool:
        """Whether it serves just now."""
        return self._ready.done() and self._ready.exception() is None

    def send(self, message: object) -> None:
        """Tell the sidecar something, if there is one: the next one is set up with it."""
        if self.process is not None:
            self.process.send(message)

    def heard(self, message: Ready | Finished) -> None:
        """The sidecar said this of itself. Raises FrameError when that is out of turn."""
        match message:
            case Finished():
                self._finished = True
            case Ready(ca_pem) if not self._ready.done():
                self.ca_pem = ca_pem
                self._ready.set_result(None)
            case _:
                raise FrameError(f"{type(message).__name__} out of turn")

    def await_next(self) -> None:
        """The sidecar was found dead: whoever needs one waits for the next."""
        if self._ready.done():
            self._ready = asyncio.get_running_loop().create_future()

    async def _finish(self) -> None:
        process = self.process
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

    # Its lives

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
            _log.error("the sidecar of %s cannot be started: %s", self._grant.sandbox, error)
            self._not_serving(f"no sidecar can be started ({error})")
            await asyncio.sleep(getattr(error, "retry_after", 1.0))
            self.await_next()
            return
        self.process = process
        was_ready = False
        try:
            async with joined(process, self._grant, self._around.keeper, self._around.dialer):
                try:
                    was_ready = await self._serve(process)
                finally:
                    self.process = None
        finally:
            # Cancelled or not: nothing of it is left.
            await asyncio.shield(process.end())
            self._lost()
            self.await_next()
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

    async def _until_ready_or_gone(self, process: ChildProcess[FromSidecar]) -> None:
        gone = asyncio.create_task(process.gone())
        self._ready.add_done_callback(lambda _: gone.cancel())
        try:
            await asyncio.wait([gone])
        finally:
            gone.cancel()

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
        self.failure = str(self._crashes)
        _log.error("%s has no way out any more: %s", self._grant.sandbox, self.failure)
        self._recorder.event("egress_failed", "denied", self.failure)
        self._given_up()
        return False

    def _not_serving(self, why: str) -> None:
        self.await_next()
        self._ready.set_exception(no_way_out(self.failure or why))
        self._ready.exception()  # nobody need have waited for it


def no_way_out(why: str) -> ClawboxError:
    """The error of who needs a sidecar when there is none."""
    return ClawboxError(
        Reason.SANDBOX_UNAVAILABLE, "the sandbox has no way out: {why}", retry_after=1.0, why=why
    )
