"""What becomes of workers: who is served by which, when one is replaced, and what is left behind."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from clawbox.children import program
from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.uids import UidRange
from clawbox.errors import ClawboxError, Reason
from clawbox.wasm import call as call_module
from clawbox.wasm import pool as pool_module
from clawbox.wasm import roster
from clawbox.wasm.model import Abi, Outcome, Run, ToolCode
from clawbox.wasm.pool import WorkerPool
from tests.integration.pool.conftest import LIMITS
from tests.unit.wasm import wat

LONG = msgspec.structs.replace(LIMITS, timeout_ms=60_000, fuel=1 << 60)


def workers(pool):
    return {worker.child.pid for worker in pool._workers}


def busy(pool):
    return [worker for worker in pool._workers if worker.call is not None]


async def eventually(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing announces these
            await asyncio.sleep(0.002)


async def test_a_worker_serves_call_after_call_of_one_principal(pool, execute):
    await execute(wat.ECHO)
    (worker,) = (worker for worker in pool._workers if worker.owner == "alice")
    for _ in range(5):
        await execute(wat.ECHO)
    assert worker.calls == 6


async def test_a_worker_that_has_served_its_time_is_replaced_without_alarm(
    pool, execute, observer, caplog, monkeypatch
):
    monkeypatch.setattr(roster, "CALLS_PER_WORKER", 1)
    for count in range(1, 11):
        result = await execute(wat.COMPONENT_OK, b'"here"', abi=Abi.COMPONENT)
        assert result.output == b'"here"'
        await observer.until(lambda count=count: len(observer.ended) >= count)
    assert set(observer.ended) == {"retired"}
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_killing_a_worker_loses_its_call_alone(pool, execute, observer):
    begun = set()
    calls = [
        asyncio.create_task(
            execute(wat.SPIN_AFTER_OUTPUT, limits=LONG, owner=f"p{n}", on_event=lambda _, n=n: begun.add(n))
        )
        for n in range(2)
    ]
    await eventually(lambda: len(begun) == 2)
    victim = busy(pool)[0]
    victim_owner = victim.owner
    os.kill(victim.child.pid, signal.SIGKILL)
    lost = await calls[int(victim_owner[1:])]
    assert (lost.outcome, lost.message) == (Outcome.SANDBOX_LOST, "the process of the sandbox died")
    assert (await execute(wat.ECHO, b"next")).output == b"next"
    other = calls[1 - int(victim_owner[1:])]
    assert not other.done()
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    assert sorted(observer.ended)[:2] == ["cancelled", "lost"]


async def idle_worker_stopped(pool):
    """Stop the one idle worker, so that it reads nothing more."""
    await eventually(lambda: [worker.preparing_since for worker in pool._workers.idle] == [None])
    (worker,) = pool._workers.idle
    os.kill(worker.child.pid, signal.SIGSTOP)
    return worker


async def test_a_worker_that_dies_before_it_read_its_call_loses_nothing(pool, execute, observer):
    await execute(wat.ECHO)
    worker = await idle_worker_stopped(pool)
    call = asyncio.create_task(execute(wat.ECHO, b"mine"))
    await eventually(lambda: worker.call is not None)
    os.kill(worker.child.pid, signal.SIGKILL)
    result = await call
    assert (result.outcome, result.output) == (Outcome.OK, b"mine")
    assert observer.ended.count("lost") == 1


async def test_a_worker_that_is_killed_for_its_slow_preparation_loses_no_call(pool, execute, observer):
    await execute(wat.ECHO)
    worker = await idle_worker_stopped(pool)
    call = asyncio.create_task(execute(wat.ECHO, b"mine"))
    await eventually(lambda: worker.call is not None)
    worker.kill("overstayed")  # as it is when its next instance takes too long, whoever has it by then
    result = await call
    assert (result.outcome, result.output) == (Outcome.OK, b"mine")
    assert "overstayed" in observer.ended


async def test_a_call_whose_time_is_over_before_its_worker_read_it_has_had_its_time(pool, execute):
    await execute(wat.ECHO)
    worker = await idle_worker_stopped(pool)
    limits = msgspec.structs.replace(LIMITS, timeout_ms=100)
    assert (await execute(wat.ECHO, limits=limits)).outcome is Outcome.TIMEOUT
    assert worker.gone


async def test_a_call_is_lost_when_too_many_workers_die_before_they_read_it(pool, execute, monkeypatch):
    monkeypatch.setattr(call_module, "MAX_WORKERS", 1)
    await execute(wat.ECHO)
    worker = await idle_worker_stopped(pool)
    call = asyncio.create_task(execute(wat.ECHO))
    await eventually(lambda: worker.call is not None)
    os.kill(worker.child.pid, signal.SIGKILL)
    assert (await call).outcome is Outcome.SANDBOX_LOST
    assert (await execute(wat.ECHO, b"next")).output == b"next"


async def test_a_call_that_waits_for_another_worker_may_be_cancelled(uids, forge, observer):
    async with WorkerPool(workers=1, max_concurrent=1, uids=uids, observer=observer) as pool:
        echo = forge.tool(wat.ECHO)
        await pool.run(Run(echo, "a", b"1", LIMITS))
        worker = await idle_worker_stopped(pool)
        call = asyncio.create_task(pool.run(Run(echo, "a", b"2", LIMITS)))
        await eventually(lambda: worker.call is not None)
        os.kill(worker.child.pid, signal.SIGKILL)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (pool.stats().busy, pool.stats().waiting) == (0, 0)
        assert (await pool.run(Run(echo, "a", b"3", LIMITS))).output == b"3"


async def test_killing_workers_under_load_loses_only_calls_in_flight(pool, execute):
    outcomes = []

    async def client(owner):
        for _ in range(40):
            result = await execute(wat.ECHO, b"1", owner=owner)
            outcomes.append(result.outcome)

    clients = asyncio.gather(*(client(f"c{n}") for n in range(4)))
    kills = 0
    while not clients.done():
        found = busy(pool)
        if found and kills < 10 and len(outcomes) > kills * 10:
            with contextlib.suppress(ProcessLookupError):  # the one before is not known to be dead yet
                os.kill(found[0].child.pid, signal.SIGKILL)
                kills += 1
        await asyncio.sleep(0.001)
    await clients
    assert len(outcomes) == 160
    assert set(outcomes) <= {Outcome.OK, Outcome.SANDBOX_LOST}
    assert outcomes.count(Outcome.SANDBOX_LOST) <= kills
    assert (await execute(wat.ECHO, b"1")).outcome is Outcome.OK


async def test_cancelling_kills_the_worker_and_waits_for_its_death(pool, execute):
    call = asyncio.create_task(execute(wat.SPIN, limits=LONG))
    await eventually(lambda: busy(pool))
    (worker,) = busy(pool)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not worker.child.alive


async def test_cancelling_a_call_that_waits_leaves_the_queue(uids, forge):
    async with WorkerPool(workers=1, max_concurrent=1, uids=uids) as pool:
        spin, echo = forge.tool(wat.SPIN), forge.tool(wat.ECHO)
        first = asyncio.create_task(pool.run(Run(spin, "a", b"1", LONG)))
        await eventually(lambda: pool.stats().busy == 1)
        waiting = [asyncio.create_task(pool.run(Run(echo, "b", b"2", LIMITS))) for _ in range(2)]
        await eventually(lambda: pool.stats().waiting == 2)
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        assert pool.stats().waiting == 1
        first.cancel()
        assert (await waiting[1]).output == b"2"
        await asyncio.wait([first])


async def test_principals_take_turns(uids, forge):
    async with WorkerPool(workers=1, max_concurrent=1, uids=uids) as pool:
        spin = forge.tool(wat.SPIN)
        # Long enough for a fresh worker to stand ready when it is the other's turn.
        limits = msgspec.structs.replace(LONG, timeout_ms=700)
        blocker = asyncio.create_task(pool.run(Run(spin, "x", b"1", LONG)))
        await eventually(lambda: pool.stats().busy == 1)
        order = []

        async def call(owner):
            await pool.run(Run(spin, owner, b"1", limits))
            order.append(owner)

        calls: list[asyncio.Task[None]] = []
        for owner in ("a", "a", "a", "b"):
            calls += [asyncio.create_task(call(owner))]
            await eventually(lambda number=len(calls): pool.stats().waiting == number)  # noqa: B008
        blocker.cancel()
        await asyncio.gather(*calls)
        assert order.index("b") == 1


async def test_calls_that_wait_on_something_do_not_block_the_others(uids, forge):
    sleep, echo = forge.tool(wat.SLEEP), forge.tool(wat.ECHO)
    async with WorkerPool(workers=1, max_concurrent=3, uids=uids) as pool:
        sleepers = [asyncio.create_task(pool.run(Run(sleep, "a", b"1", LONG))) for _ in range(2)]
        await eventually(lambda: pool.stats().busy == 2)
        assert (await pool.run(Run(echo, "a", b"3", LIMITS))).output == b"3"
        for sleeper in sleepers:
            sleeper.cancel()
        await asyncio.wait(sleepers)


async def test_leaving_the_pool_ends_what_runs(uids, forge):
    async with WorkerPool(workers=1, max_concurrent=1, uids=uids) as pool:
        running = asyncio.create_task(pool.run(Run(forge.tool(wat.SPIN), "a", b"1", LONG)))
        await eventually(lambda: pool.stats().busy == 1)
        waiting = asyncio.create_task(pool.run(Run(forge.tool(wat.ECHO), "a", b"1", LONG)))
        await eventually(lambda: pool.stats().waiting == 1)
        pids = workers(pool)
    assert (await running).outcome is Outcome.CANCELLED
    with pytest.raises(ClawboxError) as caught:
        await waiting
    assert caught.value.reason is Reason.SHUTTING_DOWN
    with pytest.raises(ClawboxError):
        await pool.run(Run(forge.tool(wat.ECHO), "a", b"1", LONG))
    assert not [pid for pid in pids if _runs(pid)]


def _children_of(pid):
    """Its forkservers: an engine of other tests may be another child."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if Path(f"/proc/{child}/comm").read_text().startswith("clawbox-")]


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_the_forkserver_may_die(pool, execute, observer):
    await execute(wat.ECHO)
    (forkserver,) = _children_of(os.getpid())
    begun = asyncio.Event()
    call = asyncio.create_task(execute(wat.SPIN_AFTER_OUTPUT, limits=LONG, on_event=lambda _: begun.set()))
    await begun.wait()  # else another worker would get it
    os.kill(forkserver, signal.SIGKILL)
    old = list(pool._workers)
    assert (await call).outcome is Outcome.SANDBOX_LOST
    await observer.until(lambda: not any(worker.child.alive for worker in old))
    assert (await execute(wat.ECHO, b"again")).output == b"again"
    assert pool.stats().forkserver_restarts_total == 1


async def test_a_forkserver_that_cannot_start_fails_calls_with_a_time_to_try_again(forge, monkeypatch):
    monkeypatch.setattr(pool_module, "KIND", "clawbox.no_such_module:KIND")
    starts: list[str] = []
    real = program.command

    def counted(module, *arguments):
        starts.append(module)
        return real(module, *arguments)

    monkeypatch.setattr(program, "command", counted)
    async with WorkerPool(workers=1, max_concurrent=1, uids=None) as pool:
        for _ in range(3):
            with pytest.raises(ClawboxError) as caught:
                await pool.run(Run(forge.tool(wat.ECHO), "a", b"1", LIMITS))
            assert caught.value.reason is Reason.SANDBOX_UNAVAILABLE
            assert caught.value.retry_after
        assert len(starts) < 8


async def test_an_artifact_that_is_none_fails_its_calls_alone(pool, execute, tmp_path):
    (tmp_path / "bad").write_bytes(b"no artifact")
    broken = ToolCode("broken", "f" * 64, Abi.COMMAND_MODULE, str(tmp_path / "bad"))
    with pytest.raises(ClawboxError, match="broken"):
        await pool.run(Run(broken, "alice", b"1", LIMITS))
    with pytest.raises(ClawboxError):
        await pool.preload(broken)
    assert (await execute(wat.ECHO, b"1")).outcome is Outcome.OK


async def test_ids_run_out_and_come_back(forge):
    uids = UidRange(914_000, 3) if can_have_own_uids() else None
    async with WorkerPool(workers=1, max_concurrent=4, uids=uids) as pool:
        for _ in range(6):
            result = await pool.run(Run(forge.tool(wat.TRAP), "a", b"1", LIMITS))
            assert result.outcome is Outcome.TOOL_ERROR


async def test_without_privileges_the_pool_works_and_says_what_it_lacks(forge, tmp_path):
    code = forge.tool(wat.ECHO)
    script = tmp_path / "unprivileged.py"
    script.write_text(
        "import asyncio\n"
        "from clawbox.children.enforcement import can_have_own_uids\n"
        "from clawbox.wasm.model import Abi, Limits, Run, ToolCode\n"
        "from clawbox.wasm.pool import WorkerPool\n"
        "async def main():\n"
        "    assert not can_have_own_uids()\n"
        "    async with WorkerPool(workers=1, max_concurrent=1, uids=None) as pool:\n"
        f"        code = ToolCode('echo', {code.digest!r}, Abi.COMMAND_MODULE, {code.artifact!r})\n"
        "        result = await pool.run(Run(code, 'a', b'here', Limits(5000, 10**6, 1 << 24)))\n"
        "        print(result.outcome.value, result.output.decode())\n"
        "        for item in pool.enforcements():\n"
        "            print(item.name, item.in_force)\n"
        "asyncio.run(main())\n"
    )

    def drop():
        from clawbox.children import linux

        if linux.has_capability(linux.CAP_SETPCAP):
            for number in linux.bounding_set():
                linux.prctl(linux.PR_CAPBSET_DROP, number)

    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE, preexec_fn=drop
    )
    output, _ = await process.communicate()
    lines = dict(line.split(" ", 1) for line in output.decode().splitlines())
    assert lines["ok"] == "here"
    assert lines["worker_seccomp"] == "True"
    assert lines["worker_own_uid"] == lines["worker_network_namespace"] == "False"


def _faults(pid):
    """Pages that were not there when the process touched them, so far (minflt of proc(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.parametrize(("text", "abi"), [(wat.ECHO, Abi.COMMAND_MODULE), (wat.COMPONENT_OK, Abi.COMPONENT)])
async def test_what_happens_once_in_a_worker_happens_before_its_first_call(pool, execute, forge, text, abi):
    code = forge.tool(text, abi=abi)
    await pool.preload(code)
    await eventually(lambda: pool._workers.spare and code.digest in pool._workers.spare[0].child.loaded)
    spare = pool._workers.spare[0]
    before = _faults(spare.child.pid)
    await execute(text, b"1", abi=abi)
    assert spare.owner == "alice"
    assert _faults(spare.child.pid) - before < 250  # about 130, and 30; 420 without
