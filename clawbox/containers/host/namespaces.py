"""Listening inside a container's network namespace, on its own loopback (docs/security.md, 87)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from contextlib import suppress
from typing import Final

from clawbox.children import linux
from clawbox.containers.host.processes import PROC, ProcessGoneError, check_same

PROXY_PORT: Final = 3128
_BACKLOG: Final = 128


class PortTakenError(Exception):
    """Something in the container listens at the port already; it harms only itself."""


class NamespaceDeniedError(Exception):
    """The namespace may not be entered: it is the host's, or this server lacks the right to."""


async def listen_inside(pid: int, pidfd: int, port: int = PROXY_PORT) -> socket.socket:
    """A socket that listens on 127.0.0.1 in the network namespace of a process; non-blocking, the caller's.

    ``pidfd`` is of the process that ``pid`` is meant to be. The socket holds the namespace: it stays usable
    when the process ends, and is to be closed then.

    Raises :class:`PortTakenError`, :class:`NamespaceDeniedError`, :class:`ProcessGoneError` and OSError.
    """
    namespace = _open_namespace(pid, pidfd)
    loop = asyncio.get_running_loop()
    made: asyncio.Future[socket.socket] = loop.create_future()

    def deliver(outcome: socket.socket | BaseException) -> None:
        if isinstance(outcome, BaseException):
            if not made.done():
                made.set_exception(outcome)
        elif made.done():
            outcome.close()  # cancelled: nobody is there to have it
        else:
            made.set_result(outcome)

    def enter() -> None:
        outcome: socket.socket | BaseException
        try:
            linux.enter_network_namespace(namespace)
            outcome = _listen(port)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            outcome = error
        finally:
            os.close(namespace)
        try:
            loop.call_soon_threadsafe(deliver, outcome)
        except RuntimeError:  # the loop is closed
            if isinstance(outcome, socket.socket):
                outcome.close()

    # A thread of its own, which ends: one of a pool would do its next work inside the sandbox's namespace.
    try:
        threading.Thread(target=enter, name="listen-inside", daemon=True).start()
    except BaseException:
        os.close(namespace)
        raise
    try:
        return await made
    except PermissionError as error:
        raise NamespaceDeniedError(f"the network namespace of process {pid}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(f"127.0.0.1:{port} is taken in the sandbox") from error
        raise
    except asyncio.CancelledError:
        # A result that came in the same turn of the loop would be nobody's.
        if made.done() and not made.cancelled() and made.exception() is None:
            made.result().close()
        raise


def _open_namespace(pid: int, pidfd: int) -> int:
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGoneError(pid) from None
    except PermissionError as error:
        raise NamespaceDeniedError(f"the network namespace of process {pid}: {error.strerror}") from error
    try:
        # After opening it: as the process is there still, its number has not been another's meanwhile.
        check_same(pid, pidfd)
        _check_not_the_hosts(pid, os.fstat(namespace))
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def _check_not_the_hosts(pid: int, found: os.stat_result) -> None:
    for own in ("self", "1"):
        with suppress(PermissionError):
            host = (PROC / own / "ns/net").stat()
            if (host.st_dev, host.st_ino) == (found.st_dev, found.st_ino):
                raise NamespaceDeniedError(f"process {pid} is in the host's network namespace")


def _listen(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # Connections of a listener before this one may still be in TIME_WAIT. SO_REUSEPORT would let the
        # sandbox listen here as well, and take connections that are meant for its sidecar.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
