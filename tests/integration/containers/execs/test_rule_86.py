"""Whatever a process does, it is in its own cgroup and is killed with it (docs/security.md, 86)."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from clawbox.containers.docker import DockerBackend
from clawbox.containers.execs import Execs
from clawbox.containers.host import gate_check
from clawbox.errors import ClawboxError, Reason
from tests.integration.containers.docker.conftest import Door
from tests.integration.containers.execs.conftest import TAKEN, end_process, until

ESCAPE = (
    "env -i /bin/setsid /bin/sh -c 'while :; do /bin/sleep 1000; done' >/dev/null 2>&1 </dev/null &"
    " (setsid sh -c 'sleep 1000 &' &) ; echo away; sleep 1000"
)


async def test_rule_86_a_time_limit_ends_what_escaped_by_session_and_environment(inside):
    ended = (await inside.run("sh", "-c", ESCAPE, timeout_ms=1500)).ended
    assert ended.timed_out
    assert ended.exit_code == 137
    assert ended.reason == "its time limit was reached"
    assert 1400 < ended.duration_ms < 8000
    await inside.nothing_inside()
    assert not inside.quarters.ended.is_set()
    assert len(inside.pids()) == 2


async def test_rule_86_a_time_limit_ends_a_fork_bomb(make):
    inside = await make(pids=100)
    bomb = "exec 2>/dev/null; f() { f | f & }; f & exec sleep 1000"
    async with asyncio.timeout(60):
        ended = (await inside.run("sh", "-c", bomb, timeout_ms=1000)).ended
    assert ended.timed_out
    await inside.nothing_inside()
    assert (await inside.run("true")).ended.exit_code == 0


async def test_rule_86_a_call_that_is_cancelled_leaves_nothing(inside, read):
    held = await inside.start("sh", "-c", "sleep 1000 & sleep 1000 & echo ready; wait", exec_id="other")
    await read(held).until(b"ready\n")
    before = len(inside.pids())
    running = asyncio.ensure_future(inside.run("sh", "-c", ESCAPE))
    await until(lambda: len(inside.children()) == 2 and len(inside.pids()) >= before + 4)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # The other one's go on.
    assert len(inside.children()) == 1
    assert len(inside.pids()) == before


@pytest.mark.parametrize("milliseconds", [0, 1, 3, 8, 20, 35, 50, 55, 60, 65, 70, 80])
async def test_rule_86_a_start_that_is_cancelled_at_any_step_leaves_nothing(inside, milliseconds):
    starting = asyncio.ensure_future(inside.start("sh", "-c", "echo x > /workspace/ran; sleep 1000"))
    await asyncio.wait([starting], timeout=milliseconds / 1000)
    if not starting.cancel():
        return  # so fast a machine is no failure
    with pytest.raises(asyncio.CancelledError):
        await starting
    await inside.nothing_inside()


async def test_rule_86_it_is_in_its_own_cgroup_before_its_first_instruction(inside):
    for _ in range(10):
        seen = await inside.run("cat", "/proc/self/cgroup")
        assert b"clawbox-exec-" in seen.stdout
    await inside.nothing_inside()


async def test_rule_86_what_is_not_our_gate_is_never_let_go(inside, monkeypatch):
    def other(pid, **terms):
        raise gate_check.UnsafeContainerError([f"process {pid} does not execute the gate"])

    monkeypatch.setattr("clawbox.containers.execs.inside.check_exec_gate", other)
    with pytest.raises(ClawboxError) as refused:
        await inside.run("sh", "-c", "echo x > /workspace/ran")
    assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
    assert not (inside.quarters.workspace.path / "ran").exists()
    await inside.nothing_inside()


async def test_rule_86_a_pid_that_is_not_the_container_s_is_never_touched(inside, monkeypatch):
    stranger = await asyncio.create_subprocess_exec("sleep", "1000")
    inspect = inside.backend.inspect_exec

    async def lying(exec_id):
        facts = await inspect(exec_id)
        return type(facts)(facts.running, stranger.pid if facts.pid else 0, facts.exit_code)

    monkeypatch.setattr(inside.backend, "inspect_exec", lying)
    try:
        with pytest.raises(ClawboxError) as refused:
            await inside.run("true")
        assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
        assert stranger.returncode is None
        assert b"clawbox" not in _proc(stranger.pid, "cgroup")
        await inside.nothing_inside()
    finally:
        stranger.kill()
        await stranger.wait()


async def test_rule_86_a_signal_reaches_its_process_group_and_nobody_else(inside, read):
    script = "trap 'echo told' USR1; setsid sleep 1000 & echo ready; while :; do sleep 0.02; done"
    held = await inside.start("sh", "-c", script)
    other = await inside.start("sleep", "1000")
    reader = await read(held).until(b"ready\n")

    def sleeping():
        """Its child in a session of its own, and the other exec."""
        return sum(_proc(pid, "cmdline") == b"sleep\x001000\x00" for pid in inside.pids())

    # Until it is one of its own, its child is in the group.
    await until(lambda: sleeping() == 2)
    await held.signal("USR1")
    await reader.until(b"told\n")
    await held.signal("KILL")
    assert (await reader.to_end()).exit_code == 137
    assert sleeping() == 2
    await other.signal("KILL")


async def test_rule_86_what_an_earlier_server_started_is_killed_at_adoption(inside, backend):
    await inside.start("sh", "-c", "setsid sleep 1000 & sleep 1000", keep_running=True)
    assert inside.children()
    async with Execs(backend, taken=TAKEN, shapes=True) as later:
        await later.began(inside.container, inside.quarters, adopted=True)
    await inside.nothing_inside()
    assert len(inside.pids()) == 2


async def test_rule_86_a_server_that_stops_ends_everything(inside, backend, read):
    async with Execs(backend, taken=TAKEN, shapes=True) as others:
        mine, inside.execs = inside.execs, others
        await read(await inside.start("sh", "-c", ESCAPE, keep_running=True)).until(b"away\n")
        assert len(inside.pids()) > 3
    inside.execs = mine
    await inside.nothing_inside()


async def test_rule_86_an_engine_that_goes_away_takes_the_process_along(inside, engine_url, tmp_path, read):
    door = Door(engine_url, tmp_path / "engine.sock")
    await door.open()
    async with DockerBackend(door.url) as behind, Execs(behind, taken=TAKEN, shapes=True) as others:
        mine, inside.execs = inside.execs, others
        held = await inside.start("sh", "-c", f"echo x; {ESCAPE}")
        reader = await read(held).until(b"away\n")
        await door.slam()
        ended = await reader.to_end()
    inside.execs = mine
    assert ended.lost
    assert ended.exit_code is None
    assert ended.reason == "the container engine went away"
    await inside.nothing_inside()


async def test_rule_86_a_gate_that_dies_before_it_is_let_go_runs_nothing(inside):
    own = set(inside.pids())
    starting = asyncio.ensure_future(inside.run("sh", "-c", "echo x > /workspace/ran"))
    await until(lambda: starting.done() or len(inside.pids()) > 2)
    for pid in set(inside.pids()) - own:
        end_process(pid)
    await asyncio.wait([starting])
    failed = starting.exception()
    assert failed is None or failed.reason is Reason.SANDBOX_UNAVAILABLE
    await inside.nothing_inside()


def _proc(pid, name):
    """Empty once it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""
