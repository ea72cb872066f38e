"""Exec, RunCommand, Logs and Stats over a real channel."""

from __future__ import annotations

import asyncio

import grpc.aio
from clawbox_client.v1 import containers_pb2, sandbox_pb2

from clawbox.containers.backend import Stream
from clawbox.containers.output.reading import Offsets, Oldest, TailLines
from clawbox.containers.states import State
from clawbox.rpc import container_execs


def start(made, **fields):
    return containers_pb2.ExecRequest(
        start=containers_pb2.ExecStart(container_id=made.container_id, command=["cat"], **fields)
    )


async def test_an_exec_has_its_input_its_output_and_its_end(service) -> None:
    made = await service.spawned()
    stream = service.containers.Exec(**service.as_("ann"))
    await stream.write(start(made, exec_id="mine", env={"A": "hidden"}))
    assert (await stream.read()).started.exec_id == "mine"
    await stream.write(containers_pb2.ExecRequest(stdin=b"hello"))
    assert (await stream.read()).stdout.data == b"hello"
    await stream.write(containers_pb2.ExecRequest(signal=containers_pb2.ExecSignal(name="TERM")))
    await stream.write(containers_pb2.ExecRequest(close_stdin=containers_pb2.ExecCloseStdin()))
    exited = await stream.read()
    assert exited.exited.exit_code == 7
    assert [one async for one in _rest(stream)] == []
    process = service.execs.started[0]
    assert process.done == [("signal", "TERM")]
    assert process.detached.is_set()
    row = next(row for row in service.audit.rows if row["kind"] == "container_exec")
    assert row["program"] == "cat"
    assert row["env_names"] == ["A"]
    assert "hidden" not in str(row)


async def _rest(stream):
    while (one := await stream.read()) is not grpc.aio.EOF:
        yield one


async def test_a_caller_that_sends_no_more_does_not_close_stdin(service, monkeypatch) -> None:
    monkeypatch.setattr(container_execs, "KEEPALIVE_SECONDS", 0.01)
    made = await service.spawned()
    stream = service.containers.Exec(**service.as_("ann"))
    await stream.write(start(made))
    assert (await stream.read()).HasField("started")
    await stream.done_writing()
    for _ in range(3):
        assert (await stream.read()).HasField("keepalive")
    assert service.execs.started[0].input.empty()
    stream.cancel()
    await asyncio.wait_for(service.execs.started[0].detached.wait(), 5)


async def test_a_cancelled_stream_lets_go_of_its_process(service) -> None:
    made = await service.spawned()
    stream = service.containers.Exec(**service.as_("ann"))
    await stream.write(start(made))
    await stream.read()
    stream.cancel()
    await asyncio.wait_for(service.execs.started[0].detached.wait(), 5)
    assert await service.server.calls.wait_none_left(5)


async def test_a_server_that_drains_lets_go_of_a_process_after_the_grace(service) -> None:
    made = await service.spawned()
    stream = service.containers.Exec(**service.as_("ann"))
    await stream.write(start(made))
    await stream.read()
    async with asyncio.timeout(10):
        draining = asyncio.ensure_future(service.server.drain())
        assert (await service.refused(stream.read())).reason == "SHUTTING_DOWN"
        await draining
    assert service.execs.started[0].detached.is_set()


async def test_a_command_returns_what_it_wrote(service) -> None:
    made = await service.spawned()
    answer = await service.containers.RunCommand(
        containers_pb2.RunCommandRequest(container_id=made.container_id, command=["x", "y"], stdin=b"in"),
        **service.as_("ann"),
    )
    assert answer.exit_code == 3
    assert (answer.stdout, answer.stderr) == (b"in", b"err")
    assert answer.sanitization.actions_taken == ["credential_pattern_detected"]
    row = next(row for row in service.audit.rows if row["kind"] == "container_run")
    assert row["exit_code"] == 3


async def test_a_cancelled_command_is_cancelled_where_it_runs(service) -> None:
    made = await service.spawned()
    call = service.containers.RunCommand(
        containers_pb2.RunCommandRequest(container_id=made.container_id, command=["forever"]),
        **service.as_("ann"),
    )
    await service.until(lambda: len(service.server.calls) == 1)
    call.cancel()
    assert await service.server.calls.wait_none_left(5)
    assert not any(
        row["decision"] == "allowed" for row in service.audit.rows if row["kind"] == "container_run"
    )


async def test_logs_have_chunks_and_gaps_from_where_they_were_asked_for(service) -> None:
    made = await service.spawned()
    wanted = {"container_id": made.container_id}
    events = [
        one
        async for one in service.containers.Logs(
            containers_pb2.ContainersLogsRequest(**wanted), **service.as_("ann")
        )
    ]
    assert (events[0].gap.offset, events[0].gap.length) == (0, 5)
    assert events[1].chunk.data == b"out"
    assert events[1].chunk.time.seconds == 1_700_000_000
    assert service.output.asked == (frozenset(Stream), Oldest(), False)
    request = containers_pb2.ContainersLogsRequest(
        streams=[sandbox_pb2.STREAM_STDERR], tail_lines=0, follow=True, **wanted
    )
    following = service.containers.Logs(request, **service.as_("ann"))
    await following.read()
    assert service.output.asked == (frozenset({Stream.STDERR}), TailLines(0), True)
    following.cancel()
    request = containers_pb2.ContainersLogsRequest(offsets=containers_pb2.LogOffsets(stdout=3), **wanted)
    async for _ in service.containers.Logs(request, **service.as_("ann")):
        pass
    assert service.output.asked[1] == Offsets(3, 0)


async def test_stats_tell_what_is_used_until_the_container_has_ended(service) -> None:
    made = await service.spawned()
    request = containers_pb2.ContainersStatsRequest(container_id=made.container_id, once=True)
    found = [one async for one in service.containers.Stats(request, **service.as_("ann"))]
    assert [(one.memory_bytes, one.cpu_time_us, one.pids) for one in found] == [(10, 5, 3)]
    await service.manager.finish(made.container_id, State.COMPLETED)
    assert (await service.refused(service.containers.Stats(request, **service.as_("ann")))).reason == (
        "WRONG_STATE"
    )
