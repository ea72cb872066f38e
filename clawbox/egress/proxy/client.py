"""One connection from the sandbox: whose it is, what it asks for, and the row of each thing it asked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from msgspec import structs

from clawbox.egress.call_errors import call_error_body, call_error_status
from clawbox.egress.http.framing import BodyKind
from clawbox.egress.http.headers import Headers
from clawbox.egress.http.writer import CONTINUE, write_refusal
from clawbox.egress.proxy import tunnel as tunnels
from clawbox.egress.proxy.call import CALL_PATH, serve_call
from clawbox.egress.proxy.departure import Departure
from clawbox.egress.proxy.exchange import exchange, search, terms_of
from clawbox.egress.proxy.identity import Identity, identify
from clawbox.egress.proxy.record import Record
from clawbox.egress.proxy.streams import ClientSink, Request, RequestStream
from clawbox.egress.refusal import Denial, Refusal, RefusedError
from clawbox.egress.rules import decide
from clawbox.egress.target import (
    Form,
    LocalTarget,
    Target,
    check_host,
    parse_request_target,
    parse_tunnel_target,
)
from clawbox.network_rules import TlsMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.egress.http.head import RequestHead
    from clawbox.egress.proxy.ports import ServerTls
    from clawbox.egress.proxy.state import SandboxState
    from clawbox.egress.proxy.tunnel import Tunnel
    from clawbox.egress.proxy.wire import Wire

KEEP_ALIVE_SECONDS: Final = 75.0
"""How long a connection may wait for its next request."""
_AUTHORIZATION: Final = frozenset({b"authorization"})
_FOR_STATUS: Final[dict[int, tuple[tuple[bytes, bytes], ...]]] = {
    407: ((b"Proxy-Authenticate", b'Basic realm="clawbox"'),),
    429: ((b"Retry-After", b"1"),),
}


class Client:
    """Serves one connection until it ends."""

    def __init__(
        self,
        wire: Wire,
        state: SandboxState,
        tls: ServerTls,
        *,
        token_required: bool,
    ) -> None:
        self._wire = wire
        self._state = state
        self._tls = tls
        self._token_required = token_required
        self._task: asyncio.Task[None] | None = None
        self._why: Refusal | None = None
        self.identity = Identity()
        """Of the request that is under way."""

    async def serve(self) -> None:
        """Until the connection ends, however it does; never raises but for being cancelled."""
        self._task = asyncio.current_task()
        try:
            await self._requests(RequestStream(self._wire), None)
        except asyncio.CancelledError:
            if self._why is None:
                raise
            self._wire.abort()
        finally:
            self._wire.close(self._state.grant.limits.idle_timeout_ms / 1000)
        try:
            # What is unsent keeps its place among the connections.
            await self._wire.gone()
        except asyncio.CancelledError:
            self._wire.abort()
            if self._why is None:
                raise

    def end(self, refusal: Refusal) -> None:
        """Break off what is under way; its row says why."""
        if self._why is None and self._task is not None:
            self._why = refusal
            self._task.cancel()

    # Requests -----------------------------------------------------------------------------------------------

    async def _requests(self, stream: RequestStream, tunnel: Tunnel | None) -> None:
        limits = self._state.grant.limits
        idle = limits.head_timeout_ms / 1000
        while True:
            began = self._state.clock()
            try:
                head = await stream.head(idle, limits.head_timeout_ms / 1000)
            except RefusedError as error:
                await self._refuse_head(error.refusal, stream, tunnel, began)
                return
            if head is None or not await self._request(stream, head, tunnel):
                return
            idle = KEEP_ALIVE_SECONDS

    async def _refuse_head(
        self, refusal: Refusal, stream: RequestStream, tunnel: Tunnel | None, began: float
    ) -> None:
        """What was no good head: written down and answered, unless it is only that nothing came."""
        if refusal.denial is Denial.HEAD_TIMEOUT and not stream.in_head:
            return
        record = Record("intercept" if tunnel else "absolute", began, refusal=refusal)
        if tunnel is not None:
            record.call, record.target = tunnel.identity.call, tunnel.target
        self._state.write_down(record)
        self._wire.write(write_refusal(refusal, fields=_FOR_STATUS.get(refusal.status, ())))
        await self._wire.linger()

    async def _request(self, stream: RequestStream, head: RequestHead, tunnel: Tunnel | None) -> bool:
        """One request; whether the connection serves another."""
        is_call = tunnel is None and head.method == "POST" and head.target.partition("?")[0] == CALL_PATH
        way = "intercept" if tunnel else "call" if is_call else "absolute"
        record = Record(way, self._state.clock(), method=head.method)
        sink = ClientSink(
            self._wire, version=head.version, keep_alive=head.keep_alive, head_only=head.method == "HEAD"
        )
        inner: Tunnel | None = None
        with contextlib.ExitStack() as held:
            try:
                target = self._admitted(head, tunnel, record, is_call=is_call)
                if isinstance(target, LocalTarget):
                    await self._call(stream, head, record, sink, is_call=is_call)
                elif target.form is Form.CONNECT:
                    inner = await self._connect(stream, target, record, sink, held)
                else:
                    await self._forward(stream, head, target, record, sink)
            except RefusedError as error:
                record.refusal = error.refusal
                self._refuse(error.refusal, sink, is_call=is_call)
            except asyncio.CancelledError:
                record.refusal = self._why or Refusal(Denial.ENDED)
                self._wire.abort()
                raise
            except Exception:
                record.refusal = Refusal(Denial.INTERNAL)
                self._wire.abort()
                raise
            finally:
                self._wire.on_end = None
                self._wire.deadline.lift()
                if inner is None:
                    self._state.write_down(record)
            if inner is not None:
                await self._requests(RequestStream(self._wire), inner)
                return False
        if sink.keep_alive and stream.complete:
            return not self._wire.lost
        if record.refusal is not None or not stream.complete:
            await self._wire.linger()
        return False

    def _admitted(
        self, head: RequestHead, tunnel: Tunnel | None, record: Record, *, is_call: bool
    ) -> Target | LocalTarget:
        """Where a request goes, once it is known whose it is: without a token nobody learns anything."""
        if tunnel is not None:
            self.identity = tunnel.identity
            self._state.count_request()
            record.call, record.target = tunnel.identity.call, tunnel.target
            target: Target | LocalTarget = parse_tunnel_target(head.target, tunnel.target, tunnel.scheme)
        else:
            # Until it is parsed it may be one to the sidecar itself, whose token may come in Authorization;
            # where no token is asked for, only that of POST /proxy is the sidecar's and not the host's.
            for_sidecar = is_call or (
                self._token_required
                and head.target.startswith(("/", "http://localhost/", "http://127.0.0.1/"))
            )
            self.identity = identify(
                head.headers, self._state, required=self._token_required, for_sidecar=for_sidecar
            )
            record.call = self.identity.call
            # Not before: whoever has no token, and reaches the listener, could else use the rate up.
            self._state.count_request()
            target = parse_request_target(head.method, head.target)
        if isinstance(target, Target):
            record.target = target
            if tunnel is None:
                record.way = target.form.value
        check_host(
            [value.decode("latin-1") for value in head.headers.values(b"host")], target, version=head.version
        )
        return target

    async def _forward(
        self, stream: RequestStream, head: RequestHead, target: Target, record: Record, sink: ClientSink
    ) -> None:
        """A request to somewhere else."""
        if self.identity.in_authorization:
            head = structs.replace(head, headers=Headers(head.headers.without(_AUTHORIZATION)))
        with self._state.requests.hold(Denial.TOO_MANY_REQUESTS):
            request = Request(
                head.method, target, head, stream.framing, self.identity.token, self.identity.call
            )
            terms = terms_of(request, self._state, record)
            if stream.framing.kind is BodyKind.NONE:
                await stream.piece()
            with self._watched(stream, sink):
                await exchange(request, terms, stream, sink, self._wire)

    async def _call(
        self, stream: RequestStream, head: RequestHead, record: Record, sink: ClientSink, *, is_call: bool
    ) -> None:
        """A request to the sidecar itself."""
        record.way = "call"
        if not is_call:
            raise RefusedError(Denial.UNKNOWN_ROUTE)
        with self._state.requests.hold(Denial.TOO_MANY_REQUESTS), self._watched(stream, sink):
            if head.expects_continue:
                self._wire.write(CONTINUE)
            await serve_call(stream, sink, record, self.identity, state=self._state, wire=self._wire)

    async def _connect(
        self,
        stream: RequestStream,
        target: Target,
        record: Record,
        sink: ClientSink,
        held: contextlib.ExitStack,
    ) -> Tunnel | None:
        """CONNECT: a tunnel to read from now on, or None when one that is not read has ended.

        ``held`` keeps the tunnel's slot.
        """
        state, limits = self._state, self._state.grant.limits
        await stream.piece()
        decision = decide(state.network, target, "CONNECT", state.grant.on_shape)
        record.rule = decision.rule
        if decision.refusal is not None:
            raise RefusedError.of(decision.refusal)
        if not state.rows.available:
            raise RefusedError(Denial.AUDIT_UNAVAILABLE)
        if stream.take_over() or self._wire.buffered:
            raise RefusedError(Denial.UNEXPECTED_BYTES, "before the reply to CONNECT")
        held.enter_context(self._open_tunnel())
        if decision.tls is not TlsMode.TUNNEL:
            sink.begun = True
            return await tunnels.intercept(self._wire, self._tls, target, self.identity, limits)
        record.way = "tunnel"
        search(record.asked(target), (), state, record, decision.on_shape)
        self._alive()
        self._wire.on_end = self._left
        await tunnels.carry(self._wire, state, target, record, sink)
        sink.keep_alive = False
        return None

    @contextlib.contextmanager
    def _open_tunnel(self) -> Iterator[None]:
        """Counts a tunnel, read or unread. Raises RefusedError."""
        slots = self._state.tunnels
        with slots.hold(Denial.TOO_MANY_TUNNELS):
            self._state.rows.tunnels(slots.taken)
            try:
                yield
            finally:
                self._state.rows.tunnels(slots.taken - 1)

    @contextlib.contextmanager
    def _watched(self, stream: RequestStream, sink: ClientSink) -> Iterator[None]:
        """While a request is under way: a client that leaves ends it."""
        self._alive()
        departure = Departure(self._wire, stream, sink, self._left)
        try:
            yield
        finally:
            departure.close()

    def _alive(self) -> None:
        """From now on bytes must come or go."""
        self._wire.deadline.watch(self._state.grant.limits.idle_timeout_ms / 1000)

    def _left(self) -> None:
        self.end(Refusal(Denial.CLIENT_GONE))

    def _refuse(self, refusal: Refusal, sink: ClientSink, *, is_call: bool) -> None:
        """Say why not; where the answer has begun, break it off, so that it never looks complete (53)."""
        if sink.begun:
            sink.keep_alive = False
            self._wire.abort()
        elif is_call:
            sink.refuse_call(call_error_status(refusal), call_error_body(refusal, ""))
        else:
            sink.refuse(refusal, _FOR_STATUS.get(refusal.status, ()))
