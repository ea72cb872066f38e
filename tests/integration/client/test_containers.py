"""Containers through both clients, against a service that behaves as the contract says."""

from __future__ import annotations

import asyncio
import io
import os
import stat
from typing import Any

import clawbox_client as cb
import pytest
from clawbox_client import Client, SyncClient
from clawbox_client.v1 import containers_pb2 as pb

from tests.integration.client.container_fakes import FIRST, SECOND, THIRD, Relay
from tests.integration.client.fakes import TOKEN


@pytest.fixture
def containers(server):
    server.containers.add(FIRST, state=pb.CONTAINER_STATE_RUNNING, task="one", labels={"k": "v"})
    server.containers.add(SECOND, state=pb.CONTAINER_STATE_RUNNING)
    server.containers.add(THIRD, state=pb.CONTAINER_STATE_FAILED, exit_code=3)
    return server.containers


async def test_a_spawn_says_what_was_asked_for(caller, server):
    made = await caller.call(
        "spawn", "a task", image="alpine", command=["sh", "-c", "true"], network=["a.example:8443"],
        credentials=["github"], env={"A": "b"}, memory_mb=64, cpu_millis=500, pids=9, timeout_ms=1000,
        max_lifetime_ms=2000, workspace_id="w", labels={"k": "v"}, request_id="r",
    )  # fmt: skip

    assert (made.container_id, made.state, made.active) == (FIRST, cb.ContainerState.RUNNING, True)
    sent = server.seen[0].request
    assert (sent.image, sent.WhichOneof("source"), list(sent.command)) == (
        "alpine",
        "image",
        ["sh", "-c", "true"],
    )
    assert sent.capabilities.network.rules[0].ports == [8443]
    assert sent.capabilities.resources.cpu_millis == 500
    assert (sent.env, sent.labels, sent.workspace.workspace_id) == ({"A": "b"}, {"k": "v"}, "w")
    assert (sent.max_lifetime_ms, sent.request_id) == (2000, "r")


async def test_a_spawn_that_says_nothing_sends_nothing(caller, server):
    await caller.call("spawn", "a task")

    sent = server.seen[0].request
    assert [field.name for field, _ in sent.ListFields()] == ["task"]


async def test_two_sources_are_refused_before_anything_is_sent(caller, server):
    with pytest.raises(ValueError, match="not both"):
        await caller.call("spawn", "t", image="a", template="b")
    assert server.seen == []


async def test_an_option_that_there_is_not_is_refused_before_anything_is_sent(caller, server):
    with pytest.raises(TypeError, match="there is no option 'comand'; did you mean 'command'"):
        await caller.call("spawn", "t", image="a", comand=["ls"])
    with pytest.raises(TypeError, match="there is no option 'working_directory'"):
        await caller.call("run_command", FIRST, ["ls"], working_directory="/tmp")
    with pytest.raises(TypeError, match="did you mean 'memory_mb'"):
        await caller.call("run_python", "1", memory=64)
    assert server.seen == []


async def test_lists_follow_their_pages(caller, containers):
    found = await caller.collect("list_containers", include_finished=True)

    assert [one.container_id for one in found] == [FIRST, SECOND, THIRD]
    assert (found[2].state, found[2].exit_code, found[2].active) == (cb.ContainerState.FAILED, 3, False)
    assert [one.container_id for one in await caller.collect("list_containers")] == [FIRST, SECOND]
    assert [one.name for one in await caller.collect("list_templates")] == ["t0", "t1"]


async def test_a_watch_begins_with_what_is_there(caller, containers):
    events = await caller.collect("watch_containers")

    assert isinstance(events[0], cb.ContainersSnapshot)
    assert events[0].complete
    assert isinstance(events[1], cb.ContainerChanged)
    assert events[-1] == cb.ContainerRemoved(FIRST, "3")


async def test_what_ends_freezes_and_forgets(caller, containers):
    assert (await caller.call("pause_container", FIRST)).state is cb.ContainerState.PAUSED
    assert (await caller.call("resume_container", FIRST)).state is cb.ContainerState.RUNNING
    assert (await caller.call("stop_container", FIRST, grace_ms=5)).exit_code == 143
    killed = await caller.call("kill_container", SECOND)
    assert (killed.container.state, killed.stdout_bytes) == (cb.ContainerState.KILLED, b"last words\n")
    assert (await caller.call("wait_container", THIRD)).exit_code == 3
    await caller.call("remove_container", THIRD)
    with pytest.raises(cb.NotFound) as caught:
        await caller.call("get_container", THIRD)
    assert caught.value.reason == "CONTAINER_NOT_FOUND"


async def test_a_command_with_its_output(caller, containers):
    result = await caller.call(
        "run_command", FIRST, ["sh", "-c", "cat; echo e >&2; exit 3"], stdin=b"\xff\0in"
    )

    assert (result.exit_code, result.stdout_bytes, result.stderr, result.ok) == (3, b"\xff\0in", "e\n", False)


async def test_logs_name_their_streams_and_what_is_missing(caller, containers):
    containers.log(FIRST, "stdout", b"<gap>")
    containers.log(FIRST, "stdout", b"out")
    containers.log(FIRST, "stderr", b"err")

    events = await caller.collect("logs", FIRST)

    assert events[0] == cb.Gap("stdout", 0, 5)
    assert [(one.stream, one.data, one.offset) for one in events[1:]] == [
        ("stdout", b"out", 5),
        ("stderr", b"err", 0),
    ]
    with pytest.raises(ValueError, match="give one of"):
        await caller.collect("logs", FIRST, tail=1, offsets=(0, 0))


async def test_stats(caller, containers):
    assert [one.cpu_millis for one in await caller.collect("stats", FIRST)] == [0, 250]


@pytest.mark.parametrize("form", ["path", "bytes", "file", "pieces"])
async def test_files_from_everywhere(caller, containers, tmp_path, form):
    content = os.urandom(200_000)
    (tmp_path / "f").write_bytes(content)
    source = {
        "path": tmp_path / "f",
        "bytes": content,
        "file": io.BytesIO(content),
        "pieces": iter([content[:5], content[5:]]),
    }[form]
    told: list[int] = []

    written = await caller.call("write_file", FIRST, "/workspace/f", source, mode=0o600, progress=told.append)

    assert (written.path, written.size_bytes, written.mode) == (b"/workspace/f", 200_000, 0o600)
    assert containers.contents[b"/workspace/f"] == content
    assert told[-1] == 200_000


async def test_files_to_everywhere(caller, containers, tmp_path):
    content = os.urandom(200_000)
    containers.put(b"/workspace/\xff", content, 0o640)

    assert await caller.call("read_file", FIRST, b"/workspace/\xff") == content
    assert await caller.call("read_file", FIRST, b"/workspace/\xff", offset=3, length=4) == content[3:7]
    await caller.call("read_file", FIRST, b"/workspace/\xff", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == content
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    file = io.BytesIO()
    await caller.call("read_file", FIRST, b"/workspace/\xff", file)
    assert file.getvalue() == content


async def test_a_file_that_cannot_be_read_leaves_what_was_there(caller, containers, tmp_path):
    (tmp_path / "f").write_text("before")

    with pytest.raises(cb.NotFound):
        await caller.call("read_file", FIRST, "/workspace/none", tmp_path / "f")

    assert (tmp_path / "f").read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["f"]


async def test_a_source_that_fails_writes_no_half_of_a_file(caller, containers):
    def pieces():
        yield b"half"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        await caller.call("write_file", FIRST, "/workspace/f", pieces())

    assert b"/workspace/f" not in containers.contents


async def test_a_file_that_is_refused(caller, containers):
    with pytest.raises(cb.InvalidArgument):
        await caller.call("write_file", FIRST, "/etc/passwd", b"x" * (1 << 20))


async def test_folders(caller, containers):
    await caller.call("make_directory", FIRST, "/workspace/d", mode=0o750)
    for name in "abc":
        containers.put(b"/workspace/d/" + name.encode(), b"x")

    found = await caller.collect("list_files", FIRST, "/workspace/d")

    assert [one.path for one in found] == [b"/workspace/d/a", b"/workspace/d/b", b"/workspace/d/c"]
    assert (await caller.call("stat_file", FIRST, "/workspace/d")).type == "directory"
    assert await caller.call("remove_file", FIRST, "/workspace/d", recursive=True) == 4


class Execution:
    """An exec of either client."""

    def __init__(self, process):
        self.process = process
        self.aio = hasattr(process, "__aiter__")

    async def call(self, method, *args):
        function = getattr(self.process, method)
        return await (function(*args) if self.aio else asyncio.to_thread(function, *args))

    async def next(self):
        if self.aio:
            return await anext(self.process)
        return await asyncio.to_thread(next, self.process)

    async def rest(self):
        if self.aio:
            return [event async for event in self.process]
        return await asyncio.to_thread(list, self.process)


def written(events, kind=cb.Stdout):
    return b"".join(event.data for event in events if isinstance(event, kind))


async def test_a_process_reads_writes_and_ends(caller, containers):
    process = Execution(caller.client.exec(FIRST, ["sh", "-c", "cat; echo bad >&2; exit 7"], env={"A": "b"}))

    await process.call("write", b"in\xff")
    await process.call("close_stdin")
    events = await process.rest()

    assert isinstance(events[0], cb.ExecStarted)
    assert (written(events), written(events, cb.Stderr)) == (b"in\xff", b"bad\n")
    assert isinstance(events[-1], cb.ExecExited)
    assert (events[-1].exit_code, process.process.exited) == (7, events[-1])
    with pytest.raises(BrokenPipeError):
        await process.call("write", b"more")


async def test_a_process_gets_signals(caller, containers):
    process = Execution(caller.client.exec(FIRST, ["sleep", "100"]))
    assert isinstance(await process.next(), cb.ExecStarted)

    await process.call("signal", "TERM")

    assert (await process.rest())[-1].exit_code == 143


async def test_a_process_with_a_terminal_learns_its_size(caller, containers):
    process = Execution(caller.client.exec(FIRST, ["sh", "-c", "read _; stty size"], tty=True, size=(20, 70)))
    await process.next()

    await process.call("resize", 33, 99)
    await process.call("write", b"\n")

    assert b"33 99" in written(await process.rest())


async def test_a_process_that_cannot_start(caller, containers):
    with pytest.raises(cb.NotFound) as caught:
        await Execution(caller.client.exec("none", ["true"])).rest()
    assert caught.value.reason == "CONTAINER_NOT_FOUND"


async def test_another_client_attaches(caller, containers):
    first = Execution(caller.client.exec(FIRST, ["sh", "-c", "echo one; cat"], exec_id="mine"))
    await first.next()
    assert written([await first.next()]) == b"one\n"
    await first.call("aclose" if first.aio else "close")

    second = Execution(caller.client.attach_exec("mine", stdout_offset=2))
    started = await second.next()
    assert (started.exec_id, started.attached) == ("mine", True)
    await second.call("write", b"two")
    await second.call("close_stdin")

    assert written(await second.rest()) == b"e\ntwo"


@pytest.mark.parametrize("kind", ["aio", "blocking"])
async def test_a_broken_connection_loses_and_repeats_nothing(server, containers, kind):
    data = os.urandom(3 << 20)
    async with Relay(server.address) as relay:
        client: Any = (Client if kind == "aio" else SyncClient)(relay.address, token=TOKEN)
        process = Execution(client.exec(FIRST, ["cat"]))
        come, cuts = bytearray(), 0

        async def write():
            for first in range(0, len(data), 100_000):
                await process.call("write", data[first : first + 100_000])
            await process.call("close_stdin")

        writing = asyncio.create_task(write())
        while True:
            event = await process.next()
            if isinstance(event, cb.Stdout):
                assert event.offset == len(come)
                come += event.data
            if isinstance(event, cb.ExecExited):
                break
            if len(come) > (cuts + 1) << 20:
                cuts += 1
                relay.cut()
        await writing
        await (client.close() if kind == "aio" else asyncio.to_thread(client.close))

    assert (come == data, event.exit_code) == (True, 0)
    assert containers.attached >= 1


@pytest.mark.parametrize("kind", ["aio", "blocking"])
async def test_a_connection_that_does_not_come_back(server, containers, kind):
    async with Relay(server.address) as relay:
        client: Any = (Client if kind == "aio" else SyncClient)(relay.address, token=TOKEN)
        process = Execution(client.exec(FIRST, ["sleep", "100"], reconnect=0))
        await process.next()
        relay.cut()
        with pytest.raises(cb.Unavailable):
            await process.rest()
        await (client.close() if kind == "aio" else asyncio.to_thread(client.close))


async def test_output_that_is_gone_is_told(caller, containers):
    process = Execution(caller.client.exec(FIRST, ["sh", "-c", "echo 0123456789; cat"], exec_id="x"))
    await process.next()
    await process.next()
    containers.processes["x"].forgotten = 6
    again = Execution(caller.client.attach_exec("x", stdout_offset=2))
    await again.next()
    assert await again.next() == cb.Gap("stdout", 2, 4)
    await again.call("close_stdin")
    assert written(await again.rest()) == b"6789\n"
    await process.call("aclose" if process.aio else "close")
