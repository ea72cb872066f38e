"""The proxy as a whole: listeners in, connections served, everything ended at the end."""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from clawbox.egress.proxy.client import Client
from clawbox.egress.proxy.state import SandboxState
from clawbox.egress.proxy.upstream import Upstreams
from clawbox.egress.proxy.wire import Wire
from clawbox.egress.refusal import Denial, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from clawbox.egress.credentials import SandboxSecrets
    from clawbox.egress.leaks import LeakDetector
    from clawbox.egress.messages import Grant, Spent
    from clawbox.egress.proxy.ports import ClientTls, Dialer, Rows, ServerTls

PeerCheck = Callable[[socket.socket], Awaitable[bool]]
"""Whether who connected may be served: the process at the other end of a connection."""

_ACCEPTED_AT_ONCE: Final = 16
_SCARCE_SECONDS: Final = 0.1
"""How long nothing is accepted when there are no descriptors left."""
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class _Terms:
    """On which a connection is served."""

    token_required: bool
    check_peer: PeerCheck | None = None


class Proxy:
    """The way out of one sandbox, while entered."""

    def __init__(
        self,
        grant: Grant,
        secrets: SandboxSecrets,
        *,
        dialer: Dialer,
        rows: Rows,
        server_tls: ServerTls,
        client_tls: ClientTls,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstreams = Upstreams(dialer, client_tls, grant.limits.connect_timeout_ms / 1000)
        self._state = SandboxState(grant, secrets, self._upstreams, rows, clock)
        self._tls = server_tls
        self._room = grant.limits.max_connections
        self._clients: dict[asyncio.Task[None], Client | None] = {}
        self._listeners: dict[socket.socket, _Terms] = {}
        self._accepting = False
        self._scarce = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_listeners()
        for task, client in list(self._clients.items()):
            if client is None:
                task.cancel()
            else:
                client.end(Refusal(Denial.ENDED))
        if self._clients:
            await asyncio.wait(self._clients)
        self._upstreams.close()

    @property
    def detector(self) -> LeakDetector:
        """What knows this sandbox's secrets now."""
        return self._state.detector

    def listen(
        self, listener: socket.socket, *, token_required: bool, check_peer: PeerCheck | None = None
    ) -> None:
        """Serve a listening socket until the end, when it is closed.

        ``token_required``: False only where reaching the socket proves who asks (a sandbox's own namespace).
        Nothing is read of a connection that ``check_peer`` does not let pass (74).
        """
        listener.setblocking(False)  # noqa: FBT003
        self._listeners[listener] = _Terms(token_required, check_peer)
        if self._accepting:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)
        else:
            self._set_accepting()

    def adopt(self, connection: socket.socket, *, token_required: bool) -> None:
        """Serve one connection that was made elsewhere."""
        self._take(connection, _Terms(token_required))

    def _take(self, connection: socket.socket, terms: _Terms) -> None:
        connection.setblocking(False)  # noqa: FBT003
        task = asyncio.create_task(self._serve(connection, terms))
        self._clients[task] = None
        task.add_done_callback(functools.partial(self._ended, connection))

    def admit(self, token: bytes, call: str = "") -> None:
        """Accept requests with a token of this SHA-256; ``call`` names them in their rows."""
        self._state.admit(token, call)

    def revoke(self, token: bytes) -> None:
        """Accept none of that token's any more, and end those under way."""
        self._state.revoke(token)
        for client in self._clients.values():
            if client is not None and client.identity.token == token:
                client.end(Refusal(Denial.ENDED))
        self._upstreams.forget(token)

    def replace_secrets(self, secrets: SandboxSecrets) -> None:
        """Use these from the next request on."""
        self._state.replace_secrets(secrets)
        self._upstreams.renew()

    def suspend(self) -> None:
        """Attach credentials no more (68)."""
        self._state.suspended = True

    def restore_spent(self, spent: Iterable[Spent]) -> None:
        """Begin with what an earlier sidecar of this sandbox used of its budgets (56)."""
        self._state.restore_spent(spent)

    def close_listeners(self) -> None:
        """Accept nothing any more."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if len(self._clients) >= self._room:
                break
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                # Nobody says when there are some again: they come back anywhere in the process.
                self._scarce = True
                asyncio.get_running_loop().call_later(_SCARCE_SECONDS, self._look_again)
                break
            self._take(connection, self._listeners[listener])
        self._set_accepting()

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        if self._clients.pop(task) is None:
            connection.close()  # it may have been cancelled before it began
        self._set_accepting()
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "a connection of the sandbox failed", "exception": error, "task": task}
            )

    def _set_accepting(self) -> None:
        """Accept only while there is room: what more there is waits in the kernel (74)."""
        accepting = len(self._clients) < self._room and bool(self._listeners) and not self._scarce
        if accepting is self._accepting:
            return
        self._accepting = accepting
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            if accepting:
                loop.add_reader(listener, self._accept, listener)
            else:
                loop.remove_reader(listener)

    def _look_again(self) -> None:
        self._scarce = False
        self._set_accepting()

    async def _serve(self, connection: socket.socket, terms: _Terms) -> None:
        loop = asyncio.get_running_loop()
        try:
            if terms.check_peer is not None and not await terms.check_peer(connection):
                connection.close()
                return
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, wire = await loop.connect_accepted_socket(lambda: Wire(loop), connection)
        except OSError:
            connection.close()  # it was gone before it was served
            return
        except BaseException:
            connection.close()
            raise
        client = Client(wire, self._state, self._tls, token_required=terms.token_required)
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = client
        await client.serve()
