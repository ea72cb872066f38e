"""One sandbox's way out by itself, keeper and dialer included: what ``clawbox egress serve`` runs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from clawbox.audit import signed_heads
from clawbox.egress.keeper.bootstrap import open_keys
from clawbox.egress.supervisor import EgressSetup, EgressSupervisor
from clawbox.egress.unix_listener import BACKLOG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from clawbox.audit import AuditLog
    from clawbox.children.uids import UidRange
    from clawbox.egress.messages import Grant
    from clawbox.egress.sandbox_door import SandboxDoor
    from clawbox.egress.supervisor import Metrics

SOCKET_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Standalone:
    """What it takes, besides the grant."""

    setup: EgressSetup
    folder: Path
    """Where the identity key is, or is made."""
    key_file: Path | None
    """The master key's file; None: ``CLAWBOX_MASTER_KEY``."""
    uids: UidRange | None

    @contextlib.asynccontextmanager
    async def serve(
        self,
        grant: Grant,
        token: str,
        listeners: Sequence[socket.socket],
        *,
        audit: AuditLog,
        metrics: Metrics,
    ) -> AsyncIterator[SandboxDoor]:
        """Serve ``grant`` on ``listeners`` to who has ``token``, for as long as this is entered.

        The listeners are closed at the end. Raises VaultError, OSError (no identity key can be made), and
        ClawboxError (SANDBOX_UNAVAILABLE).
        """
        with open_keys(self.folder, self.key_file) as keys:
            async with (
                EgressSupervisor(
                    self.setup, keys, audit=audit, metrics=metrics, uids=self.uids
                ) as supervisor,
                signed_heads(audit, supervisor),
                supervisor.sandbox(grant) as door,
            ):
                door.admit(hashlib.sha256(token.encode()).digest())
                for listener in listeners:
                    door.listen_tcp(listener)
                yield door


def listen_tcp(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)  # noqa: FBT003
    except BaseException:
        sock.close()
        raise
    return sock


class UnixSocket:
    """A Unix socket that listens at ``path``, for this user alone, and is removed when left.

    That of a server, for a container, is :class:`clawbox.egress.unix_listener.UnixListener`: for whoever has
    the token, in a folder that the container sees.

    What an earlier process left there is replaced if it is a socket on which nobody listens. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _remove_dead(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            before = os.umask(0o777 & ~SOCKET_MODE)
            try:
                self.socket.bind(os.fspath(path))
            finally:
                os.umask(before)
            self._made = path.lstat()
            self.socket.listen(BACKLOG)
            self.socket.setblocking(False)  # noqa: FBT003
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.lstat(), self._made):
                self.path.unlink()


def _remove_dead(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is something else", os.fspath(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), os.fspath(path))
