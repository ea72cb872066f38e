"""The sidecar's process: what control, keeper and dialer send it becomes one Proxy, which serves one sandbox.

It is confined before it reads the first byte (docs/security.md, 61): no network, no files, and no way to make
a socket. Listeners and connections are handed to it. It ends when its channel to control does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

import msgspec

from clawbox.children.channel import FrameError, FrameProtocol
from clawbox.children.event_loop import EventLoop
from clawbox.children.filters import serving
from clawbox.children.handing import receive_handed
from clawbox.children.kind import Profile
from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.dialer.client import DialerClient
from clawbox.egress.keeper.secrets import MAX_SECRETS_BYTES, Secrets
from clawbox.egress.leaks import LeakDetector, phrase_patterns, shape_patterns
from clawbox.egress.messages import (
    MAX_GRANT_BYTES,
    Activity,
    Admit,
    AuditState,
    Clean,
    Cleaned,
    CloseListeners,
    Configure,
    Finish,
    Finished,
    Found,
    Handed,
    Peer,
    PeerChecked,
    Ready,
    Revoke,
    Row,
    Spent,
    Suspend,
    Suspended,
    ToSidecar,
    Unwritten,
)
from clawbox.egress.proxy import Proxy
from clawbox.egress.tls import preload as preload_tls
from clawbox.egress.tls.upstream import UpstreamTls
from clawbox.network_rules import ShapeAction

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.credentials import SandboxSecrets
    from clawbox.egress.scanner import StreamScanner
    from clawbox.egress.tls.authority import Authority

MAX_DESCRIPTORS: Final = 1300
"""For connections from the sandbox, those to upstreams, those that are kept, and its own."""
MAX_UNSENT_BYTES: Final = 256 << 10
"""What may wait for control to read it before new requests are refused: some hundreds of rows."""
DATA_BYTES: Final = 256 << 20
"""Private memory that it may have beside what it inherits (RLIMIT_DATA)."""
MAX_THREADS: Final = 4
"""The main one and that of the event loop; the others are room for libraries."""
_MAX_FOUND: Final = 64
_PEER: Final = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid and gid of who connected, as the kernel noted them then."""


class _Control(FrameProtocol[ToSidecar]):
    """The channel to control, and so what the proxy writes its rows to."""

    def __init__(self, sidecar: _Sidecar) -> None:
        super().__init__(
            msgspec.msgpack.Decoder(ToSidecar), sidecar.told, sidecar.end, max_bytes=MAX_GRANT_BYTES
        )
        self.recordable = True
        """What control says: whether the audit log takes rows."""
        self._stalled = False
        self._unwritten = 0
        self._tunnels = self._tunnels_told = 0

    @property
    def available(self) -> bool:
        """Whether requests may begin: their rows would be taken."""
        return self.recordable and not self._stalled

    def write(self, row: Row) -> None:
        """Send a row. While control does not read, what was refused anyway is only counted."""
        if self._stalled and row.decision == "denied":
            self._unwritten += 1
        else:
            self.send(row)

    def tunnels(self, count: int) -> None:
        """Tell how many tunnels are open."""
        self._tunnels = count
        if not self._stalled:
            self._tell_tunnels()

    def suspended(self) -> None:
        """Tell that credentials are attached no more."""
        self.send(Suspended())

    def finish(self) -> None:
        """Close the channel once control has read all that was sent."""
        if self._transport is not None:
            self._transport.close()

    def spent(self, spent: Spent) -> None:
        """Tell what was used of a budget."""
        self.send(spent)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio)."""
        super().connection_made(transport)
        cast("asyncio.Transport", transport).set_write_buffer_limits(MAX_UNSENT_BYTES, MAX_UNSENT_BYTES // 4)

    def pause_writing(self) -> None:
        """Control does not read (asyncio)."""
        self._stalled = True

    def resume_writing(self) -> None:
        """It does again (asyncio)."""
        self._stalled = False
        if self._unwritten:
            unwritten, self._unwritten = self._unwritten, 0
            self.send(Unwritten(unwritten))
        self._tell_tunnels()

    def _tell_tunnels(self) -> None:
        if self._tunnels != self._tunnels_told:
            self._tunnels_told = self._tunnels
            self.send(Activity(self._tunnels))


class _Cleaner:
    """Takes known secrets out of streams of output."""

    def __init__(self) -> None:
        self._streams: dict[int, StreamScanner] = {}

    def clean(self, request: Clean, detector: LeakDetector) -> Cleaned:
        """The answer to one piece of a stream, which is cleaned of what was known when it began."""
        scanner = self._streams.get(request.stream)
        if scanner is None:
            scanner = self._streams[request.stream] = detector.output(shapes=request.shapes)
        data = scanner.feed(request.data)
        if request.end:
            del self._streams[request.stream]
            data += scanner.finish()
        elif request.flush:
            data += scanner.flush()
        found = tuple(
            Found(one.name, one.kind, one.place, one.action, count)
            for one, count in scanner.found.most_common(_MAX_FOUND)
        )
        scanner.found.clear()
        return Cleaned(request.stream, data, end=request.end, found=found, rests=scanner.rests)


class _Sidecar:
    """One life of the process, from its confinement to the end of its channel."""

    def __init__(self, descriptors: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptors = descriptors
        self._over = asyncio.Event()
        self._control = _Control(self)
        self._cleaner = _Cleaner()
        self._handed = msgspec.msgpack.Decoder(Handed)
        self._configure: Configure | None = None
        self._dialer_end: socket.socket | None = None
        self._dialer: DialerClient | None = None
        self._keeper: FrameProtocol[Secrets] | None = None
        self._secrets: SandboxSecrets | None = None
        self._authority: Authority | None = None
        self._proxy: Proxy | None = None
        self._waiting: list[Callable[[Proxy], None]] = []
        self._peers: dict[int, asyncio.Future[bool]] = {}
        self._asked = 0
        self._connections: dict[int, socket.socket | None] = {}  # None: its token came before it

    async def run(self, channel: int) -> None:
        """Serve until the channel ends. What is still open then, the kernel closes."""
        await self._loop.connect_accepted_socket(lambda: self._control, _stream(channel))
        self._loop.add_reader(self._descriptors, self._take)
        await self._over.wait()

    def end(self, _: Exception | None = None) -> None:
        """Control is gone, or something is wrong that nothing here can mend: nothing goes on."""
        self._over.set()

    def told(self, message: ToSidecar) -> None:
        """Control said something."""
        match message:
            case Configure() if self._configure is None:
                self._configure = message
                self._begin()
            case Admit(token, call, connection):
                self._with_proxy(lambda proxy: proxy.admit(token, call))
                if connection:
                    self._join(connection, self._connections.pop(connection, None))
            case Revoke(token):
                self._with_proxy(lambda proxy: proxy.revoke(token))
            case AuditState(available):
                self._control.recordable = available
            case Clean() if self._proxy is not None:
                self._control.send(self._cleaner.clean(message, self._proxy.detector))
            case Suspend():
                self._with_proxy(Proxy.suspend)
            case PeerChecked(number, inside) if (asked := self._peers.pop(number, None)) is not None:
                if not asked.done():
                    asked.set_result(inside)
            case CloseListeners():
                self._with_proxy(Proxy.close_listeners)
            case Finish():
                self._loop.create_task(self._finish()).add_done_callback(self._check)
            case _:
                raise FrameError(f"{type(message).__name__} out of turn")

    async def _finish(self) -> None:
        """End every request, each with its row (docs/security.md, 55), and then this process."""
        if self._proxy is not None:
            async with self._proxy:
                pass  # leaving it is what ends them
        self._control.send(Finished())
        self._control.finish()

    def _with_proxy(self, call: Callable[[Proxy], None]) -> None:
        """Now, or as soon as there is one."""
        if self._proxy is None:
            self._waiting.append(call)
        else:
            call(self._proxy)

    def _join(self, number: int, connection: socket.socket | None) -> None:
        """Serve a connection once both it and its token are there, in whichever order they come."""
        if connection is None:
            self._connections[number] = None
        else:
            self._with_proxy(lambda proxy: proxy.adopt(connection, token_required=True))

    def _take(self) -> None:
        """Take what control hands."""
        try:
            received = receive_handed(self._descriptors, self._handed, wait=False)
        except BlockingIOError:
            return
        except FrameError:
            received = None
        if received is None:
            self._loop.remove_reader(self._descriptors)
            self.end()
            return
        handed, descriptor = received
        match handed.purpose:
            case "dialer":
                self._use_dialer(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=descriptor))
            case "keeper":
                self._loop.create_task(self._use_keeper(_stream(descriptor))).add_done_callback(self._check)
            case "connection" if handed.number in self._connections:
                del self._connections[handed.number]
                self._join(handed.number, _stream(descriptor))
            case "connection":
                self._connections[handed.number] = _stream(descriptor)
            case "unix" | "tcp" | "namespace" as purpose:
                listener = socket.socket(fileno=descriptor)
                needed = purpose != "namespace"
                check = self._check_peer if purpose == "unix" else None
                self._with_proxy(
                    lambda proxy: proxy.listen(listener, token_required=needed, check_peer=check)
                )
            case _:
                os.close(descriptor)
                self.end()

    async def _check_peer(self, connection: socket.socket) -> bool:
        """Whether control finds who connected in the sandbox: from here no process can be seen."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, _, _ = _PEER.unpack(credentials)
        self._asked += 1
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._peers[self._asked] = answer
        self._control.send(Peer(self._asked, pid))
        return await answer

    def _use_dialer(self, end: socket.socket) -> None:
        if self._dialer is not None:
            self._dialer.replace(end)
            return
        if self._dialer_end is not None:
            self._dialer_end.close()
        self._dialer_end = end
        self._begin()

    async def _use_keeper(self, end: socket.socket) -> None:
        if self._keeper is not None:
            self._keeper.close()
        # A keeper that is gone takes nothing along: another one will be at the end of another socket.
        keeper: FrameProtocol[Secrets] = FrameProtocol(
            msgspec.msgpack.Decoder(Secrets), self._learn, lambda _: None, max_bytes=MAX_SECRETS_BYTES
        )
        self._keeper = keeper
        await self._loop.connect_accepted_socket(lambda: keeper, end)

    def _check(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            self.end()

    def _learn(self, secrets: Secrets) -> None:
        known = secrets.sandbox_secrets()
        if self._secrets is not None:
            known = known.after(self._secrets)
        self._secrets = known
        if self._proxy is not None:
            self._proxy.replace_secrets(known)
        else:
            self._authority = secrets.authority()
            self._begin()

    def _begin(self) -> None:
        """Serve, once everything is there that this takes."""
        configure, end, secrets, authority = self._configure, self._dialer_end, self._secrets, self._authority
        if configure is None or end is None or secrets is None or authority is None:
            return
        self._dialer_end = None
        self._dialer = DialerClient(end, configure.grant.limits)
        self._proxy = proxy = Proxy(
            configure.grant,
            secrets,
            dialer=self._dialer,
            rows=self._control,
            server_tls=authority,
            client_tls=UpstreamTls(configure.upstream_ca),
        )
        proxy.restore_spent(configure.spent)
        for call in self._waiting:
            call(proxy)
        self._waiting.clear()
        self._control.send(Ready(authority.ca_pem))


class Serving:
    """The kind: see :class:`clawbox.children.kind.Kind`."""

    name = "clawbox-egress"
    profile = Profile(filter=serving, descriptors=MAX_DESCRIPTORS, threads=MAX_THREADS, data_bytes=DATA_BYTES)

    def __init__(self) -> None:
        self._loop: EventLoop | None = None

    def preload(self) -> None:
        """Compile the shapes, read the system's certificates, and use once what loads code when used."""
        shape_patterns()
        phrase_patterns()
        preload_tls()
        nobodys = Credential("preload", Secret("\N{SNOWMAN}" * 20), ("preload.invalid",))
        frame = msgspec.msgpack.encode(Secrets.of([nobodys], {}, (), b""))
        known = msgspec.msgpack.decode(frame, type=Secrets).sandbox_secrets().known()
        LeakDetector(known).outbound_head("https://preload.invalid/", [], ShapeAction.BLOCK)

    def open_own(self) -> tuple[int, ...]:
        """The event loop."""
        self._loop = EventLoop()
        return self._loop.descriptors

    def main(self, channel: int, descriptors: int) -> None:
        """Serve until control is gone."""
        assert self._loop is not None
        self._loop.run(_serve(channel, descriptors))


SIDECAR = Serving()


async def _serve(channel: int, descriptors: int) -> None:
    await _Sidecar(descriptors).run(channel)


def _stream(descriptor: int) -> socket.socket:
    """All is said, so that nothing has to be asked of the kernel."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=descriptor)
    end.setblocking(False)  # noqa: FBT003
    return end
