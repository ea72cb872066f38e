"""``GET /metrics`` for Prometheus: the smallest HTTP server that does it, on a port of its own.

It asks for no token, so it binds loopback unless the operator says otherwise, takes few connections, short
requests and no bodies, and closes each connection after one answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Self

from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from types import TracebackType

    from clawbox.config import MetricsSettings
    from clawbox.telemetry.metrics import Metrics

_MAX_HEAD = 8192
_MAX_CONNECTIONS = 32
_REQUEST_SECONDS = 5.0
_REST = 3
"""How many times as long as writing the metrics took, until they are written again: whoever asks without end
takes a quarter of the event loop at most."""


class MetricsEndpoint:
    """Serves ``/metrics`` while it is entered. Raises :class:`OSError` when the port cannot be had."""

    def __init__(self, settings: MetricsSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        host, port = self._settings.host, self._settings.port
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=_MAX_HEAD)
        except OSError as error:
            # asyncio's own words name neither the setting nor, for a host without address, the host.
            number = error.errno or 0
            why = os.strerror(number) if number > 0 else error.strerror
            where = f"metrics.host, metrics.port: cannot listen on {host}:{port}"
            raise OSError(number, f"{where}: {why}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._answering):
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port in use: the configured one, or what the kernel gave for 0."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            if len(self._answering) <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_REQUEST_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    async with self._turn:
                        began = time.perf_counter()
                        writer.write(self._answer(head))
                        await asyncio.sleep(_REST * (time.perf_counter() - began))
                    await writer.drain()
        except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            # The peer was slow, is gone or speaks something else; or the endpoint closes.
            writer.transport.abort()
        finally:
            self._answering.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        request, *headers = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path != "/metrics":
            return _response("404 Not Found", "text/plain", b"Only /metrics is served here.\n")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"Use GET.\n")
        accept = next(
            (line.partition(":")[2] for line in headers if line.lower().startswith("accept:")), ""
        ).strip()
        encode, content_type = choose_encoder(accept)
        body = encode(self._metrics.registry)
        return _response("200 OK", content_type, body, without_body=method == "HEAD")


def _response(status: str, content_type: str, body: bytes, *, without_body: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ).encode("latin-1")
    return head if without_body else head + body
