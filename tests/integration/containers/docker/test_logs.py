"""Logs by the backend, on a real engine."""

import asyncio
import time
from contextlib import aclosing

import pytest

from clawbox.containers.backend import Stream
from clawbox.errors import ClawboxError, Reason
from tests.integration.containers.docker.conftest import resident_bytes, sockets, until

SECOND = 1_000_000_000


async def read_all(backend, engine_id, **options):
    async with asyncio.timeout(60), aclosing(backend.logs(engine_id, **options)) as logs:
        return [entry async for entry in logs]


async def test_streams_are_told_apart_with_times_until_the_container_ends(backend, make):
    before = time.time_ns()
    engine_id = await make("sh", "-c", "echo one; echo two >&2; echo; printf three")

    entries = await read_all(backend, engine_id, follow=True)

    out = [entry.data for entry in entries if entry.stream is Stream.STDOUT]
    err = [entry.data for entry in entries if entry.stream is Stream.STDERR]
    assert out == [b"one\n", b"\n", b"three"]
    assert err == [b"two\n"]
    assert all(before - SECOND < entry.time_ns < time.time_ns() + SECOND for entry in entries)
    assert await read_all(backend, engine_id) == entries


async def test_a_log_is_read_on_from_a_time(backend, make):
    engine_id = await make("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo $i; done")
    entries = await read_all(backend, engine_id, follow=True)
    assert len({entry.time_ns for entry in entries}) == 9

    for index, entry in enumerate(entries):
        assert await read_all(backend, engine_id, since_ns=entry.time_ns) == entries[index:]
        assert await read_all(backend, engine_id, since_ns=entry.time_ns + 1) == entries[index + 1 :]


async def test_a_long_line_comes_in_pieces_that_make_the_line(backend, make):
    engine_id = await make("sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end")

    entries = await read_all(backend, engine_id, follow=True)

    assert b"".join(entry.data for entry in entries) == b"x" * 100_000 + b"\nend\n"
    assert len(entries) > 2
    assert not entries[0].data.endswith(b"\n")


async def test_lines_arrive_while_the_container_runs(backend, make):
    engine_id = await make("sh", "-c", "echo first; sleep 300")

    async with asyncio.timeout(20), aclosing(backend.logs(engine_id, follow=True)) as logs:
        assert (await anext(logs)).data == b"first\n"
    assert [entry.data for entry in await read_all(backend, engine_id)] == [b"first\n"]


async def test_a_flood_waits_for_its_reader(backend, make):
    engine_id = await make("sh", "-c", "yes 0123456789012345678901234567890123456789 | head -n 400000")
    read = 0
    async with asyncio.timeout(120), aclosing(backend.logs(engine_id, follow=True)) as logs:
        assert (await anext(logs)).data
        before = resident_bytes()
        # Nobody reads; what the container writes goes to the engine's file.
        await asyncio.to_thread(time.sleep, 1)
        async for entry in logs:
            assert len(entry.data) == 41
            read += 1
            if read == 150_000:
                break
        grown = resident_bytes() - before

    assert grown < 24 << 20


@pytest.mark.parametrize("follow", [True, False])
async def test_a_log_that_breaks_off_says_so(behind, door, make, follow):
    engine_id = await make(
        "sh",
        "-c",
        "head -c 30000000 /dev/zero | tr '\\0' x | fold -w 1000; sleep 300"
        if not follow
        else "echo one; sleep 300",
    )
    if not follow:
        async with asyncio.timeout(60), aclosing(behind.logs(engine_id, follow=True)) as logs:
            size = 0
            async for entry in logs:
                size += len(entry.data)
                if size > 5_000_000:
                    break

    async with asyncio.timeout(20), aclosing(behind.logs(engine_id, follow=follow)) as logs:
        await anext(logs)
        await door.slam()
        with pytest.raises(ClawboxError) as broken:
            async for _ in logs:
                pass
    assert broken.value.reason is Reason.DOCKER_UNAVAILABLE


async def test_a_reader_who_leaves_leaves_no_connection(backend, make):
    engine_id = await make("sh", "-c", "echo one; sleep 300")
    before = sockets()

    async def follow():
        async with aclosing(backend.logs(engine_id, follow=True)) as logs:
            async for _ in logs:
                reached.set()

    reached = asyncio.Event()
    task = asyncio.create_task(follow())
    async with asyncio.timeout(20):
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: len(sockets()) <= len(before))
