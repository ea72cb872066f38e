"""CONNECT: a tunnel whose bytes pass unread, or one whose end is here, so that its requests can be read.

What comes first is looked at before anything of it goes on: TLS names the host that CONNECT named (33, 34),
or, where the sidecar reads, is plain HTTP, which Node 24 sends through CONNECT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox.egress.http.writer import CONNECTED
from clawbox.egress.refusal import Denial, RefusedError
from clawbox.egress.tls.client_hello import (
    alert,
    begins_tls,
    check_intercept,
    check_tunnel,
    read_client_hello,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.messages import Limits
    from clawbox.egress.proxy.identity import Identity
    from clawbox.egress.proxy.ports import ServerTls
    from clawbox.egress.proxy.record import Record
    from clawbox.egress.proxy.state import SandboxState
    from clawbox.egress.proxy.streams import ClientSink
    from clawbox.egress.proxy.wire import Wire
    from clawbox.egress.target import Target
    from clawbox.egress.tls.client_hello import ClientHello


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Where a connection's requests go since CONNECT, and who asked."""

    target: Target
    scheme: str
    identity: Identity


async def intercept(wire: Wire, tls: ServerTls, target: Target, identity: Identity, limits: Limits) -> Tunnel:
    """Answer CONNECT and take what comes at its word. Raises RefusedError."""
    wire.write(CONNECTED)
    wire.deadline.limit(limits.head_timeout_ms / 1000, Denial.HEAD_TIMEOUT)
    first = await wire.read()
    if not first:
        raise RefusedError(Denial.CLIENT_GONE)
    if not begins_tls(first):
        wire.unread(first)
        return Tunnel(target, "http", identity)
    await _hello(wire, first, lambda hello: check_intercept(hello, target.host))
    await wire.start_tls(tls.session(target.host), Denial.CLIENT_TLS_FAILED)
    return Tunnel(target, "https", identity)


async def carry(wire: Wire, state: SandboxState, target: Target, record: Record, sink: ClientSink) -> None:
    """Connect, answer CONNECT, and pass bytes both ways until both ends are done. Raises RefusedError."""
    limits = state.grant.limits
    upstream, record.address = await state.upstreams.connect(target.host, target.port)
    wire.on_end = None  # from here on it may send no more, and read yet
    try:
        _check_silent(wire)
        sink.begun = True
        wire.write(CONNECTED)
        record.status = 200
        wire.deadline.limit(limits.head_timeout_ms / 1000, Denial.HEAD_TIMEOUT)
        await _hello(wire, await wire.read(), lambda hello: check_tunnel(hello, target.host))
        record.sent_at = state.clock()
        wire.deadline.pair(upstream.deadline)
        for one in (wire, upstream):
            one.deadline.watch(limits.idle_timeout_ms / 1000)
        try:
            upstream.splice(wire)
            wire.splice(upstream)
            await wire.end()
            await upstream.end()
        finally:
            record.bytes_up = upstream.sent
            record.bytes_down = upstream.received
    except BaseException:
        upstream.abort()
        raise
    finally:
        wire.deadline.part()
        upstream.close()


async def _hello(wire: Wire, data: bytes, check: Callable[[ClientHello], None]) -> None:
    """Look at the first message of a TLS handshake and put it back. Raises RefusedError, after an alert."""
    try:
        while (hello := read_client_hello(data)) is None:
            data += await _more(wire)
        check(hello)
    except RefusedError as error:
        wire.write(alert(error.refusal.denial))
        raise
    wire.unread(data)


def _check_silent(wire: Wire) -> None:
    if wire.buffered:
        raise RefusedError(Denial.UNEXPECTED_BYTES, "before the reply to CONNECT")


async def _more(wire: Wire) -> bytes:
    data = await wire.read()
    if not data:
        raise RefusedError(Denial.NOT_TLS, "it ended before the handshake")
    return data
