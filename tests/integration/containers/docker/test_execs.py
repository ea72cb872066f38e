"""Processes in a container by the backend, on a real engine."""

import asyncio
import contextlib
import hashlib
from contextlib import asynccontextmanager

import pytest

from clawbox.containers.backend import ConflictError, EngineError, NotThereError, Stream
from clawbox.errors import ClawboxError, Reason
from tests.integration.containers.docker.conftest import resident_bytes, until


def body(*command, tty=False, **more):
    return {
        "Cmd": list(command),
        "Tty": tty,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        **more,
    }


@asynccontextmanager
async def started(backend, engine_id, *command, tty=False, rows=24, columns=80, **more):
    exec_id = await backend.create_exec(engine_id, body(*command, tty=tty, **more))
    stream = await backend.start_exec(exec_id, tty=tty, rows=rows, columns=columns)
    try:
        async with asyncio.timeout(60):
            yield exec_id, stream
    finally:
        await stream.close()


async def rest(stream):
    out = {Stream.STDOUT: b"", Stream.STDERR: b""}
    while (piece := await stream.read()) is not None:
        assert 0 < len(piece[1]) <= 1 << 16
        out[piece[0]] += piece[1]
    return out[Stream.STDOUT], out[Stream.STDERR]


async def write_much(stream):
    for _ in range(2000):
        await stream.write(b"x" * (1 << 16))


async def until_output(stream, wanted):
    seen = b""
    while wanted not in seen:
        piece = await stream.read()
        assert piece is not None, seen
        seen += piece[1]
    return seen


async def over(backend, exec_id):
    async def ended():
        facts = await backend.inspect_exec(exec_id)
        return None if facts.running else facts

    return await until(ended)


async def begun(backend, exec_id):
    async def has_pid():
        facts = await backend.inspect_exec(exec_id)
        return facts if facts.pid else None

    return await until(has_pid)


@pytest.fixture
async def running(make):
    return await make("sleep", "300")


async def test_output_is_told_apart_and_the_exit_code_is_the_processes(backend, running):
    async with started(backend, running, "sh", "-c", "echo out; echo err >&2; exit 5") as (exec_id, stream):
        assert await rest(stream) == (b"out\n", b"err\n")
        assert await stream.read() is None

    facts = await over(backend, exec_id)
    assert facts.exit_code == 5


async def test_what_has_not_begun_or_runs_has_no_exit_code(backend, running):
    exec_id = await backend.create_exec(running, body("cat"))
    waiting = await backend.inspect_exec(exec_id)
    assert (waiting.running, waiting.pid, waiting.exit_code) == (False, 0, None)

    stream = await backend.start_exec(exec_id, tty=False)
    try:
        facts = await begun(backend, exec_id)
        assert (facts.running, facts.exit_code) == (True, None)
        await stream.close_input()
        assert await rest(stream) == (b"", b"")
        assert (await over(backend, exec_id)).exit_code == 0
    finally:
        await stream.close()


async def test_the_end_of_input_reaches_the_process_which_then_still_answers(backend, running):
    async with started(backend, running, "sh", "-c", "sha256sum; echo done >&2") as (_, stream):
        data = bytes(range(256)) * 20_000

        async def send():
            await stream.write(data)
            await stream.close_input()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            answer = group.create_task(rest(stream))

    out, err = answer.result()
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert err == b"done\n"


async def test_any_bytes_come_back_as_they_were_sent(backend, running):
    data = bytes(range(256)) * 12_000
    async with started(backend, running, "cat") as (_, stream):

        async def send():
            await stream.write(data)
            await stream.close_input()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            answer = group.create_task(rest(stream))

    assert answer.result() == (data, b"")


async def test_writing_waits_for_a_process_that_does_not_read(backend, running):
    async with started(backend, running, "sleep", "300") as (_, stream):
        before = resident_bytes()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(write_much(stream), 1.5)
        assert resident_bytes() - before < 16 << 20
        # And letting go does not wait for it.
        await asyncio.wait_for(stream.close(), 5)


async def test_a_process_waits_for_whoever_does_not_read(backend, running):
    script = "head -c 60000000 /dev/zero; echo over >&2"
    async with started(backend, running, "sh", "-c", script) as (exec_id, stream):
        before = resident_bytes()
        await stream.read()
        await asyncio.sleep(0.5)
        assert (await backend.inspect_exec(exec_id)).running
        assert resident_bytes() - before < 16 << 20
        size = 0
        while (piece := await stream.read()) is not None:
            size += len(piece[1])
        assert size > 59_000_000


async def test_a_read_that_is_cancelled_loses_nothing(backend, running):
    data = b"".join(b"%09d\n" % number for number in range(100_000))
    async with started(backend, running, "cat") as (_, stream):

        async def send():
            await stream.write(data)
            await stream.close_input()

        sending = asyncio.create_task(send())
        got = b""
        turn = 0
        while True:
            reading = asyncio.ensure_future(stream.read())
            for _ in range(turn % 3):
                await asyncio.sleep(0)
            turn += 1
            reading.cancel()
            try:
                piece = await reading
            except asyncio.CancelledError:
                piece = await stream.read()
            if piece is None:
                break
            got += piece[1]
        await sending

    assert got == data


async def test_a_terminal_has_the_size_that_was_asked_for_and_gets_another(backend, running):
    script = "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.1; done"
    async with started(backend, running, "sh", "-c", script, tty=True, rows=31, columns=101) as (
        exec_id,
        stream,
    ):
        seen = await until_output(stream, b"ready\r\n")
        await backend.resize_exec(exec_id, rows=40, columns=120)
        seen += await until_output(stream, b"120\r\n")
        while await stream.read() is not None:
            pass

    assert b"40 120\r\n" in seen
    assert (await over(backend, exec_id)).exit_code == 3


async def test_a_terminal_begins_with_its_size(backend, running):
    # The size arrives when the process has begun; what waits for input, as a gate does, sees it.
    async with started(backend, running, "sh", "-c", "read x; stty size", tty=True, rows=31, columns=101) as (
        _,
        stream,
    ):
        await stream.write(b"go\n")
        assert b"31 101\r\n" in await until_output(stream, b"101\r\n")


async def test_a_process_that_is_gone_takes_no_input(backend, running):
    async with started(backend, running, "true") as (exec_id, stream):
        await rest(stream)
        await over(backend, exec_id)
        with pytest.raises(EngineError):
            await write_much(stream)
        await stream.close_input()


async def test_nothing_is_written_after_the_end_of_input(backend, running):
    async with started(backend, running, "sleep", "300") as (_, stream):
        await stream.close_input()
        with pytest.raises(EngineError):
            await stream.write(b"more")


async def test_an_exec_that_runs_is_not_started_again(backend, running):
    async with started(backend, running, "cat") as (exec_id, _):
        first = await begun(backend, exec_id)
        again = await backend.start_exec(exec_id, tty=False)
        try:
            # The engine agrees before it looks: what it then says is in place of output.
            assert b"already running" in (await rest(again))[0]
        finally:
            await again.close()
        assert await backend.inspect_exec(exec_id) == first


async def test_an_exec_is_not_started_in_a_container_that_has_ended_since(backend, running):
    exec_id = await backend.create_exec(running, body("true"))
    await backend.signal(running, "SIGKILL")

    async def is_over():
        return not (await backend.inspect(running)).runs

    await until(is_over)

    with pytest.raises(EngineError) as refused:
        await backend.start_exec(exec_id, tty=False)
    assert isinstance(refused.value, ConflictError | NotThereError)


async def test_letting_go_leaves_the_process_and_no_connection(backend, running):
    async with started(backend, running, "cat") as (exec_id, stream):
        await begun(backend, exec_id)
        await stream.close()
        await stream.close()


@pytest.mark.parametrize("tty", [False, True])
async def test_after_the_engine_went_away_nobody_says_how_the_process_is(behind, door, running, tty):
    async with started(behind, running, "sh", "-c", "echo ready; cat", tty=tty) as (exec_id, stream):
        await until_output(stream, b"ready")
        await door.slam()
        # An end, or a break that is seen: either way nothing more comes.
        with contextlib.suppress(ClawboxError):
            assert await stream.read() is None
        with pytest.raises(EngineError):
            await write_much(stream)
        with pytest.raises(ClawboxError) as away:
            await behind.inspect_exec(exec_id)
        assert away.value.reason is Reason.DOCKER_UNAVAILABLE


async def test_closing_the_backend_ends_what_it_opened(behind, running):
    async with started(behind, running, "cat") as (_, stream):
        await behind.close()
        assert await stream.read() is None
