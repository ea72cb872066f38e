"""Processes run to their end inside a container."""

import asyncio
from pathlib import Path

import pytest

from clawbox.containers.backend import Stream
from clawbox.containers.docker.execs import ExecConnection
from clawbox.containers.execs import Cut, output
from clawbox.errors import ClawboxError, Reason
from tests.integration.containers.execs.conftest import until


async def test_what_it_wrote_and_how_it_exited(inside):
    ended = await inside.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended.stdout, ended.stderr, ended.ended.exit_code) == (b"out\n", b"err\n", 7)
    assert (ended.ended.timed_out, ended.ended.lost, ended.ended.reason) == (False, False, "")
    assert ended.truncations == ()
    await inside.nothing_inside()


async def test_a_signal_and_a_missing_command_have_docker_s_exit_codes(inside):
    assert (await inside.run("sh", "-c", "kill -TERM $$")).ended.exit_code == 128 + 15
    missing = await inside.run("no-such-command")
    assert missing.ended.exit_code == 127
    assert b"no-such-command" in missing.stderr
    assert (await inside.run("/etc/passwd")).ended.exit_code == 126


async def test_it_runs_as_asked(inside):
    ended = await inside.run(
        "sh", "-c", 'id -u; pwd; echo "$GREETING"', env={"GREETING": "hi"}, working_dir="/tmp"
    )
    assert ended.stdout == b"913001\n/tmp\nhi\n"
    assert (await inside.run("id", "-u", user="4242")).stdout == b"4242\n"


@pytest.mark.parametrize(
    ("call", "reason", "field"),
    [
        ({"command": ()}, Reason.INVALID_FIELD, "command"),
        ({"env": {"LD_PRELOAD": "x"}}, Reason.INVALID_FIELD, "env[LD_PRELOAD]"),
        ({"working_dir": "/proc/self"}, Reason.INVALID_FIELD, "working_dir"),
        ({"working_dir": "/no/such/folder"}, Reason.INVALID_FIELD, "working_dir"),
        ({"user": "root"}, Reason.INVALID_FIELD, "user"),
        ({"user": "0"}, Reason.POLICY_DENIED, None),
        ({"user": "913002"}, Reason.POLICY_DENIED, None),
        ({"timeout_ms": 0}, Reason.INVALID_FIELD, "timeout_ms"),
    ],
)
async def test_what_may_not_be_asked_for_is_refused(inside, call, reason, field):
    command = call.pop("command", ("true",))
    with pytest.raises(ClawboxError) as refused:
        await inside.run(*command, **call)
    assert refused.value.reason is reason
    if field:
        assert refused.value.violations[0].field == field
    await inside.nothing_inside()


async def test_64_mib_of_input_are_read(inside):
    ended = await inside.run("wc", "-c", stdin=b"x" * (64 << 20))
    assert ended.stdout.strip() == str(64 << 20).encode()


async def test_input_that_nobody_reads_is_no_error(inside):
    assert (await inside.run("true", stdin=b"x" * (4 << 20))).ended.exit_code == 0


async def test_it_goes_on_when_it_writes_more_than_is_kept(inside):
    ended = await inside.run("sh", "-c", "head -c 3000000 /dev/zero; echo end >&2", max_output_bytes=1000)
    assert ended.stdout == bytes(1000)
    assert ended.stderr == b"end\n"
    assert ended.truncations == (Cut(Stream.STDOUT, 1000, 2_999_000),)
    assert ended.ended.exit_code == 0


async def test_output_is_cleaned(inside):
    ended = await inside.run("echo", "token", "ghp_" + "a1B2" * 9)
    assert b"ghp_a1B2" not in ended.stdout
    assert [(one.stream, one.count) for one in ended.ended.findings] == [(Stream.STDOUT, 1)]


async def test_what_it_leaves_running_goes_on_and_keeps_nobody_waiting(inside):
    async with asyncio.timeout(10):
        ended = await inside.run("sh", "-c", "sleep 1000 & echo started")
    assert ended.stdout == b"started\n"
    assert ended.ended.exit_code == 0
    assert len(inside.pids()) == 3
    await inside.end()
    assert inside.children() == []


async def test_what_it_wrote_is_not_lost_however_late_the_engine_gives_it_on(inside, monkeypatch):
    read = ExecConnection.read

    async def late(stream):
        piece = await read(stream)
        await asyncio.sleep(0.5)
        return piece

    monkeypatch.setattr(output, "REST_SECONDS", 0.1)
    monkeypatch.setattr(ExecConnection, "read", late)
    assert (await inside.run("echo", "last")).stdout == b"last\n"


async def test_closing_its_output_is_not_its_end(inside):
    ended = await inside.run("sh", "-c", "exec >&- 2>&-; sleep 0.5; exit 3")
    assert ended.ended.exit_code == 3


async def test_20_at_once(inside):
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*(inside.run("sh", "-c", f"echo {n}; exit {n}") for n in range(20)))
    assert [(one.stdout, one.ended.exit_code) for one in ended] == [(b"%d\n" % n, n) for n in range(20)]
    await inside.nothing_inside()


async def test_no_more_than_32_at_once(make):
    inside = await make(pids=128)
    running = [asyncio.ensure_future(inside.run("sleep", "1000")) for _ in range(32)]
    await asyncio.sleep(0)
    with pytest.raises(ClawboxError) as refused:
        await inside.run("true")
    assert refused.value.reason is Reason.EXEC_LIMIT
    for one in running:
        one.cancel()
    await asyncio.wait(running)
    assert (await inside.run("true")).ended.exit_code == 0
    await inside.nothing_inside()


async def test_in_a_container_that_does_not_run(inside):
    await inside.end()
    with pytest.raises(ClawboxError) as refused:
        await inside.run("true")
    assert refused.value.reason is Reason.WRONG_STATE


async def test_in_a_container_that_is_paused_behind_our_back(inside):
    await inside.backend.pause(inside.quarters.engine_id)
    with pytest.raises(ClawboxError) as refused:
        await inside.run("true")
    assert refused.value.reason is Reason.WRONG_STATE
    await inside.backend.unpause(inside.quarters.engine_id)
    await inside.nothing_inside()


async def test_a_container_that_ends_meanwhile_takes_it_along(inside):
    running = asyncio.ensure_future(inside.run("sh", "-c", "echo x > /workspace/there; sleep 1000"))
    there = inside.quarters.workspace.path / "there"
    await until(there.exists)
    await inside.end()
    ended = (await running).ended
    assert ended.lost
    assert ended.reason == "its container ended"
    assert ended.exit_code in {None, 137}


async def test_its_own_end_is_told_as_its_own(inside):
    ended = await inside.run("sh", "-c", "kill -KILL $$")
    assert ended.ended.exit_code == 137
    assert not ended.ended.lost


async def test_no_descriptor_stays_open(inside):
    await inside.run("true")
    before = _descriptors()
    for _ in range(5):
        await inside.run("true")
    assert _descriptors() == before


def _descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))
