"""One child process of the way out, as control speaks with it from its fork to its death."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from clawbox.children.channel import ChannelClosedError, FrameProtocol
from clawbox.children.handing import hand
from clawbox.egress.messages import Handed

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import msgspec

    from clawbox.children.child import Child

_log = logging.getLogger(__name__)

Message = TypeVar("Message")


class Forker(Protocol):
    """What makes children: :class:`clawbox.children.launcher.Launcher`."""

    async def fork(
        self, kind: str, *, data_bytes: int | None = None
    ) -> tuple[Child, socket.socket, socket.socket]:
        """A new child, control's end of its channel, and of the socket over which it is handed descriptors.

        Raises :class:`~clawbox.children.launcher.ChildrenUnavailableError`.
        """


class ChildProcess(Generic[Message]):
    """A child and both ways to it. A child that breaks the protocol is killed."""

    def __init__(
        self,
        kind: str,
        child: Child,
        descriptors: socket.socket,
        protocol: Callable[[Callable[[Exception | None], None]], FrameProtocol[Message]],
    ) -> None:
        self.pid = child.pid
        """For people only."""
        self._kind = kind
        self._child = child
        self._descriptors = descriptors
        self._channel_ended = False
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._protocol = protocol(self._broken)
        child.when_dead(self._check_gone)

    @classmethod
    async def start(
        cls,
        forker: Forker,
        kind: str,
        decoder: msgspec.msgpack.Decoder[Message],
        on_message: Callable[[Message], None],
        *,
        max_bytes: int,
    ) -> ChildProcess[Message]:
        """Fork one. ``on_message`` may raise :class:`~clawbox.children.channel.FrameError`, which kills it.

        Raises :class:`~clawbox.children.launcher.ChildrenUnavailableError` and OSError.
        """
        child, channel, descriptors = await forker.fork(kind)
        process = cls(
            kind,
            child,
            descriptors,
            lambda broken: FrameProtocol(decoder, on_message, broken, max_bytes=max_bytes),
        )
        try:
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: process._protocol, sock=channel)
        except BaseException:
            child.kill()
            channel.close()
            descriptors.close()
            raise
        return process

    @property
    def alive(self) -> bool:
        """Whether it can still be told something."""
        return not self._channel_ended and self._child.alive

    def send(self, message: object) -> None:
        """Tell it something; what a dead one is told is lost."""
        self._protocol.send(message)

    def hand(self, purpose: str, number: int, descriptor: int) -> None:
        """Hand it a duplicate of a descriptor.

        Raises ChannelClosedError when it is gone; one that takes nothing any more is killed, and so is gone.
        """
        if not self.alive:
            raise ChannelClosedError
        try:
            hand(self._descriptors, Handed(purpose, number), descriptor)
        except OSError as error:
            _log.warning("%s %d takes no descriptor and is killed: %s", self._kind, self.pid, error)
            self.kill()
            raise ChannelClosedError from error

    def kill(self) -> None:
        """End it."""
        self._child.kill()

    async def gone(self) -> None:
        """Return once it is dead and everything that it said was read."""
        await asyncio.shield(self._gone)

    async def end(self) -> None:
        """End it, and return when it is dead."""
        self.kill()
        self._protocol.close()
        self._broken(None)
        await self._child.dead()
        await self.gone()

    def _broken(self, error: Exception | None) -> None:
        if error is not None:
            _log.warning("%s %d broke the protocol and is killed: %s", self._kind, self.pid, error)
        self._channel_ended = True
        self.kill()
        self._descriptors.close()
        self._check_gone()

    def _check_gone(self) -> None:
        if self._channel_ended and not self._child.alive and not self._gone.done():
            self._gone.set_result(None)
