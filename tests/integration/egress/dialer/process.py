"""A dialer in its own process, as control runs it, and sidecars of the test's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import msgspec

from clawbox.children.channel import FrameProtocol
from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.handing import hand
from clawbox.children.launcher import Launcher
from clawbox.children.uids import UidRange
from clawbox.egress.dialer.client import DialerClient
from clawbox.egress.dialer.messages import MAX_FRAME_BYTES, AddressPolicySpec, Enrol, FromDialer, Ready
from clawbox.egress.messages import Grant, Handed, Limits
from clawbox.network_rules import NetworkRule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from clawbox.children.child import Child

FIRST_UID = 914_000


class DialerProcess:
    """Control's side of it."""

    def __init__(self, child: Child, descriptors: socket.socket) -> None:
        self.child = child
        self.descriptors = descriptors
        self.heard: asyncio.Queue[FromDialer] = asyncio.Queue()
        self.broken = asyncio.get_running_loop().create_future()
        self.channel: FrameProtocol[FromDialer] = FrameProtocol(
            msgspec.msgpack.Decoder(FromDialer),
            self.heard.put_nowait,
            self.broken.set_result,
            max_bytes=MAX_FRAME_BYTES,
        )
        self.owned = contextlib.ExitStack()
        self._last = 0

    async def hears(self) -> FromDialer:
        async with asyncio.timeout(20):
            return await self.heard.get()

    def client(self, *rules: object, limits: Limits | None = None) -> DialerClient:
        grant = Grant("sandbox", "owner", tuple(map(NetworkRule.parse, rules)), limits=limits or Limits())
        client = DialerClient(self.enrol(grant), grant.limits)
        self.owned.callback(client.close)
        return client

    def enrol(self, grant: Grant) -> socket.socket:
        """The sidecar's end."""
        self._last += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            hand(self.descriptors, Handed("sidecar", self._last), theirs.fileno())
        self.channel.send(Enrol(self._last, grant))
        return ours


@contextlib.asynccontextmanager
async def dialer_process(trusted: Iterable[str] = ("127.0.0.0/8", "::1/128")) -> AsyncIterator[DialerProcess]:
    """A confined dialer that has its policy."""
    uids = UidRange(FIRST_UID, 10) if can_have_own_uids() else None
    async with Launcher({"dialer": "clawbox.egress.dialer.main:DIALER"}, uids) as launcher:
        child, channel, descriptors = await launcher.fork("dialer")
        process = DialerProcess(child, descriptors)
        loop = asyncio.get_running_loop()
        with process.owned, descriptors:
            await loop.create_unix_connection(lambda: process.channel, sock=channel)
            assert await process.hears() == Ready()
            process.channel.send(AddressPolicySpec(tuple(trusted)))
            yield process
        process.channel.close()
        async with asyncio.timeout(20):
            await child.dead()
