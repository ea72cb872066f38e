import asyncio
from pathlib import Path

import msgspec
import pytest

from clawbox.children.channel import FrameProtocol
from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.launcher import Launcher
from clawbox.children.uids import UidRange
from tests.unit.children.probe_kind import Answer, Ask

ROOT = str(Path(__file__).parents[3])
KINDS = "tests.unit.children.probe_kind"
PROBE = {"probe": f"{KINDS}:KIND"}
FIRST_UID = 912_000


class Probe:
    """A probe child with its channel."""

    def __init__(self, child, descriptors):
        self.child = child
        self.descriptors = descriptors
        self.broken = asyncio.get_running_loop().create_future()
        self._answers: asyncio.Queue[Answer] = asyncio.Queue()
        self.protocol = FrameProtocol(
            msgspec.msgpack.Decoder(Answer),
            self._answers.put_nowait,
            self.broken.set_result,
            max_bytes=1 << 16,
        )

    @classmethod
    async def start(cls, launcher, kind="probe", **options):
        child, channel, descriptors = await launcher.fork(kind, **options)
        probe = cls(child, descriptors)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: probe.protocol, sock=channel)
        assert await probe.next() == "ready"
        return probe

    async def next(self):
        async with asyncio.timeout(20):
            return (await self._answers.get()).value

    async def ask(self, name, argument=0):
        self.protocol.send(Ask(name, argument))
        return await self.next()

    def tell(self, name, argument=0):
        self.protocol.send(Ask(name, argument))

    async def close(self):
        self.child.kill()
        self.descriptors.close()
        await self.child.dead()
        if not self.broken.done():
            await self.broken


@pytest.fixture
def uids():
    return UidRange(FIRST_UID, 50) if can_have_own_uids() else None


@pytest.fixture
async def launcher(uids):
    async with Launcher(PROBE, uids) as running:
        yield running


@pytest.fixture
async def probe(launcher):
    started = await Probe.start(launcher)
    yield started
    await started.close()


@pytest.fixture
async def family(uids):
    """One forkserver for several kinds."""
    kinds = ("serving", "dialing", "keeping")
    async with Launcher({kind: f"{KINDS}:{kind.upper()}" for kind in kinds}, uids) as running:
        yield running
