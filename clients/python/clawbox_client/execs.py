"""A process inside a container as a client follows it: what was sent, what has come, and how to go on."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import grpc

from clawbox_client.containers import Gap, gap
from clawbox_client.results import Finding, Stderr, Stdout, findings
from clawbox_client.v1 import containers_pb2

if TYPE_CHECKING:
    from clawbox_client.errors import ClawboxError

CHUNK_BYTES = 64 << 10
"""Bytes of stdin in one message."""

UNSENT_BYTES = 256 << 10
"""Bytes of stdin that wait to be sent; who writes more waits."""

KEPT_BYTES = 8 << 20
"""Bytes of stdin that are kept after they were sent: what was on the way when a connection broke."""

RECONNECT_SECONDS = 30.0
"""How long a process goes on when nobody follows it; so long a client tries to get back to it."""


@dataclass(frozen=True, slots=True)
class ExecStarted:
    """The process runs. Told again after each reconnection, then with ``attached``."""

    exec_id: str
    stdin_offset: int
    attached: bool


@dataclass(frozen=True, slots=True)
class ExecExited:
    """How the process ended; the last event."""

    exit_code: int | None
    """As Docker reports it, so 128+n may be signal n; None when it is not known."""
    timed_out: bool
    lost: bool
    reason: str
    duration_ms: int
    findings: tuple[Finding, ...]


ExecEvent: TypeAlias = ExecStarted | Stdout | Stderr | Gap | ExecExited


class ExecProgress:
    """What one process was sent and has answered. No I/O, and no lock: its owner has one.

    While a connection stands, :meth:`next_message` gives what is to be sent next. After it broke,
    :meth:`opening` gives the message that continues, and the answer to it says what of stdin goes again.
    """

    def __init__(self, first: containers_pb2.ExecStart | containers_pb2.ExecAttach) -> None:
        self._first = first
        self.exec_id = first.exec_id
        self.started = False
        """Whether the server has answered on this connection."""
        self.known = isinstance(first, containers_pb2.ExecAttach)
        """Whether the server has ever answered, so that the process can be attached to."""
        self.exited: ExecExited | None = None
        attach = first if isinstance(first, containers_pb2.ExecAttach) else None
        self.stdout_offset = attach.stdout_offset if attach else 0
        self.stderr_offset = attach.stderr_offset if attach else 0
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._sent_offset = 0
        self._offset_known = attach is None
        self._stdin_closed = False
        self._close_sent = False
        self._controls: deque[containers_pb2.ExecRequest] = deque()

    @property
    def full(self) -> bool:
        """Whether a writer should wait."""
        return self._unsent_bytes >= UNSENT_BYTES

    def write(self, data: bytes) -> None:
        """Takes bytes of stdin. Raises ValueError when it was closed."""
        if self._stdin_closed:
            raise ValueError("stdin is closed")
        for first in range(0, len(data), CHUNK_BYTES):
            self._unsent.append(data[first : first + CHUNK_BYTES])
        self._unsent_bytes += len(data)

    def close_stdin(self) -> None:
        """Takes the end of stdin."""
        self._stdin_closed = True

    def resize(self, rows: int, columns: int) -> None:
        """Takes the terminal's size."""
        size = containers_pb2.TerminalSize(rows=rows, columns=columns)
        self._controls.append(containers_pb2.ExecRequest(resize=size))

    def signal(self, name: str) -> None:
        """Takes a signal."""
        self._controls.append(containers_pb2.ExecRequest(signal=containers_pb2.ExecSignal(name=name)))

    def opening(self) -> containers_pb2.ExecRequest:
        """The first message of a connection: the start until the server has answered one, then an attach."""
        self.started = False
        if not self.known and isinstance(self._first, containers_pb2.ExecStart):
            return containers_pb2.ExecRequest(start=self._first)
        return containers_pb2.ExecRequest(
            attach=containers_pb2.ExecAttach(
                exec_id=self.exec_id, stdout_offset=self.stdout_offset, stderr_offset=self.stderr_offset
            )
        )

    def next_message(self) -> containers_pb2.ExecRequest | None:
        """What goes next; None while there is nothing, or the server has not answered yet."""
        if not self.started or self.exited is not None:
            return None
        if self._controls:
            return self._controls.popleft()
        if self._unsent:
            chunk = self._unsent.popleft()
            self._unsent_bytes -= len(chunk)
            self._kept.append(chunk)
            self._kept_bytes += len(chunk)
            self._sent_offset += len(chunk)
            while self._kept_bytes - len(self._kept[0]) >= KEPT_BYTES:
                self._kept_bytes -= len(self._kept.popleft())
            return containers_pb2.ExecRequest(stdin=chunk)
        if self._stdin_closed and not self._close_sent:
            self._close_sent = True
            return containers_pb2.ExecRequest(close_stdin=containers_pb2.ExecCloseStdin())
        return None

    def received(self, message: containers_pb2.ExecResponse) -> ExecEvent | None:
        """Reads one message; None for what tells nothing, and for bytes that have come before.

        Raises ValueError when stdin cannot go on where the server has it.
        """
        match message.WhichOneof("event"):
            case "started":
                return self._begin(message.started)
            case "stdout":
                data, self.stdout_offset = _new_part(message.stdout, self.stdout_offset)
                return Stdout(data, self.stdout_offset - len(data)) if data else None
            case "stderr":
                data, self.stderr_offset = _new_part(message.stderr, self.stderr_offset)
                return Stderr(data, self.stderr_offset - len(data)) if data else None
            case "gap":
                missing = gap(message.gap)
                end = missing.offset + missing.length
                if missing.stream == "stderr":
                    self.stderr_offset = max(self.stderr_offset, end)
                else:
                    self.stdout_offset = max(self.stdout_offset, end)
                return missing
            case "exited":
                said = message.exited
                self.exited = ExecExited(
                    exit_code=said.exit_code if said.HasField("exit_code") else None,
                    timed_out=said.timed_out,
                    lost=said.lost,
                    reason=said.reason,
                    duration_ms=said.duration_ms,
                    findings=findings(said.sanitization),
                )
                return self.exited
            case _:
                return None

    def _begin(self, said: containers_pb2.ExecStarted) -> ExecStarted:
        if not self._offset_known:
            # Whoever wrote before: this client's first byte comes after what the process has.
            self._sent_offset, self._offset_known = said.stdin_offset, True
        again = self._sent_offset - said.stdin_offset
        if again < 0 or again > self._kept_bytes:
            raise ValueError("the server has another part of stdin than was sent")
        while again > 0:
            chunk = self._kept.pop()
            self._kept_bytes -= len(chunk)
            self._sent_offset -= len(chunk)
            if len(chunk) > again:
                self._kept.append(chunk[:-again])
                self._kept_bytes += len(chunk) - again
                self._sent_offset += len(chunk) - again
                chunk = chunk[-again:]
            again -= len(chunk)
            self._unsent.appendleft(chunk)
            self._unsent_bytes += len(chunk)
        self._close_sent = False  # closing twice is no harm, and the first may have been lost
        self.exec_id = said.exec_id
        self.started = self.known = True
        return ExecStarted(said.exec_id, said.stdin_offset, said.attached)


def _new_part(chunk: object, offset: int) -> tuple[bytes, int]:
    """What of a chunk is new to who has ``offset`` bytes, and how many it has then."""
    data: bytes = chunk.data  # type: ignore[attr-defined]
    start: int = chunk.offset  # type: ignore[attr-defined]
    new = data[max(0, offset - start) :]
    return new, max(offset, start + len(data))


class Patience:
    """When to try again after a connection broke, and when no more. Seconds of a monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None
        self._pause = 0.1

    def connected(self) -> None:
        """The server has answered."""
        self._until, self._pause = None, 0.1

    def pause(self, error: ClawboxError) -> float | None:
        """Seconds to wait before the next attempt; None when the error is the answer."""
        if not _connection_broke(error):
            return None
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
        if now >= self._until:
            return None
        pause, self._pause = self._pause, min(2.0, self._pause * 2)
        return min(pause, self._until - now)


def _connection_broke(error: ClawboxError) -> bool:
    """Whether nobody answered, as against a server that said why it ends the call."""
    if error.reason:
        return False
    # grpc.aio says this in place of the status when it was writing while a call ended: attaching asks again.
    lost_in_writing = error.code is grpc.StatusCode.INTERNAL and "from Core" in error.message
    return error.code is grpc.StatusCode.UNAVAILABLE or lost_in_writing
