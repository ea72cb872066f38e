"""What programs on a real engine write, captured and read."""

import asyncio
import contextlib
import os
import signal
import time

import pytest

from clawbox.containers.backend import Stream
from clawbox.containers.output.capture import OutputCapture
from clawbox.containers.output.reading import Chunk, Gap, Offsets, Oldest, Since, TailLines
from clawbox.errors import ClawboxError, Reason
from tests.egress_world.supervised import SECRET, World, processes, world
from tests.integration.containers.output.conftest import read_all, text

__all__ = ["world"]

FOREVER = "while :; do sleep 0.1; done"


async def until_said(capture, container_id, what: bytes, stream=Stream.STDOUT):
    """Until a program wrote that."""
    said = b""
    async with (
        asyncio.timeout(30),
        contextlib.aclosing(capture.read(container_id, (stream,), Oldest(), follow=True)) as events,
    ):
        async for event in events:
            said += event.data if isinstance(event, Chunk) else b""
            if what in said:
                return


async def test_a_program_that_dies_at_once_loses_nothing(capture, program):
    one = await program("echo out; echo err >&2; printf 'no end'")
    await one.start(capture)
    reading = asyncio.create_task(read_all(capture, one.id))
    await one.finish(capture)
    events = await reading
    assert text(events) == b"out\nno end"
    assert text(events, Stream.STDERR) == b"err\n"
    tail = await capture.tail(one.id, 5)
    assert (tail.stdout, tail.stderr) == (b"o end", b"err\n")
    assert tail.truncations == ((Stream.STDOUT, 5),)


async def test_a_reader_follows_and_ends_with_the_container(capture, program):
    one = await program("trap 'echo last; exit' TERM; echo first; while :; do sleep 0.1; done")
    before = time.time_ns()
    await one.start(capture)
    async with asyncio.timeout(30):
        events = capture.read(one.id, (), Oldest(), follow=True)
        first = await anext(events)
        assert (first.data, first.offset) == (b"first\n", 0)
        assert before - 10**9 < first.time_ns < time.time_ns() + 10**9
        await one.backend.signal(one.quarters.engine_id, "SIGTERM")
        last = await anext(events)
        assert (last.data, last.offset) == (b"last\n", 6)
        await one.finish(capture)
        assert [event async for event in events] == []


async def test_a_reader_begins_where_it_wants_to(capture, program):
    # Each line when the one before is known: an engine reads the two streams on their own, in no order.
    told = "until [ $told ]; do sleep 0.02; done; told="
    lines = f"for i in 1 2 3; do echo out $i; {told}; echo err $i >&2; {told}; done"
    one = await program(f"trap 'told=1' USR1; {lines}")
    await one.start(capture)
    for number in (1, 2, 3):
        for name, stream in (("out", Stream.STDOUT), ("err", Stream.STDERR)):
            await until_said(capture, one.id, f"{name} {number}\n".encode(), stream)
            await one.backend.signal(one.quarters.engine_id, "SIGUSR1")
    await one.finish(capture)
    events = await read_all(capture, one.id)
    times = [event.time_ns for event in events if isinstance(event, Chunk)]
    assert [event.data for event in events if isinstance(event, Chunk)] == [
        f"{stream} {number}\n".encode() for number in (1, 2, 3) for stream in ("out", "err")
    ]
    assert await read_all(capture, one.id, follow=False) == events
    assert await read_all(capture, one.id, TailLines(3)) == events[3:]
    assert await read_all(capture, one.id, TailLines(0)) == []
    assert await read_all(capture, one.id, TailLines(100)) == events
    assert await read_all(capture, one.id, Since(times[2])) == events[2:]
    assert await read_all(capture, one.id, Offsets(stdout=6, stderr=12)) == [events[2], events[4], events[5]]
    only = await read_all(capture, one.id, TailLines(2), streams=(Stream.STDERR,))
    assert text(only, Stream.STDERR) == b"err 2\nerr 3\n"


async def test_secrets_split_across_writes_are_replaced_and_offsets_count_what_is_shown(
    capture, program, world: World
):
    world.keep("api")
    half, rest = SECRET[:11], SECRET[11:]
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        one = await program(
            f"printf 'key {half}'; sleep 0.3; printf '{rest}'; sleep 0.1; echo ' .'; echo end", door=door
        )
        await one.start(capture)
        await one.finish(capture)
    events = await read_all(capture, one.id)
    assert text(events) == b"key [REDACTED] .\nend\n"
    assert text(await read_all(capture, one.id, Offsets(stdout=17))) == b"end\n"
    tail = await capture.tail(one.id, 1000)
    assert [(finding.pattern, finding.count) for finding in tail.found] == [("known_secret", 1)]
    for path in (capture._folder / one.id).iterdir():
        assert half.encode() not in path.read_bytes()


async def test_rule_76_offsets_mean_the_same_after_the_server_died(backend, program, tmp_path):
    script = (
        "i=0; while [ $i -lt 40 ]; do echo line $i; [ $((i % 5)) = 0 ] && echo err $i >&2;"
        " i=$((i+1)); sleep 0.03; done; printf end"
    )
    one = await program(script)
    folder = tmp_path / "output"
    # It is dropped in the middle without a chance to write anything down, again and again.
    async with OutputCapture(backend, folder, shapes=True) as first:
        await one.start(first)
        await until_said(first, one.id, b"line 9\n")
        seen = await read_all(first, one.id, follow=False)
        first._following[one.id][1].cancel()
    async with OutputCapture(backend, folder, shapes=True) as second:
        await second.began(one.known, one.quarters, adopted=True)
        await until_said(second, one.id, b"line 20\n")
        second._following[one.id][1].cancel()
    async with OutputCapture(backend, folder, shapes=True) as third:
        await third.began(one.known, one.quarters, adopted=True)
        await one.finish(third)
        whole = b"".join(b"line %d\n" % number for number in range(40)) + b"end"
        events = await read_all(third, one.id)
        assert text(events) == whole
        assert text(events, Stream.STDERR) == b"".join(b"err %d\n" % number for number in range(0, 40, 5))
        assert whole.startswith(text(seen))
        assert (
            text(await read_all(third, one.id, Offsets(stdout=len(text(seen))))) == whole[len(text(seen)) :]
        )
    async with OutputCapture(backend, folder, shapes=True) as fourth:
        assert text(await read_all(fourth, one.id)) == whole
        assert (await fourth.tail(one.id, 3)).stdout == b"end"
        await fourth.forgotten(one.id)
        assert await read_all(fourth, one.id) == []
        assert list(folder.iterdir()) == []


async def test_what_could_not_be_cleaned_waits_for_the_next_sidecar(capture, program, world: World):
    world.keep("api")
    script = f"trap 'echo; echo after {SECRET}; exit' TERM; echo before {SECRET}; printf half; {FOREVER}"
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        one = await program(script, door=door)
        await one.start(capture)
        await until_said(capture, one.id, b"before [REDACTED]\n")
        os.kill(processes("clawbox-egress")[0], signal.SIGKILL)
        await world.until(lambda: not door.serving)
        await one.backend.signal(one.quarters.engine_id, "SIGTERM")
        await until_said(capture, one.id, b"after")
        await one.finish(capture)
    assert text(await read_all(capture, one.id)) == b"before [REDACTED]\nhalf\nafter [REDACTED]\n"
    tail = await capture.tail(one.id, 1000)
    assert [(finding.pattern, finding.count) for finding in tail.found] == [("known_secret", 2)]
    assert tail.truncations == ()


async def test_nothing_is_shown_that_was_never_cleaned(capture, program, world: World):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        one = await program(f"echo {SECRET}", door=door)
        await door.close()
        await one.start(capture)
        await one.exited()
        await world.until(lambda: capture._following[one.id][0].unclean)
        with pytest.raises(ClawboxError) as caught:
            await capture.tail(one.id, 100)
        assert caught.value.reason is Reason.REDACTION_UNAVAILABLE
        capture._following[one.id][1].cancel()
        await capture.ended(one.known, one.quarters)
        with pytest.raises(ClawboxError):
            await capture.tail(one.id, 100)
        assert set(await read_all(capture, one.id)) == {Gap(Stream.STDOUT, 0, 0), Gap(Stream.STDERR, 0, 0)}


async def test_a_flood_keeps_the_newest_and_tells_what_went(capture, program):
    one = await program(f"yes {'x' * 99} | head -c 50000000; echo; echo the end >&2")
    await one.start(capture)
    await one.finish(capture)
    events = await read_all(capture, one.id, Offsets())
    gap, *rest = [event for event in events if event.stream is Stream.STDOUT]
    assert isinstance(gap, Gap)
    assert gap.offset == 0
    kept = text([gap, *rest])
    assert 2 << 20 < len(kept) <= 17 << 20
    assert set(kept.splitlines()[1:-1]) == {b"x" * 99}
    assert text(events, Stream.STDERR) == b"the end\n"
    size = sum(path.stat().st_size for path in (capture._folder / one.id).iterdir())
    assert size < 40 << 20


async def test_what_the_engine_threw_away_while_nobody_read_is_told(backend, program, tmp_path):
    one = await program(
        f"trap 'yes a line of some length | head -n 3000; echo last; exit' TERM; echo first; {FOREVER}",
        log={"max-size": "20k", "max-file": "2", "compress": "false"},
    )
    folder = tmp_path / "output"
    async with OutputCapture(backend, folder, shapes=True) as capture:
        await one.start(capture)
        await until_said(capture, one.id, b"first\n")
    await backend.signal(one.quarters.engine_id, "SIGTERM")
    await one.exited()
    async with OutputCapture(backend, folder, shapes=True) as capture:
        await capture.began(one.known, one.quarters, adopted=True)
        await one.finish(capture)
        events = await read_all(capture, one.id)
        assert isinstance(events[0], Chunk)
        assert (events[0].data, events[1]) == (b"first\n", Gap(Stream.STDOUT, 6, 0))
        assert text(events).endswith(b"a line of some length\nlast\n")
        assert (await capture.tail(one.id, 1 << 20)).truncations[0][0] is Stream.STDOUT
