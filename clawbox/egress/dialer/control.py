"""Control's side of the dialer: keeps one running, tells it grants, and gives each sidecar a socket to it.

A dialer that died is replaced: the new one gets the same addresses and grants, and every sidecar that still
lives a socket to it. What was being dialled fails; nothing is dialled meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import msgspec

from clawbox.children.channel import ChannelClosedError, FrameError
from clawbox.egress.dialer.messages import (
    MAX_FRAME_BYTES,
    AddressPolicySpec,
    Closed,
    Dismiss,
    Enrol,
    FromDialer,
    Ready,
    Why,
)
from clawbox.egress.keep_running import keep_running
from clawbox.egress.process import ChildProcess, Forker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from clawbox.egress.messages import Grant

KIND: Final = "dialer"
START_SECONDS: Final = 30.0
"""How long a dialer may take to say that it is ready."""

_DECODER: Final = msgspec.msgpack.Decoder[FromDialer](FromDialer)


@dataclass(eq=False, slots=True)
class Enrolment:
    """One sidecar that may have connections made, whichever dialer runs, until it is dismissed."""

    grant: Grant
    deliver: Callable[[socket.socket], None]
    closed: Callable[[str], None]
    number: int = 0


class DialerControl:
    """Runs the dialer while entered. ``forker`` knows the kind ``dialer``."""

    def __init__(
        self, forker: Forker, addresses: AddressPolicySpec, restarted: Callable[[], None] = lambda: None
    ) -> None:
        self._forker = forker
        self._addresses = addresses
        self._restarted = restarted
        self._enrolments: dict[int, Enrolment] = {}
        self._waiting: set[Enrolment] = set()
        self._last_number = 0
        self._process: ChildProcess[FromDialer] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.running = False
        """Whether there is a dialer that said that it is ready."""

    async def __aenter__(self) -> Self:
        self._supervisor = asyncio.create_task(
            keep_running(KIND, self._serve, self._restarted), name="dialer"
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._supervisor is not None
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor])

    def refuse_listener(self, place: tuple[str, int]) -> None:
        """Have nothing connect to this address and port from now on: this program listens there (15)."""
        self._use_listeners((*self._addresses.listeners, place))

    def forget_listener(self, place: tuple[str, int]) -> None:
        """This program listens there no more."""
        self._use_listeners(tuple(one for one in self._addresses.listeners if one != place))

    def _use_listeners(self, listeners: tuple[tuple[str, int], ...]) -> None:
        self._addresses = msgspec.structs.replace(self._addresses, listeners=tuple(dict.fromkeys(listeners)))
        self._send(self._addresses)

    def enrol(
        self, grant: Grant, deliver: Callable[[socket.socket], None], closed: Callable[[str], None]
    ) -> Enrolment:
        """Have connections made for a sidecar, by its grant.

        ``deliver`` is given the sidecar's end of a packet pair, which is closed after it returns, now or when
        there is a dialer, and again with each new one. It may raise ChannelClosedError. ``closed`` is told of
        a sidecar that the dialer closed because it broke the protocol.
        """
        enrolment = Enrolment(grant, deliver, closed)
        if self._process is None:
            self._waiting.add(enrolment)
        else:
            self._give(self._process, enrolment)
        return enrolment

    def dismiss(self, enrolment: Enrolment) -> None:
        """Nothing is dialled for it any more, and what is under way ends."""
        self._waiting.discard(enrolment)
        if self._enrolments.pop(enrolment.number, None) is not None:
            self._send(Dismiss(enrolment.number))

    # Its life

    async def _serve(self) -> None:
        """Start one dialer and stay until it is gone."""
        ready = self._ready = asyncio.get_running_loop().create_future()
        process = await ChildProcess.start(
            self._forker, KIND, _DECODER, self._received, max_bytes=MAX_FRAME_BYTES
        )
        gone = asyncio.create_task(process.gone(), name="dialer gone")
        try:
            process.send(self._addresses)
            self._process = process
            # What they ask is read when it is ready: nobody waits for that here.
            for enrolment in list(self._waiting):
                self._give(process, enrolment)
            async with asyncio.timeout(START_SECONDS):
                await asyncio.wait([gone, ready], return_when=asyncio.FIRST_COMPLETED)
            self.running = ready.done()
            await gone
        finally:
            self.running = False
            self._process = None
            self._waiting |= set(self._enrolments.values())
            self._enrolments.clear()
            gone.cancel()
            await process.end()

    def _give(self, process: ChildProcess[FromDialer], enrolment: Enrolment) -> None:
        """Make a pair, and hand the dialer its end and the sidecar the other."""
        self._last_number += 1
        enrolment.number = number = self._last_number
        self._waiting.discard(enrolment)
        self._enrolments[number] = enrolment
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, contextlib.suppress(ChannelClosedError):
            # Whichever of the two is gone, its death is noticed, and all this is done again.
            process.send(Enrol(number, enrolment.grant))
            process.hand("sidecar", number, ours.fileno())
            enrolment.deliver(theirs)

    def _received(self, message: FromDialer) -> None:
        match message:
            case Ready() if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
            case Closed(number, why):
                enrolment = self._enrolments.pop(number, None)
                if enrolment is not None and why is not Why.GONE:  # its death is noticed anyway
                    enrolment.closed(why.value)
            case _:
                raise FrameError(f"{type(message).__name__} out of turn")

    def _send(self, message: object) -> None:
        if self._process is not None:
            self._process.send(message)
