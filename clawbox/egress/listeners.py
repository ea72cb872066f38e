"""The sockets on which one sandbox finds its sidecar: control keeps a duplicate of each, for the next one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clawbox.children.channel import ChannelClosedError
from clawbox.egress.unix_listener import UnixListener

if TYPE_CHECKING:
    from pathlib import Path

    from clawbox.egress.dialer.control import DialerControl

Purpose = Literal["unix", "tcp", "namespace"]
Hand = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class _Listener:
    purpose: Purpose
    sock: socket.socket
    unix: UnixListener | None = None


class Listeners:
    """What one sandbox's sidecar serves, whichever process that is; each socket is owned until closed."""

    def __init__(self, dialer: DialerControl) -> None:
        self._dialer = dialer
        self._open: list[_Listener] = []

    def add_unix(self, path: Path, hand: Hand | None) -> None:
        """Make a Unix socket at ``path``; see UnixListener for what is raised."""
        unix = UnixListener(path)
        self._add(_Listener("unix", unix.socket, unix), hand)

    def add_tcp(self, sock: socket.socket, hand: Hand | None, *, namespace: bool) -> None:
        """Take a socket that listens, TCP as a rule; ``namespace``: in the sandbox's own network namespace.

        What listens in the server's own is where no sandbox may connect to (15).
        """
        if not namespace and (place := _place(sock)) is not None:
            self._dialer.refuse_listener(place)
        self._add(_Listener("namespace" if namespace else "tcp", sock), hand)

    def hand_all(self, hand: Hand) -> None:
        """Hand a new sidecar every one. Raises ChannelClosedError."""
        for listener in self._open:
            hand(listener.purpose, 0, listener.sock.fileno())

    def close(self) -> None:
        """Listen no more, and remove what was made."""
        while self._open:
            listener = self._open.pop()
            if listener.purpose == "tcp" and (place := _place(listener.sock)) is not None:
                self._dialer.forget_listener(place)
            if listener.unix is not None:
                listener.unix.close()
            listener.sock.close()

    def _add(self, listener: _Listener, hand: Hand | None) -> None:
        self._open.append(listener)
        if hand is not None:
            with contextlib.suppress(ChannelClosedError):  # it is dead, and the next one gets it
                hand(listener.purpose, 0, listener.sock.fileno())


def _place(sock: socket.socket) -> tuple[str, int] | None:
    """Where a socket can be connected to over a network; None for a Unix socket that somebody else made."""
    if sock.family == socket.AF_UNIX:
        return None
    host, port, *_ = sock.getsockname()
    return str(host), int(port)
