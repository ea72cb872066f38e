"""Processes that callers attach to."""

import asyncio
import re
from pathlib import Path

import pytest

from clawbox.containers.backend import Stream
from clawbox.containers.execs import ExecTimes, Exited, Gap, Output, Started
from clawbox.errors import ClawboxError, Reason
from tests.integration.containers.execs.conftest import ADMIN, ALICE, BOB, until


async def test_input_goes_in_and_output_comes_out(inside, read):
    held = await inside.start("sh", "-c", "while read line; do echo got $line; done; echo bye >&2; exit 4")
    reader = read(held)
    await held.write(b"one\n")
    await reader.until(b"got one\n")
    await held.write(b"two\n")
    await held.close_stdin()
    ended = await reader.to_end()
    assert isinstance(reader.events[0], Started)
    assert reader.written(Stream.STDOUT) == b"got one\ngot two\n"
    assert reader.written(Stream.STDERR) == b"bye\n"
    assert ended.exit_code == 4
    await held.write(b"nobody reads this\n")
    await held.close_stdin()
    await inside.nothing_inside()


async def test_a_terminal_has_a_size_and_is_told_of_another(inside, read):
    script = "trap 'stty size; exit 0' WINCH; stty size; while :; do sleep 0.05; done"
    held = await inside.start("sh", "-c", script, tty=True, rows=31, columns=97)
    reader = await read(held).until(b"31 97")
    await held.resize(40, 120)
    assert (await reader.to_end()).exit_code == 0
    assert b"40 120" in reader.output
    assert {event.stream for event in reader.events if isinstance(event, Output)} == {Stream.STDOUT}


async def test_a_terminal_s_prompt_comes_without_a_line_feed(inside, read):
    held = await inside.start("sh", "-c", "printf 'name? '; read name; echo hello $name", tty=True)
    reader = await read(held).until(b"name? ")
    await held.write(b"you\n")
    await reader.to_end()
    assert b"hello you" in reader.output


async def test_a_size_without_a_terminal_is_refused(inside):
    held = await inside.start("sleep", "1000")
    with pytest.raises(ClawboxError) as refused:
        await held.resize(10, 10)
    assert refused.value.reason is Reason.INVALID_FIELD


@pytest.mark.parametrize(
    "call",
    [{"rows": 0}, {"columns": 65_536}, {"exec_id": "a b"}, {"exec_id": "x" * 65}, {"timeout_ms": 0}],
)
async def test_what_makes_no_sense_is_refused(inside, call):
    with pytest.raises(ClawboxError) as refused:
        await inside.start("true", **call)
    assert refused.value.reason is Reason.INVALID_FIELD


async def test_signals(inside, read):
    script = "for s in HUP INT QUIT USR1 USR2; do trap \"echo $s\" $s; done; trap 'echo TERM; exit 9' TERM;"
    held = await inside.start("sh", "-c", f"{script} echo ready; while :; do sleep 0.02; done")
    reader = await read(held).until(b"ready\n")
    for name in ("HUP", "INT", "QUIT", "USR1", "USR2"):
        await held.signal(name)
        await reader.until(name.encode() + b"\n")
    for name in ("SIGTERM", "term", "SEGV", "15", ""):
        with pytest.raises(ClawboxError) as refused:
            await held.signal(name)
        assert refused.value.reason is Reason.INVALID_FIELD
    await held.signal("TERM")
    assert (await reader.to_end()).exit_code == 9
    await held.signal("TERM")


async def test_a_caller_goes_on_where_the_stream_broke_off(inside, read):
    held = await inside.start(
        "sh", "-c", "echo one; read x; echo two; read x; echo three", exec_id="mine", keep_running=True
    )
    first = await read(held).until(b"one\n")
    await first.iterator.aclose()
    held.detach()
    again = inside.execs.attach("mine", ALICE, 4, 0)
    await again.write(b"\n")
    second = await read(again).until(b"two\n")
    assert second.events[0] == Started("mine", 1, attached=True)
    assert second.output == b"two\n"
    again.detach()
    third = inside.execs.attach("mine", ALICE, 0, 0)
    await third.write(b"\n")
    last = read(third)
    await last.to_end()
    assert last.output == b"one\ntwo\nthree\n"
    # What has ended is told again.
    told = read(inside.execs.attach("mine", ALICE, 8, 0))
    assert (await told.to_end()) == last.exited
    assert told.output == b"three\n"
    assert told.events[0].stdin_offset == 2


async def test_offsets_yet_to_come_are_refused(inside):
    await inside.start("sleep", "1000", exec_id="mine")
    with pytest.raises(ClawboxError) as refused:
        inside.execs.attach("mine", ALICE, 1, 0)
    assert refused.value.reason is Reason.INVALID_FIELD


async def test_the_newest_caller_wins(inside, read):
    held = await inside.start("cat", exec_id="mine")
    waiting = asyncio.ensure_future(read(held).to_end())
    await asyncio.sleep(0)
    newest = inside.execs.attach("mine", ALICE, 0, 0)
    with pytest.raises(ClawboxError) as cut:
        await waiting
    assert cut.value.reason is Reason.WRONG_STATE
    with pytest.raises(ClawboxError):
        await held.write(b"from the one before\n")
    held.detach()
    await newest.write(b"hello\n")
    await newest.close_stdin()
    reader = read(newest)
    await reader.to_end()
    assert reader.output == b"hello\n"


async def test_an_id_is_its_principal_s(inside):
    await inside.start("sleep", "1000", exec_id="mine")
    with pytest.raises(ClawboxError) as unknown:
        inside.execs.attach("mine", BOB, 0, 0)
    assert unknown.value.reason is Reason.EXEC_NOT_FOUND
    assert inside.execs.attach("mine", ADMIN, 0, 0).exec_id == "mine"
    assert await inside.start("sleep", "1000", exec_id="mine", principal=BOB)


async def test_the_same_start_again_attaches(inside, read):
    starts = [inside.start("sh", "-c", "echo $$; sleep 1000", exec_id="mine") for _ in range(3)]
    held = await asyncio.gather(*starts)
    reader = await read(held[-1]).until(b"\n")
    assert reader.events[0].attached
    assert len(re.findall(rb"[0-9]+\n", reader.output)) == 1
    assert len(inside.children()) == 1
    with pytest.raises(ClawboxError) as refused:
        await inside.start("sh", "-c", "echo other", exec_id="mine")
    assert refused.value.reason is Reason.EXEC_EXISTS


async def test_a_slow_reader_of_a_flood_costs_no_memory(inside):
    size = 200 << 20
    held = await inside.start("head", "-c", str(size), "/dev/zero")
    before, offset, events = _resident(), 0, 0
    async with asyncio.timeout(120):
        async for event in held.events():
            if isinstance(event, Output):
                assert event.offset == offset
                offset += len(event.data)
                events += 1
                if events % 500 == 0:
                    assert _resident() - before < 32 << 20
            assert not isinstance(event, Gap)
    assert offset == size
    assert isinstance(event, Exited)
    assert event.exit_code == 0


async def test_a_reader_that_does_not_read_holds_the_process_up(inside, read):
    script = "head -c 20000000 /dev/zero; echo done > /workspace/done"
    held = await inside.start("sh", "-c", script, exec_id="mine", keep_running=True)
    process = inside.execs._known["alice", "mine"]
    done = inside.quarters.workspace.path / "done"
    await until(lambda: process.buffers[Stream.STDOUT].end >= 900_000)
    assert not done.exists()
    # With nobody attached it goes on, and the oldest output goes.
    held.detach()
    await until(done.exists)
    reader = read(inside.execs.attach("mine", ALICE, 0, 0))
    await reader.to_end()
    gaps = [event for event in reader.events if isinstance(event, Gap)]
    assert [(gap.stream, gap.offset) for gap in gaps] == [(Stream.STDOUT, 0)]
    assert len(reader.output) >= 1 << 20
    assert gaps[0].length + len(reader.output) == 20_000_000


class TestNobodyAttached:
    @pytest.fixture
    def times(self):
        return ExecTimes(detached=0.2, remembered=0.5)

    async def test_it_is_killed_after_a_time(self, inside):
        held = await inside.start("sh", "-c", "setsid sleep 1000 & sleep 1000", exec_id="mine")
        process = inside.execs._known["alice", "mine"]
        held.detach()
        await inside.nothing_inside()
        await until(lambda: process.is_over)
        assert process.ended.reason == "nobody was attached to it any more"

    async def test_not_when_it_is_to_go_on(self, inside):
        held = await inside.start("sh", "-c", "sleep 1; exit 6", keep_running=True, exec_id="mine")
        held.detach()
        process = inside.execs._known["alice", "mine"]
        await until(lambda: process.is_over)
        assert process.ended.exit_code == 6

    async def test_what_has_ended_is_forgotten_after_a_time(self, inside, read):
        held = await inside.start("true", exec_id="mine")
        await read(held).to_end()
        await until(lambda: not inside.execs._known)
        with pytest.raises(ClawboxError) as unknown:
            inside.execs.attach("mine", ALICE, 0, 0)
        assert unknown.value.reason is Reason.EXEC_NOT_FOUND


async def test_a_container_that_goes_takes_its_processes_along(inside, read):
    held = await inside.start("sleep", "1000", exec_id="mine")
    await inside.end()
    ended = await read(held).to_end()
    assert ended.lost
    assert ended.reason == "its container ended"
    await inside.execs.forgotten(inside.container.container_id)
    with pytest.raises(ClawboxError):
        inside.execs.attach("mine", ALICE, 0, 0)


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
