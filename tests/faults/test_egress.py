"""Sidecars, dialer, keeper and their forkserver die: nothing gets out meanwhile, and all comes back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal

import pytest
from prometheus_client import generate_latest

from clawbox.egress import crashes
from clawbox.egress.crashes import Crashes
from clawbox.egress.credentials import Budget
from clawbox.errors import ClawboxError, Reason
from tests.egress_world import answers
from tests.egress_world.supervised import (
    SECRET,
    TOKEN,
    digest,
    get,
    get_at,
    is_self,
    processes,
    reply,
    request,
    running,
    world,
)

__all__ = ["world"]


def kill(name, sig=signal.SIGKILL):
    found = processes(name)
    assert found, name
    for pid in found:
        os.kill(pid, sig)
    return found


def counted(world, line):
    text = generate_latest(world.metrics.registry).decode()
    return [entry for entry in text.splitlines() if entry.startswith(line)]


async def test_rule_58_a_killed_sidecar_comes_back_at_its_sockets_with_its_tokens_and_authority(
    world, tmp_path
):
    path = tmp_path / "run" / "s" / "proxy.sock"
    async with world.supervisor.sandbox(world.grant()) as door:
        door.listen_unix(path, is_self)
        door.admit(digest())
        ca_pem, inode = door.ca_pem, path.stat().st_ino
        assert (await get_at(path, world.url)).status == 200
        (killed,) = kill("clawbox-egress")
        # Whoever connects now waits for the next sidecar.
        assert (await get_at(path, world.url)).status == 200
        assert processes("clawbox-egress") != [killed]
        assert (door.ca_pem, path.stat().st_ino) == (ca_pem, inode)
        (gap,) = world.rows("egress_gap")
        assert (gap["sandbox"], gap["principal"]) == ("sandbox-1", "ann")
        assert counted(world, 'clawbox_egress_restarts_total{process="sidecar"} 1.0')


async def test_rule_58_while_a_sidecar_is_down_nothing_gets_out(world, tmp_path):
    path = tmp_path / "run" / "s" / "proxy.sock"
    async with world.supervisor.sandbox(world.grant()) as door:
        door.listen_unix(path, is_self)
        door.admit(digest())
        forkservers = kill("clawbox-fork", signal.SIGSTOP)  # none is followed by another for now
        try:
            kill("clawbox-egress")
            await world.until(lambda: not door.serving)
            asking = asyncio.create_task(get_at(path, world.url))
            done, _ = await asyncio.wait([asking], timeout=0.3)
            assert not done
            assert world.upstream.connections == 0
            with pytest.raises(ClawboxError) as refused:
                door.connect(digest(), "call")
            assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
            assert world.supervisor.status().down == 1
        finally:
            for pid in forkservers:
                os.kill(pid, signal.SIGCONT)
        assert (await asking).status == 200


async def test_rule_58_a_request_under_way_breaks_and_is_told_as_a_gap(world):
    world.upstream.route("/never", answers.never)
    async with world.supervisor.sandbox(world.grant()) as door:
        asking = asyncio.create_task(get(door, world.url + "/never"))
        await world.upstream.arrived()
        kill("clawbox-egress")
        with pytest.raises(ConnectionError):
            await asking
        await world.until(lambda: world.upstream.open == 0)
        await _restarted(world, door)
        assert (await get(door, world.url)).status == 200
        assert len(world.rows("egress_gap")) == 1
        assert [row["path"] for row in world.rows()] == ["/"]


async def test_rule_58_output_is_never_shown_raw_when_its_sidecar_dies(world):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        assert await door.clean(1, SECRET[:9].encode(), end=False, shapes=False) == b""
        kill("clawbox-egress")
        await _restarted(world, door)
        with pytest.raises(ClawboxError) as refused:
            await door.clean(1, SECRET[9:].encode(), end=True, shapes=False)
        assert refused.value.reason is Reason.REDACTION_UNAVAILABLE
        assert await door.clean(2, SECRET.encode(), end=True, shapes=False) == b"[REDACTED]"


async def test_rule_58_a_killed_dialer_comes_back_and_sidecars_go_on_with_the_new_one(world):
    async with world.supervisor.sandbox(world.grant()) as door:
        sidecars = processes("clawbox-egress")
        await world.until(lambda: world.supervisor.status().dialer)
        (killed,) = kill("clawbox-dialer")
        await world.until(lambda: processes("clawbox-dialer") not in ([], [killed]))
        async with asyncio.timeout(20):
            while (answer := await get(door, world.url)).status != 200:
                assert (answer.status, answer.reason) == (502, "connect_failed")
        assert processes("clawbox-egress") == sidecars
        assert world.rows("egress_gap") == []
        assert counted(world, 'clawbox_egress_restarts_total{process="dialer"} 1.0')


async def test_rule_58_a_killed_keeper_comes_back_and_tells_sidecars_what_changes(world):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        sidecars = processes("clawbox-egress")
        (killed,) = kill("clawbox-keeper")
        await get(door, world.url)  # the sidecar has what it needs
        assert world.upstream.seen[-1].header("Authorization") == f"Bearer {SECRET}"
        await world.until(lambda: processes("clawbox-keeper") not in ([], [killed]))
        world.keep("api", "sk-test-rotated-0123456789abc")
        async with asyncio.timeout(20):
            while world.upstream.seen[-1].header("Authorization") == f"Bearer {SECRET}":
                await get(door, world.url)
        assert processes("clawbox-egress") == sidecars
        assert counted(world, 'clawbox_egress_restarts_total{process="keeper"} 1.0')
        async with world.supervisor.sandbox(world.grant("sandbox-2", credentials=("api",))) as another:
            assert (await get(another, world.url)).status == 200


async def test_rule_58_with_the_forkserver_everything_dies_and_comes_back(world, tmp_path):
    path = tmp_path / "run" / "s" / "proxy.sock"
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        door.listen_unix(path, is_self)
        door.admit(digest())
        ca_pem = door.ca_pem
        killed = kill("clawbox-fork")
        await world.until(lambda: processes("clawbox-fork") not in ([], killed))
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(ConnectionError):
                    if (await get_at(path, world.url)).status == 200:
                        break
        assert world.upstream.seen[-1].header("Authorization") == f"Bearer {SECRET}"
        assert door.ca_pem == ca_pem
        await world.until(lambda: _all_serve(world.supervisor.status()))


@pytest.mark.parametrize("name", ["clawbox-egress", "clawbox-dialer", "clawbox-keeper"])
async def test_rule_58_a_death_at_any_moment_of_a_start_costs_time_alone(world, monkeypatch, name):
    monkeypatch.setattr(Crashes, "hopeless", lambda *_: False)
    chance = random.Random(58)

    async def killer():
        for _ in range(6):
            await asyncio.sleep(chance.uniform(0, 0.03))
            for pid in processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async with world.supervisor.sandbox(world.grant("first")):
        pass
    killing = asyncio.create_task(killer())
    opened = 0
    for number in range(10):
        with contextlib.suppress(ClawboxError):
            async with asyncio.timeout(20), world.supervisor.sandbox(world.grant(f"sandbox-{number}")):
                opened += 1
    killing.cancel()
    await asyncio.wait([killing])
    assert opened
    async with world.supervisor.sandbox(world.grant("last")) as door:
        async with asyncio.timeout(20):
            while (await get(door, world.url)).status != 200:
                pass
    await world.until(lambda: processes("clawbox-egress") == [])


async def test_rule_64_a_sandbox_whose_sidecar_crashes_again_and_again_is_given_up(world, tmp_path):
    path = tmp_path / "run" / "s" / "proxy.sock"
    async with (
        world.supervisor.sandbox(world.grant()) as door,
        world.supervisor.sandbox(world.grant("another")) as other,
    ):
        door.listen_unix(path, is_self)
        others = _sidecar_of(other)
        while not door.failure:
            with contextlib.suppress(ClawboxError):
                await door.ready()
            for pid in set(processes("clawbox-egress")) - {others}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0)
        assert len(world.rows("egress_gap")) == crashes.TOLERATED + 1
        assert len(world.rows("egress_failed")) == 1
        assert not path.exists()
        with pytest.raises(ClawboxError) as refused:
            await door.ready()
        assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
        assert processes("clawbox-egress") == [others]
        assert (await get(other, world.url)).status == 200


async def test_rule_68_leaks_are_counted_over_all_lives_of_a_sidecar(world):
    """Whoever can crash a sidecar, or wait until it ended idle, has no more guesses than others."""
    world.keep("api")
    grant = world.grant(credentials=("api",))
    for _ in range(3):
        async with world.supervisor.sandbox(grant) as door:
            answer = await _ask(door, request(world.url + "/?" + SECRET, TOKEN))
            assert answer.reason == "leak_detected"
    async with world.supervisor.sandbox(grant) as door:
        answer = await get(door, world.url)
        assert answer.reason == "credentials_suspended"
        kill("clawbox-egress")
        await _restarted(world, door)
        assert (await get(door, world.url)).reason == "credentials_suspended"
    assert len(world.rows("egress_suspended")) == 1
    assert world.upstream.seen == []


async def test_rule_56_a_budget_is_spent_over_all_lives_of_a_sidecar(world):
    """Else who can crash a sidecar, or wait until it ended idle, has a new one each time."""
    world.keep("api", budget=Budget(requests=3))
    grant = world.grant(credentials=("api",))
    async with world.supervisor.sandbox(grant) as door:
        assert (await get(door, world.url)).status == 200
        kill("clawbox-egress")
        await _restarted(world, door)
        assert (await get(door, world.url)).status == 200
    async with world.supervisor.sandbox(grant) as door:
        assert (await get(door, world.url)).status == 200
        assert (await get(door, world.url)).reason == "budget_spent"
    async with world.supervisor.sandbox(world.grant("sandbox-2", credentials=("api",))) as other:
        assert (await get(other, world.url)).status == 200
    assert len(world.upstream.seen) == 4


async def test_nothing_is_left_of_processes_that_were_killed(tmp_path):
    async with running(tmp_path / "home") as world, world.supervisor.sandbox(world.grant()) as door:
        before = _descriptors()
        for name in ("clawbox-egress", "clawbox-dialer", "clawbox-keeper") * 2:
            gone = kill(name)
            await world.until(functools.partial(_replaced, name, gone))
            await door.ready()
        async with asyncio.timeout(20):
            while (await get(door, world.url)).status != 200:
                pass
        door.revoke(digest())  # with it go the connections to the upstream that were kept
        await world.until(lambda: _descriptors() <= before)
    assert not any(map(processes, ("clawbox-egress", "clawbox-dialer", "clawbox-keeper")))


async def _restarted(world, door):
    """The sidecar's death was noticed, and the next one serves."""
    await world.until(lambda: world.rows("egress_gap"))
    await door.ready()


def _all_serve(status):
    return (status.keeper, status.dialer, status.sidecars, status.down) == (True, True, 1, 0)


def _replaced(name, gone):
    return processes(name) not in ([], gone)


def _descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def _sidecar_of(door):
    return door._sidecar.process.pid


async def _ask(door, data):
    reader, writer = await asyncio.open_unix_connection(sock=door.connect(digest(), ""))
    try:
        writer.write(data)
        return await reply(reader)
    finally:
        writer.close()
