"""A stand-in for what control gives calls of tools: a sidecar of a few lines in this process.

It serves ``POST /proxy`` on a real connection and cleans output with the detector that the real one has, so
that what is tested of a call's side is what meets the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clawbox.egress.leaks import LeakDetector
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from clawbox.egress.scanner import StreamScanner
    from clawbox.policy import ToolGrant

Answer = tuple[int, dict[str, Any]]
EMPTY: Answer = (200, {"status": 204, "header_list": [], "body_base64": ""})


@dataclass(frozen=True)
class Asked:
    """One request as it came over the connection."""

    token: str
    document: dict[str, Any]


class StandInCall:
    """The way out of one call."""

    max_response_bytes = 1 << 20

    def __init__(self, door: StandInDoor, connection: socket.socket) -> None:
        self.connection = connection
        self.token = secrets.token_hex(32)
        self.requests: list[Asked] = []
        self.closed = asyncio.Event()
        """Nobody has the connection any more."""
        self.left = False
        self._door = door
        self._streams: dict[str, StreamScanner] = {}

    @property
    def has_secrets(self) -> bool:
        return bool(self._door.known)

    async def clean(self, stream: str, data: bytes, *, end: bool) -> bytes:
        self._door.cleanings += 1
        await asyncio.sleep(0)
        if self._door.broken:
            raise ClawboxError(Reason.REDACTION_UNAVAILABLE, "it is gone")
        detector = LeakDetector(self._door.known)
        scanner = self._streams.pop(stream, None) or detector.inbound_body(text=False)
        if not end:
            self._streams[stream] = scanner
            return scanner.feed(data)
        return scanner.feed(data) + scanner.finish()


@dataclass
class StandInDoor:
    """Gives each call a connection; ``answer`` says what becomes of its requests."""

    answer: Callable[[Asked], Answer] = lambda _: EMPTY
    known: list[tuple[str, str]] = field(default_factory=list)
    """(credential, value) of every sandbox."""
    broken: bool = False
    """Whether nothing can be cleaned."""
    cleanings: int = 0
    asked: list[tuple[str, ToolGrant, str]] = field(default_factory=list)
    calls: list[StandInCall] = field(default_factory=list)
    hold: asyncio.Event | None = None
    """While not set, no request is answered."""
    came: asyncio.Event = field(default_factory=asyncio.Event)
    """A request came."""

    @contextlib.asynccontextmanager
    async def call(self, owner: str, grant: ToolGrant, call: str) -> AsyncIterator[StandInCall]:
        self.asked.append((owner, grant, call))
        theirs, ours = socket.socketpair()
        made = StandInCall(self, theirs)
        self.calls.append(made)
        serving = asyncio.create_task(self._serve(made, ours))
        try:
            yield made
        finally:
            made.left = True
            theirs.close()
            async with asyncio.timeout(20):  # until the worker has closed it, too
                await serving

    async def _serve(self, call: StandInCall, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=ours)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
                document = json.loads(await reader.readexactly(int(lines["Content-Length"])))
                asked = Asked(lines["Authorization"].removeprefix("Bearer "), document)
                call.requests.append(asked)
                self.came.set()
                if self.hold is not None:
                    gone = asyncio.create_task(reader.read())
                    held = asyncio.create_task(self.hold.wait())
                    await asyncio.wait([gone, held], return_when=asyncio.FIRST_COMPLETED)
                    for task in (gone, held):
                        task.cancel()
                        await asyncio.wait([task])
                known = asked.token == call.token
                status, reply = self.answer(asked) if known else (401, {"error": "unauthorized"})
                body = json.dumps(reply).encode()
                writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        call.closed.set()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
