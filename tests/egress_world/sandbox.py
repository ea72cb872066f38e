"""A sandbox's way out in the test's own process: the real proxy before scripted upstreams.

What the processes around it do is stood in for: dialing goes to the upstream that the test put under a name,
rows are kept in a list. The tests of the processes have no such stand-ins.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clawbox.egress.credentials import Credential, SandboxSecrets
from clawbox.egress.messages import Grant, Limits, Row, Spent
from clawbox.egress.proxy import Dialed, Proxy
from clawbox.egress.refusal import Denial, RefusedError
from clawbox.egress.tls.authority import derive_authority
from clawbox.egress.tls.upstream import UpstreamTls
from clawbox.network_rules import NetworkRule, ShapeAction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from tests.egress_world.ca import TestCa
    from tests.egress_world.upstream import Upstream

TOKEN = "a-token-of-the-sandbox-0123456789"
SECRET = "correct-horse-battery-staple-7141"


@dataclass
class Notebook:
    """Rows, kept."""

    rows: list[Row] = field(default_factory=list)
    available: bool = True
    open_tunnels: int = 0
    suspensions: int = 0
    spendings: list[Spent] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def write(self, row: Row) -> None:
        self.rows.append(row)
        asyncio.get_running_loop().create_task(self._notify())

    def tunnels(self, count: int) -> None:
        self.open_tunnels = count

    def suspended(self) -> None:
        self.suspensions += 1

    def spent(self, spent: Spent) -> None:
        self.spendings.append(spent)

    async def written(self, count: int = 1) -> Row:
        """Until that many rows are written in all; gives the last of them."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.rows) >= count)
        return self.rows[count - 1]

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@dataclass
class Directory:
    """Names, each of which leads to one upstream; all others cannot be reached."""

    upstreams: dict[str, Upstream] = field(default_factory=dict)
    dialed: list[tuple[str, int]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    """While it is not set, dialing waits."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def asked(self, count: int = 1) -> None:
        """Until that many have been asked for in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.dialed) >= count)

    async def dial(self, host: str, port: int) -> Dialed:
        self.dialed.append((host, port))
        async with self._changed:
            self._changed.notify_all()
        if self.gate is not None:
            await self.gate.wait()
        upstream = self.upstreams.get(host)
        if upstream is None:
            raise RefusedError(Denial.CONNECT_FAILED)
        return Dialed(await upstream.connect(), upstream.host)


@dataclass
class Sandbox:
    """One proxy. Its listeners ask for :data:`TOKEN`, but for ``open_port``, in a namespace's stead."""

    proxy: Proxy
    rows: Notebook
    names: Directory
    ca_pem: str
    port: int
    open_port: int
    path: str

    @property
    def url(self) -> str:
        """For ``curl --proxy`` and the like."""
        return f"http://x:{TOKEN}@127.0.0.1:{self.port}"

    async def connect(self, *, token: bool = True) -> Wires:
        """A raw connection to the listener that asks for a token, or to the one that does not."""
        return Wires(*await asyncio.open_connection("127.0.0.1", self.port if token else self.open_port))

    async def connect_unix(self) -> Wires:
        """A raw connection to the Unix socket."""
        return Wires(*await asyncio.open_unix_connection(self.path))


@dataclass
class Wires:
    """One raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, data: bytes) -> bytes:
        """Send, and everything that comes until the other end closes."""
        await self.send(data)
        return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


def request(
    target: str, *lines: str, method: str = "GET", token: str | None = TOKEN, host: str = ""
) -> bytes:
    """A request's head, with the token, and the Host that the target means unless another is given."""
    authority = host or target.split("://", 1)[-1].split("/", 1)[0]
    credentials = [f"Proxy-Authorization: Bearer {token}"] if token else []
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", f"Host: {authority}", *credentials, *lines, "", ""]
    ).encode("latin-1")


@contextlib.asynccontextmanager
async def sandbox(
    folder: object,
    upstreams: dict[str, Upstream],
    ca: TestCa,
    *,
    rules: Iterable[object] | None = None,
    credentials: Iterable[Credential] = (),
    broken: dict[str, str] | None = None,
    granted: Iterable[str] | None = None,
    limits: Limits | None = None,
    on_shape: ShapeAction = ShapeAction.BLOCK,
    clock: Callable[[], float] | None = None,
) -> AsyncIterator[Sandbox]:
    """A sandbox that may reach ``upstreams``, by name, or what ``rules`` say, with all of ``credentials``."""
    held = {one.name: one for one in credentials}
    named = tuple(granted) if granted is not None else (*held, *(broken or {}))
    parsed = tuple(
        NetworkRule.parse(rule, any_host=True) for rule in (rules if rules is not None else upstreams)
    )
    grant = Grant("sandbox-1", "ann", parsed, named, on_shape, limits or Limits())
    rows, names = Notebook(), Directory(dict(upstreams))
    authority = derive_authority(b"0" * 32, grant.sandbox)
    extra = {} if clock is None else {"clock": clock}
    async with Proxy(
        grant,
        SandboxSecrets(held, broken or {}),
        dialer=names,
        rows=rows,
        server_tls=authority,
        client_tls=UpstreamTls([ca.pem], system=False),
        **extra,
    ) as proxy:
        proxy.admit(hashlib.sha256(TOKEN.encode()).digest(), "call-1")
        path = f"{folder}/proxy.sock"
        ports = []
        for required in (True, False):
            listener = socket.create_server(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
            proxy.listen(listener, token_required=required)
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(path)
        unix.listen()
        proxy.listen(unix, token_required=True)
        with_token, without = ports
        yield Sandbox(proxy, rows, names, authority.ca_pem, with_token, without, path)
