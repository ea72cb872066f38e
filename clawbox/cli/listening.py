"""Where ``egress serve`` is told to listen."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import TYPE_CHECKING

from clawbox.cli.errors import CliError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path


def place_of(text: str, *, insecure: bool) -> tuple[str, int]:
    """What ``--listen`` names: a loopback address unless ``insecure``, and a port. Raises CliError."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)|(localhost)):([0-9]{1,5})", text)
    if found is None or int(found[4]) > 65535:
        raise CliError(f"--listen {text}: not ADDR:PORT", hint="127.0.0.1:3128, for one, or [::1]:0")
    host = "127.0.0.1" if found[3] else found[1] or found[2]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise CliError(f"--listen {text}: {host} is no IP address") from None
    if not address.is_loopback and not insecure:
        raise CliError(
            f"--listen {text}: not a loopback address, so the network would see the token",
            hint="Say --insecure where that is meant, for a bridge of containers for one",
        )
    return str(address), int(found[4])


@contextlib.contextmanager
def listening_tcp(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there while entered. Raises CliError."""
    from clawbox.egress.standalone import listen_tcp  # noqa: PLC0415 - not for --help

    try:
        listener = listen_tcp(host, port)
    except OSError as error:
        raise CliError(f"--listen {bracketed(host)}:{port}: {error.strerror or error}") from None
    with listener:
        yield listener


@contextlib.contextmanager
def listening_unix(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that listens at ``path`` while entered, and is removed when left. Raises CliError."""
    from clawbox.egress.standalone import UnixSocket  # noqa: PLC0415 - not for --help

    try:
        listener = UnixSocket(path)
    except OSError as error:
        raise CliError(f"--socket {path}: {error.strerror or error}") from None
    with listener:
        yield listener.socket


def address_of(listener: socket.socket) -> tuple[str, int]:
    """Where a socket listens, in numbers."""
    host, port, *_ = listener.getsockname()
    return str(host), int(port)


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host
