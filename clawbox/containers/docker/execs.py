"""The connection that carries one process's input and output.

HTTP ends with its headers (``101 UPGRADED``); from then on the connection is the process's: one direction its
input, which a half-close ends, the other its output, raw with a TTY and in frames without (Engine API,
``POST /exec/ID/start``). aiohttp knows no half-closed connection, so this one is asyncio's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

from clawbox.containers.backend import ConflictError, EngineError, Stream
from clawbox.containers.docker.connection import not_understood, refusal, unavailable, words_of
from clawbox.containers.docker.frames import HEADER_BYTES, read_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.containers.docker.address import EngineAddress

_BUFFER_BYTES: Final = 1 << 16
"""Waits in each direction before whoever sends has to; asyncio's reader takes twice that."""
_PIECE_BYTES: Final = 1 << 16
_MAX_ERROR_BYTES: Final = 1 << 16


class ExecConnection:
    """An :class:`~clawbox.containers.backend.ExecStream`.

    Reading and writing may be cancelled: what was not yet returned comes with the next read, and the piece
    that was being written is written.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        tty: bool,
        closed: Callable[[ExecConnection], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._tty = tty
        self._closed = closed
        self._stream = Stream.STDOUT
        self._left = 0

    async def read(self) -> tuple[Stream, bytes] | None:
        """The next piece of output, at most 64 KiB; None: the connection has ended.

        That it ended says neither that the process did nor that the engine is still there:
        ``inspect_exec`` says both.
        """
        try:
            while not self._tty and not self._left:
                if not await self._header():
                    return None
            most = _PIECE_BYTES if self._tty else min(self._left, _PIECE_BYTES)
            data = await self._reader.read(most)
        except OSError as error:
            raise unavailable() from error
        if not data:
            if self._left:
                raise unavailable()
            return None
        if not self._tty:
            self._left -= len(data)
        return self._stream, data

    async def write(self, data: bytes) -> None:
        """Give it input; returns when there is room for more."""
        view = memoryview(data)
        for begin in range(0, len(view), _PIECE_BYTES):
            # The engine ends the output when the process has ended, and only seconds later the input.
            if self._writer.is_closing() or self._reader.at_eof():
                raise _gone()
            try:
                self._writer.write(view[begin : begin + _PIECE_BYTES])
                await self._writer.drain()
            except (OSError, RuntimeError) as error:  # the second: after close_input
                raise _gone() from error

    async def close_input(self) -> None:
        """No more input comes; what was written arrives before the end does."""
        if not self._writer.is_closing():
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    async def close(self) -> None:
        """Let go of the connection, with what was not yet sent; the process is not ended by that."""
        self._closed(self)
        # Not closed in an orderly way: that would wait for a process that does not read.
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _header(self) -> bool:
        try:
            header = await self._reader.readexactly(HEADER_BYTES)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise unavailable() from error
            return False
        stream, length = read_header(header)
        if stream is None:
            words = await self._reader.read(min(length, _MAX_ERROR_BYTES))
            raise EngineError(500, words.decode(errors="replace").strip())
        self._stream, self._left = stream, length
        return True


async def start(
    address: EngineAddress,
    path: str,
    body: dict[str, Any],
    *,
    tty: bool,
    closed: Callable[[ExecConnection], None],
) -> ExecConnection:
    """Start an exec with its streams on a connection of its own.

    Raises :class:`EngineError` when the engine will not, OSError and EOFError when the connection breaks.
    """
    reader, writer = await address.connect(_BUFFER_BYTES)
    try:
        writer.transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
            f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        writer.write(head.encode("ascii") + raw)
        await writer.drain()
        await _accepted(reader)
    except BaseException:
        writer.transport.abort()
        raise
    return ExecConnection(reader, writer, tty=tty, closed=closed)


async def _accepted(reader: asyncio.StreamReader) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise not_understood("an answer whose head has no end") from error
    status, length = _read_head(head)
    if status not in {101, 200}:
        raise refusal(status, words_of(await reader.readexactly(min(length, _MAX_ERROR_BYTES))))


def _read_head(head: bytes) -> tuple[int, int]:
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
        raise not_understood("an answer that is no HTTP")
    length = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length" and value.strip().isdecimal():
            length = int(value)
    return int(parts[1]), length


def _gone() -> EngineError:
    return ConflictError(409, "the process takes no input any more")
