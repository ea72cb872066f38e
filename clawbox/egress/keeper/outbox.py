"""What one sidecar is still to be sent. The keeper never waits for it, and never reads from it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from clawbox.children.channel import encode_frame

if TYPE_CHECKING:
    from clawbox.egress.keeper.secrets import Secrets

STALL_SECONDS: Final = 30.0
"""How long a sidecar may leave unread what it was sent before it gets nothing any more."""

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class PeerGoneError(Exception):
    """The other end is closed."""


class Outbox:
    """Owns a descriptor, one end of a stream pair. Holds at most one frame begun, and the latest one."""

    def __init__(self, descriptor: int) -> None:
        # All three are named, so that no call has to ask the socket for them.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=descriptor)
        self._begun = memoryview(b"")
        self._next: bytearray | None = None
        self._since: float | None = None

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    @property
    def stalls_at(self) -> float | None:
        """When the other end will have been given up; None while nothing waits for it."""
        return None if self._since is None else self._since + STALL_SECONDS

    def put(self, secrets: Secrets, now: float) -> None:
        """Send these as soon as may be, in place of any that were not begun. Raises PeerGoneError."""
        self._next = encode_frame(secrets)
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send what the socket takes now. Raises PeerGoneError."""
        while self._begun or self._next is not None:
            if not self._begun:
                assert self._next is not None
                self._begun, self._next = memoryview(self._next), None
            try:
                sent = self._socket.send(self._begun, _FLAGS)
            except BlockingIOError:
                if self._since is None:
                    self._since = now
                return
            except OSError as error:
                raise PeerGoneError from error
            self._begun = self._begun[sent:]
            self._since = None if not self._begun else now
        self._since = None

    def close(self) -> None:
        """Close it; what waits is not sent."""
        self._begun, self._next = memoryview(b""), None
        self._socket.close()
