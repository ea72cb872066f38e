"""What containers on a real engine use."""

import asyncio

import pytest

from clawbox.containers.backend import UsageSample
from clawbox.containers.usage import cpu_millis, watch_usage
from clawbox.egress.recording import EgressUsage
from clawbox.errors import ClawboxError, Reason
from tests.egress_world.supervised import World, digest, get, world
from tests.integration.containers.output.conftest import backend, program

__all__ = ["backend", "program", "world"]


def sample(time_ns, cpu_ns):
    return UsageSample(time_ns, 0, 0, cpu_ns, 0, 0, 0, 0)


def test_cpu_use_is_told_in_thousandths_of_a_core():
    assert cpu_millis(None, sample(0, 5)) == 0
    assert cpu_millis(sample(0, 0), sample(10**9, 5 * 10**8)) == 500
    assert cpu_millis(sample(0, 0), sample(10**9, 2 * 10**9)) == 2000
    assert cpu_millis(sample(5, 0), sample(5, 9)) == 0
    assert cpu_millis(sample(0, 9), sample(5, 0)) == 0


@pytest.mark.parametrize("interval_ms", [1, 99, 3_600_001])
async def test_an_absurd_interval_is_refused(backend, program, interval_ms):
    one = await program("true")
    with pytest.raises(ClawboxError) as caught:
        watch_usage(backend, one.quarters, interval_ms=interval_ms, once=False)
    assert caught.value.reason is Reason.INVALID_FIELD


async def test_usage_comes_at_once_then_again_and_ends_with_the_container(backend, program):
    one = await program("trap exit TERM; while :; do :; done")
    await backend.start(one.quarters.engine_id)
    async with asyncio.timeout(30):
        usage = watch_usage(backend, one.quarters, interval_ms=500, once=False)
        first, second = await anext(usage), await anext(usage)
        assert first.cpu_millis == 0
        assert second.cpu_millis > 50
        assert second.sample.time_ns - first.sample.time_ns >= 400_000_000
        assert second.sample.memory_bytes > 0
        assert second.sample.pids >= 1
        assert second.egress == EgressUsage()
        await backend.signal(one.quarters.engine_id, "SIGKILL")
        await one.exited()
        one.quarters.ended.set()
        assert [more async for more in usage] == []


async def test_once_is_one_message(backend, program):
    one = await program("sleep 100")
    await backend.start(one.quarters.engine_id)
    assert len([one async for one in watch_usage(backend, one.quarters, interval_ms=0, once=True)]) == 1


async def test_requests_and_bytes_are_counted_over_all_lives_of_a_sidecar(backend, program, world: World):
    async with world.supervisor.sandbox(world.grant()) as door:
        one = await program("sleep 100", door=door)
        await backend.start(one.quarters.engine_id)
        door.admit(digest())
        await get(door, world.url)
        assert (await get(door, "http://refused.invalid/")).status == 403
        await world.until(lambda: door.usage.allowed + door.usage.denied == 2)
        (usage,) = [one async for one in watch_usage(backend, one.quarters, interval_ms=0, once=True)]
    assert (usage.egress.allowed, usage.egress.denied) == (1, 1)
    assert usage.egress.received_bytes >= len(b"hello")
