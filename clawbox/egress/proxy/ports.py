"""What the proxy needs of the processes around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

    from clawbox.egress.messages import Row, Spent
    from clawbox.egress.tls.session import TlsSession


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connection to an allowed host."""

    socket: socket.socket
    """Connected, non-blocking; whoever has it closes it."""
    address: str
    """What it is connected to, for the audit row."""


class Dialer(Protocol):
    """Resolves, checks and connects, by the grant that control told it."""

    async def dial(self, host: str, port: int) -> Dialed:
        """A connection. Raises RefusedError."""


class Rows(Protocol):
    """Where everything is written down."""

    @property
    def available(self) -> bool:
        """Whether a row that is written now will be kept; while not, nothing is sent."""

    def write(self, row: Row) -> None:
        """Take the row of a request that has ended."""

    def tunnels(self, count: int) -> None:
        """Note how many tunnels are open now."""

    def suspended(self) -> None:
        """Note that the sandbox's credentials are attached no more (68)."""

    def spent(self, spent: Spent) -> None:
        """Note what a credential with a budget was used for (56)."""


class ServerTls(Protocol):
    """Ends the sandbox's TLS connections with certificates of its own CA."""

    def session(self, host: str) -> TlsSession:
        """The server's side of a handshake as ``host``."""


class ClientTls(Protocol):
    """Begins TLS connections to upstreams, whose certificates are always verified (35)."""

    def session(self, host: str, port: int) -> TlsSession:
        """The client's side of a handshake with ``host``."""
