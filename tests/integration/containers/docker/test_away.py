"""An engine that is away, comes back, hangs, or breaks off; calls that are cancelled."""

import asyncio
import time
from contextlib import aclosing

import pytest

from clawbox.containers.docker import DockerBackend
from clawbox.containers.docker import backend as backend_module
from clawbox.errors import ClawboxError, Reason
from tests.integration.containers.docker.conftest import until


async def unavailable(call):
    with pytest.raises(ClawboxError) as away:
        async with asyncio.timeout(20):
            await call
    assert away.value.reason is Reason.DOCKER_UNAVAILABLE
    assert away.value.retry_after
    assert "/" not in away.value.message


def calls(backend):
    """Every method, each with something to ask about."""
    return (
        backend.about(),
        backend.image("x:y"),
        backend.create("clawbox-test-away", {"Image": "x", "Cmd": ["true"]}),
        backend.start("x"),
        backend.inspect("x"),
        backend.list("x"),
        backend.signal("x", "SIGTERM"),
        backend.pause("x"),
        backend.unpause("x"),
        backend.remove("x"),
        backend.usage("x"),
        backend.create_exec("x", {"Cmd": ["true"]}),
        backend.start_exec("x", tty=False),
        backend.inspect_exec("x"),
        backend.resize_exec("x", rows=1, columns=1),
        anext(backend.events(0)),
        anext(backend.pull("x:y")),
        anext(backend.logs("x")),
    )


async def test_an_engine_that_was_never_there(tmp_path, nothing_left):
    async with DockerBackend(f"unix://{tmp_path}/none.sock") as backend:
        for call in calls(backend):
            await unavailable(call)


async def test_an_engine_that_refuses_connections_over_tcp(nothing_left):
    async with DockerBackend("tcp://127.0.0.1:9") as backend:
        for call in calls(backend):
            await unavailable(call)


async def test_an_engine_that_goes_and_comes_back(behind, door, make):
    engine_id = await make("true", start=False)
    assert await behind.inspect(engine_id)

    await door.slam()
    for call in calls(behind):
        await unavailable(call)

    await door.open()
    assert (await behind.inspect(engine_id)).engine_id == engine_id
    assert (await behind.about()).version


async def test_an_engine_that_hangs_is_away_when_a_calls_time_is_over(behind, door, monkeypatch):
    await behind.about()
    for limit in ("ABOUT_SECONDS", "ASK_SECONDS", "DO_SECONDS", "QUIET_PULL_SECONDS"):
        monkeypatch.setattr(backend_module, limit, 0.05)
    door.silent = True

    for call in calls(behind):
        await unavailable(call)

    await until(lambda: not door.connections)


async def test_a_call_that_is_cancelled_leaves_no_connection(behind, door):
    await behind.about()
    door.silent = True
    for call in calls(behind):
        door.waiting = 0
        task = asyncio.ensure_future(call)
        async with asyncio.timeout(20):
            await until(lambda: door.waiting)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not door.connections)


async def test_events_that_break_off_say_so(behind, door, make):
    since = time.time_ns()
    await make("true")
    async with asyncio.timeout(20), aclosing(behind.events(since)) as events:
        await anext(events)
        await door.slam()
        with pytest.raises(ClawboxError) as broken:
            async for _ in events:
                pass
    assert broken.value.reason is Reason.DOCKER_UNAVAILABLE


async def test_events_end_with_an_engine_that_stops_in_good_order(start_engine, nothing_left):
    engine = await asyncio.to_thread(start_engine)
    async with DockerBackend(engine.url) as backend:
        engine_id = (await backend.about()).engine_id
        async with asyncio.timeout(60), aclosing(backend.events(0)) as events:
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.to_thread(engine.stop)
            await unavailable(waiting)
        await unavailable(backend.about())
        await asyncio.to_thread(engine.start)
        assert (await backend.about()).engine_id == engine_id


async def test_streams_do_not_keep_calls_waiting(backend, make):
    engine_id = await make("sh", "-c", "echo one; sleep 300")
    streams = [backend.logs(engine_id, follow=True) for _ in range(130)]
    try:
        async with asyncio.timeout(60):
            for stream in streams:
                assert (await anext(stream)).data == b"one\n"
            assert (await backend.inspect(engine_id)).runs
    finally:
        for stream in streams:
            await stream.aclose()


async def test_a_backend_that_is_closed_answers_nothing(engine_url, nothing_left):
    async with DockerBackend(engine_url) as backend:
        await backend.about()
        await backend.close()
        for call in calls(backend):
            await unavailable(call)
