"""A request that is sent twice happens once."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys

import pytest

from clawbox.errors import ClawboxError, Reason
from clawbox.store import Store, sqlite_url
from clawbox.store.request_ids import MAX_RESULT_BYTES, RETENTION_S
from clawbox.uninterrupted import uninterrupted

BODY = hashlib.sha256(b"a request").digest()
OTHER = hashlib.sha256(b"another").digest()
ID = ("ann", "Spawn", "id-1")


class FullDisk:
    """A database that fails, when it is told to, once the test lets it."""

    def __init__(self, database):
        self.database = database
        self.is_full = False
        self.writing = asyncio.Event()
        self.may_fail = asyncio.Event()

    async def write(self, work):
        return await (uninterrupted(self.fail()) if self.is_full else self.database.write(work))

    async def fail(self):
        self.writing.set()
        await self.may_fail.wait()
        raise ClawboxError(Reason.STATE_UNAVAILABLE, "the disk is full")


@pytest.fixture
async def store(tmp_path):
    async with Store(sqlite_url(tmp_path / "state.db")) as store:
        yield store


async def do(store, result=b"made", *, key=ID, body=BODY):
    """One call: its result, and whether it did the work."""
    async with store.request_ids.once(*key, body) as slot:
        if slot.result is not None:
            return slot.result, False
        await slot.finish(result)
    return result, True


async def test_a_success_is_remembered_also_by_the_next_server(tmp_path):
    async with Store(sqlite_url(tmp_path / "state.db")) as store:
        assert await do(store) == (b"made", True)
        assert await do(store, b"again") == (b"made", False)
    async with Store(sqlite_url(tmp_path / "state.db")) as store:
        assert await do(store, b"again") == (b"made", False)


@pytest.mark.parametrize("key", [("bob", "Spawn", "id-1"), ("ann", "Stop", "id-1"), ("ann", "Spawn", "id-2")])
async def test_an_id_is_one_principals_and_one_methods(store, key):
    await do(store)
    assert await do(store, b"other", key=key, body=OTHER) == (b"other", True)


async def test_an_id_with_another_body_is_refused(store):
    async def refused():
        with pytest.raises(ClawboxError) as caught:
            await do(store, body=OTHER)
        assert caught.value.reason is Reason.INVALID_FIELD
        assert caught.value.violations[0].field == "request_id"

    async with store.request_ids.once(*ID, BODY) as slot:
        await refused()
        await slot.finish(b"made")
    await refused()
    assert await do(store) == (b"made", False)


@pytest.mark.parametrize("end", ["failure", "cancellation", "nothing"])
async def test_what_did_not_succeed_frees_its_id_for_any_body(store, end):
    entered = asyncio.Event()

    async def call():
        async with store.request_ids.once(*ID, BODY):
            entered.set()
            if end == "failure":
                raise RuntimeError
            if end == "cancellation":
                await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await entered.wait()
    if end == "cancellation":
        task.cancel()
    await asyncio.wait([task])
    assert await do(store, body=OTHER) == (b"made", True)


async def test_the_same_call_in_flight_is_waited_for(store):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow():
        async with store.request_ids.once(*ID, BODY) as slot:
            begun.set()
            await go_on.wait()
            await slot.finish(b"once")

    first = asyncio.create_task(slow())
    await begun.wait()
    others = [asyncio.create_task(do(store, b"twice")) for _ in range(5)]
    given_up = others.pop()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(task.done() for task in others)
    given_up.cancel()
    go_on.set()
    await first
    assert await asyncio.gather(*others) == [(b"once", False)] * 4


async def test_when_the_first_fails_exactly_one_of_those_who_wait_does_it(store):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def failing():
        async with store.request_ids.once(*ID, BODY):
            begun.set()
            await go_on.wait()
            raise RuntimeError

    first = asyncio.create_task(failing())
    await begun.wait()
    others = [asyncio.create_task(do(store)) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()
    results = await asyncio.gather(*others)
    assert sorted(did for _, did in results) == [False] * 4 + [True]
    assert isinstance(first.exception(), RuntimeError)


async def test_a_call_that_is_cancelled_while_it_finishes_is_remembered(store):
    finishing = asyncio.Event()

    async def call():
        async with store.request_ids.once(*ID, BODY) as slot:
            finishing.set()
            await slot.finish(b"made")

    task = asyncio.create_task(call())
    await finishing.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await do(store, b"again") == (b"made", False)


async def test_a_call_that_cannot_be_remembered_knows_it_though_it_is_cancelled(store):
    full = FullDisk(store.request_ids._database)
    store.request_ids._database = full
    made = []

    async def call():
        async with store.request_ids.once(*ID, BODY) as slot:
            made.append("made")
            full.is_full = True
            try:
                await slot.finish(b"made")
            finally:
                if not slot.finished:
                    made.remove("made")

    task = asyncio.create_task(call())
    await full.writing.wait()
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    full.may_fail.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not made  # who sends the call again finds it undone
    full.is_full = False
    assert await do(store) == (b"made", True)


async def test_a_call_that_the_end_of_a_server_interrupted_can_be_made_again(tmp_path):
    program = """
import asyncio, os, sys
from clawbox.store import Store

async def main():
    async with Store(sys.argv[1]) as store, store.request_ids.once("ann", "Spawn", "id-1", bytes(32)):
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    url = sqlite_url(tmp_path / "state.db")
    command_line = [sys.executable, "-c", program, url]
    tried = await asyncio.to_thread(subprocess.run, command_line, capture_output=True, check=False)
    assert tried.returncode == -9, tried.stderr
    async with Store(url) as store:
        assert await do(store) == (b"made", True)


async def test_a_success_is_forgotten_after_a_day(tmp_path):
    now = 1_000_000.0
    async with Store(sqlite_url(tmp_path / "state.db")) as store:
        store.request_ids._clock = lambda: now
        await do(store)
        now += RETENTION_S - 1
        assert await do(store, b"again") == (b"made", False)
        now += 2
        await do(store, key=("bob", "Spawn", "x"))  # anybody's call removes what is too old
        assert await do(store, b"again", body=OTHER) == (b"again", True)


async def test_a_result_that_is_too_large_is_not_remembered(store):
    with pytest.raises(ValueError, match="bytes"):
        await do(store, b"x" * (MAX_RESULT_BYTES + 1))
    assert await do(store, b"x" * MAX_RESULT_BYTES) == (b"x" * MAX_RESULT_BYTES, True)
