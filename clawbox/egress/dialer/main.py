"""The dialer's process: one loop, which waits for nobody, and threads that wait for name servers."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import re
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.children.channel import FrameError, FrameProtocol
from clawbox.children.event_loop import EventLoop
from clawbox.children.filters import dialing
from clawbox.children.handing import receive_handed
from clawbox.children.kind import Profile
from clawbox.egress.dialer.messages import Ready, ToDialer
from clawbox.egress.dialer.resolver import look_up
from clawbox.egress.dialer.routes import Routes, open_netlink
from clawbox.egress.dialer.service import DialerService
from clawbox.egress.messages import MAX_GRANT_BYTES, Handed

if TYPE_CHECKING:
    from clawbox.egress.dialer.messages import Closed

_STACK_BYTES: Final = 512 << 10
"""Of a thread that looks a name up: the C library takes what is large from the heap."""
_SOURCES: Final = Path("/etc/nsswitch.conf")


class Dialing:
    """The kind: see :class:`clawbox.children.kind.Kind`."""

    name = "clawbox-dialer"
    profile = Profile(filter=dialing, network=True, empty_root=False, descriptors=65_536, threads=4_096)

    def __init__(self) -> None:
        self._loop: EventLoop | None = None
        self._netlink = -1

    def preload(self) -> None:
        """Load what the C library would load at the first look-up, which a confined child could not."""
        _load_sources(_SOURCES)
        with contextlib.suppress(OSError):
            look_up("localhost")

    def open_own(self) -> tuple[int, ...]:
        """The event loop, and a socket to ask for this machine's addresses."""
        self._loop = EventLoop()
        self._netlink = open_netlink()
        return (*self._loop.descriptors, self._netlink)

    def main(self, channel: int, descriptors: int) -> None:
        """Serve until control is gone."""
        assert self._loop is not None
        self._loop.run(_serve(channel, descriptors, Routes(self._netlink)))


DIALER = Dialing()


async def _serve(channel: int, descriptors: int, routes: Routes) -> None:
    """Until the channel ends, or control says what it never would."""
    threading.stack_size(_STACK_BYTES)  # of threads from here on
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    handed = msgspec.msgpack.Decoder(Handed)

    def end(_: Exception | None = None) -> None:
        if not over.done():
            over.set_result(None)

    def closed(message: Closed) -> None:
        control.send(message)

    def receive() -> None:
        try:
            received = receive_handed(descriptors, handed, wait=False)
        except BlockingIOError:
            return
        except FrameError:
            end()
            return
        if received is None:
            end()
            return
        message, descriptor = received
        service.hand(
            message.number, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=descriptor)
        )

    async with DialerService(routes.own, look_up, closed) as service:
        control = FrameProtocol(
            msgspec.msgpack.Decoder(ToDialer), service.take, end, max_bytes=MAX_GRANT_BYTES
        )
        await loop.connect_accepted_socket(
            lambda: control, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=channel)
        )
        loop.add_reader(descriptors, receive)
        control.send(Ready())
        try:
            await over
        finally:
            loop.remove_reader(descriptors)
            control.close()


def _load_sources(configuration: Path) -> None:
    """Load the modules that nsswitch.conf(5) names for hosts; the C library finds them by their names."""
    try:
        text = configuration.read_text("utf-8", "replace")
    except OSError:
        return
    line = re.search(r"^\s*hosts:([^#\n]*)", text, re.MULTILINE)
    for source in re.sub(r"\[[^]]*\]", " ", line[1] if line else "").split():
        with contextlib.suppress(OSError):  # what is not installed is no source then either
            ctypes.CDLL(f"libnss_{source}.so.2")
