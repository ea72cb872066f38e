"""Tells a client that has left from one that has only ended its half of the connection.

BusyBox's wget and ``nc -N`` say that they send no more, and wait for the answer. A stream that is not
encrypted ends alike in both cases: a Unix socket whose other end is closed says so when it is asked, but TCP
tells only whoever sends. So the client is sent a 100 Continue, which HTTP/1.1 has it skip (RFC 9110 15.2) and
to which a closed socket answers with a reset. Within an answer nothing else may be sent, nor to HTTP/1.0:
who ends its half there has left, and so has who ends TLS, as no client does that waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from clawbox.egress.http.writer import CONTINUE

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.proxy.streams import ClientSink, RequestStream
    from clawbox.egress.proxy.wire import Wire

_FIRST_LOOK_SECONDS: Final = 0.02  # by then a reset has come: client and sidecar share a machine
_LOOK_SECONDS: Final = 1.0


class Departure:
    """Calls ``gone`` when the client of a request leaves before it has its answer."""

    def __init__(self, wire: Wire, stream: RequestStream, sink: ClientSink, gone: Callable[[], None]) -> None:
        """Watch until :meth:`close`. A client that has ended its half already is let be until it is lost."""
        self._wire = wire
        self._stream = stream
        self._sink = sink
        self._gone = gone
        self._looking: asyncio.TimerHandle | None = None
        wire.on_end = self._ended

    def close(self) -> None:
        """Nobody is to be told any more."""
        self._wire.on_end = None
        if self._looking is not None:
            self._looking.cancel()

    def _ended(self) -> None:
        wire, sink = self._wire, self._sink
        waits = self._stream.arrived or wire.buffered
        told = not wire.resets or (sink.knows_interim and not sink.begun)
        if wire.encrypted or wire.hung_up or not (waits and told):
            self._gone()
            return
        wire.on_end = self._ended
        if self._looking is None:
            if wire.resets:
                wire.write(CONTINUE)
            self._look_after(_FIRST_LOOK_SECONDS)

    def _look_after(self, seconds: float) -> None:
        self._looking = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        if self._wire.hung_up:
            self._gone()
        else:
            self._look_after(_LOOK_SECONDS)
