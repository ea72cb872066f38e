"""A real keeper, the file it reads, and sidecars that are no more than the end of a socket."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from clawbox.children.channel import FrameReader
from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.launcher import Launcher
from clawbox.children.uids import UidRange
from clawbox.egress.credentials import Credential, SandboxSecrets, Secret
from clawbox.egress.keeper.bootstrap import open_keys
from clawbox.egress.keeper.control import Keeper
from clawbox.egress.keeper.secrets import MAX_SECRETS_BYTES, Secrets
from clawbox.egress.vault import KEY_VARIABLE, MasterKey, Vault

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

    from clawbox.egress.keeper.control import Recipient
    from clawbox.egress.keeper.messages import FromKeeper, HandedOut
    from clawbox.egress.process import ChildProcess

HEX_KEY = bytes(range(32)).hex()
KINDS = {"keeper": "clawbox.egress.keeper.main:KEEPER"}


class Rows:
    """An audit log that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []

    def require(self) -> None:
        """Always."""

    def append(self, kind: str, **fields: Any) -> int:
        self.rows.append((kind, fields))
        return len(self.rows)


class Sidecar:
    """What stands at the other end: reads its secrets when a test says so."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.closed: list[str] = []
        self.known = SandboxSecrets()
        self._arrived = asyncio.Event()
        self._reader = FrameReader(MAX_SECRETS_BYTES)
        self._ready: list[bytes] = []

    def deliver(self, end: socket.socket) -> None:
        if self.ends:
            self.ends[-1].close()
        mine = end.dup()
        mine.setblocking(False)
        self.ends.append(mine)
        self._reader = FrameReader(MAX_SECRETS_BYTES)
        self._arrived.set()

    async def delivered(self, count: int) -> None:
        while len(self.ends) < count:
            self._arrived.clear()
            await self._arrived.wait()

    async def receive(self) -> Secrets:
        """The next that it is sent."""
        while not self._ready:
            data = await asyncio.get_running_loop().sock_recv(self.ends[-1], 1 << 20)
            assert data, "the keeper closed it"
            self._ready += self._reader.feed(data)
        secrets = msgspec.msgpack.decode(self._ready.pop(0), type=Secrets)
        self.known = secrets.sandbox_secrets().after(self.known)
        return secrets

    async def ended(self) -> None:
        """Return when the keeper closed its end; fails when it sends something instead."""
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.get_running_loop().sock_recv(self.ends[-1], 1 << 20):
                assert not self._reader.feed(data)

    def close(self) -> None:
        for end in self.ends:
            end.close()


class World:
    """A keeper, its file, and everything that control was told."""

    def __init__(self, folder: Path, keeper: Keeper, launcher: Launcher, rows: Rows) -> None:
        self.folder = folder
        self.keeper = keeper
        self.launcher = launcher
        self.rows = rows
        self.vault = Vault(folder / "credentials.enc", MasterKey(HEX_KEY))
        self.sidecars: list[Sidecar] = []

    async def sidecar(self, sandbox: str, *names: str, owner: str = "ann") -> tuple[Sidecar, Recipient]:
        sidecar = Sidecar()
        self.sidecars.append(sidecar)
        recipient = await self.keeper.hand_out(sandbox, owner, names, sidecar.deliver, sidecar.closed.append)
        return sidecar, recipient

    @property
    def process(self) -> ChildProcess[FromKeeper]:
        assert self.keeper._process is not None
        return self.keeper._process

    @property
    def proc(self) -> Path:
        """The keeper's folder in /proc."""
        return Path("/proc", str(self.process.pid))

    def open_files(self) -> int:
        return len(list((self.proc / "fd").iterdir()))

    async def crash(self) -> None:
        """Kill the keeper and wait for the next one."""
        changed = self.keeper._changed
        self.process.kill()
        await changed.wait()


def report_of(recipient: Recipient) -> HandedOut:
    assert recipient.report is not None
    return recipient.report


@contextlib.asynccontextmanager
async def keeping(folder: Path, key: str = HEX_KEY) -> AsyncIterator[World]:
    """A keeper that has begun, of the file ``credentials.enc`` in ``folder``."""
    rows = Rows()
    uids = UidRange(900_000, 100) if can_have_own_uids() else None
    environ = {KEY_VARIABLE: key} if key else {}
    with open_keys(folder, None, environ) as keys:
        async with (
            Launcher(KINDS, uids) as launcher,
            Keeper(launcher, keys, folder / "credentials.enc", rows) as keeper,
        ):
            await keeper.begun()
            world = World(folder, keeper, launcher, rows)
            try:
                yield world
            finally:
                for sidecar in world.sidecars:
                    sidecar.close()


def credential(name: str, value: str, **fields: Any) -> Credential:
    return Credential(name, Secret(value), ("api.example.com",), **fields)
