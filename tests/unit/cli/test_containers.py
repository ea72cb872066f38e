"""The commands for containers, against a service that behaves as the contract says."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
import termios

import grpc
import pytest
from clawbox_client.v1 import containers_pb2 as pb

from tests.integration.client.container_fakes import FIRST, SECOND, THIRD, Relay
from tests.integration.client.fakes import Refusal
from tests.unit.cli.conftest import Ended


@pytest.fixture
def containers(server):
    fake = server.containers
    fake.add(FIRST, state=pb.CONTAINER_STATE_RUNNING, task="[b]one[/b]\x1b[31m", image="alpine", owner="me")
    fake.add(SECOND, state=pb.CONTAINER_STATE_RUNNING, labels={"k": "v"})
    fake.add(THIRD, state=pb.CONTAINER_STATE_FAILED, exit_code=3)
    return fake


async def start(*args: str, **streams) -> asyncio.subprocess.Process:
    given = {"stdin": asyncio.subprocess.DEVNULL, "stdout": asyncio.subprocess.PIPE, **streams}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clawbox", *args, stderr=asyncio.subprocess.PIPE, **given
    )


async def finish(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Ended:
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    assert process.returncode is not None
    return Ended(process.returncode, (out or b"").decode(), err.decode())


# spawn


async def test_a_command_shows_what_it_writes_and_ends_as_it_does(cli, server):
    server.containers.exit_code = 42
    server.containers.spawned_logs = [("stdout", b"<html>\n"), ("stderr", b"warning\n")]

    ended = await cli(
        "spawn", "--image", "alpine", "--allow", "example.test:443", "--", "sh", "-c", "curl --fail x", "--rm"
    )

    assert (ended.code, ended.out) == (42, "<html>\n")
    assert ended.err == f"{FIRST}\nwarning\n"
    sent = server.seen[0].request
    assert list(sent.command) == ["sh", "-c", "curl --fail x", "--rm"]
    assert (sent.capabilities.network.rules[0].host, sent.image) == ("example.test", "alpine")
    assert sent.task == "sh -c 'curl --fail x'"
    assert FIRST in server.containers.all


async def test_without_a_command_the_id_alone_is_printed(cli, server):
    server.containers.keep_running = True

    ended = await cli("spawn", "code-runner", "--task", "some work")

    assert (ended.code, ended.out, ended.err) == (0, f"{FIRST}\n", "")
    sent = server.seen[0].request
    assert (sent.template, sent.task, sent.hold) == ("code-runner", "some work", False)


async def test_every_option_of_spawn(cli, server, monkeypatch):
    monkeypatch.setenv("HERE", "value")

    ended = await cli(
        "spawn", "t", "-d", "--no-network", "--credential", "a", "--credential", "b",
        "-e", "A=b=c", "-e", "HERE",
        "--memory", "64", "--cpus", "0.5", "--pids", "9", "--timeout", "1.5m", "--lifetime", "1h",
        "--workspace", "w", "--read-only", "--label", "k=v", "--json", "--", "true",
    )  # fmt: skip

    assert (ended.code, json.loads(ended.out)["state"]) == (0, "running")
    sent = server.seen[0].request
    assert list(sent.capabilities.network.rules) == []
    assert sent.capabilities.HasField("network")
    assert list(sent.capabilities.credentials) == ["a", "b"]
    assert sent.env == {"A": "b=c", "HERE": "value"}
    resources = sent.capabilities.resources
    assert (resources.memory_mb, resources.cpu_millis, resources.pids) == (64, 500, 9)
    assert (resources.timeout_ms, sent.max_lifetime_ms) == (90_000, 3_600_000)
    assert (sent.workspace.workspace_id, sent.workspace.read_only, sent.labels) == ("w", True, {"k": "v"})


async def test_rm_removes_what_has_ended(cli, server):
    assert (await cli("spawn", "--rm", "--", "true")).code == 0
    assert server.containers.all == {}


async def test_a_followed_container_as_json_lines(cli, server):
    server.containers.spawned_logs = [("stdout", "é".encode()[:1]), ("stdout", "é".encode()[1:])]

    lines = [json.loads(line) for line in (await cli("spawn", "--json", "--", "x")).out.splitlines()]

    assert [line["event"] for line in lines] == ["spawned", "stdout", "stdout", "ended"]
    assert "".join(line["data"] for line in lines[1:3]) == "é"
    assert lines[3]["container"]["exit_code"] == 0


async def test_output_goes_on_when_the_connection_breaks(cli, server):
    server.containers.spawned_logs = [("stdout", b"one\n"), ("stderr", b"two\n"), ("stdout", b"three\n")]
    server.containers.break_logs_after = 2

    ended = await cli("spawn", "--", "x")

    assert (ended.code, ended.out, ended.err) == (0, "one\nthree\n", f"{FIRST}\ntwo\n")


async def test_ctrl_c_stops_what_is_followed(server):
    server.containers.keep_running = True
    server.containers.spawned_logs = [("stdout", b"working\n")]
    process = await start("spawn", "--", "sleep", "100")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"working\n"

    process.send_signal(signal.SIGINT)
    ended = await finish(process)

    assert (ended.code, ended.out) == (130, "last words\n")
    assert "clawbox: STOPPED: stopped" in ended.err
    assert server.containers.all[FIRST].state == pb.CONTAINER_STATE_STOPPED


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["spawn", "a", "b"], "goes after `--`"),
        (
            ["spawn", "ls", "--image", "i"],
            "not both: 'ls' is taken for a template. A command goes after `--`.",
        ),
        (["spawn", "--hold", "--", "x"], "--hold takes no command"),
        (["spawn", "--rm"], "--rm"),
        (["spawn", "t", "--env", "NOTSET"], "NOTSET is not set here"),
        (["spawn", "t", "--label", "x"], "is not NAME=VALUE"),
        (["spawn", "t", "--timeout", "soon"], "no duration"),
        (["spawn", "t", "--allow", "h:0"], "is not a port"),
        (["spawn", "t", "--allow", "h", "--no-network"], "exclude each other"),
        (["exec", FIRST], "Missing argument"),
        (["exec", FIRST, "--"], "there is no command"),
        (["exec", FIRST, "-i", "--", "sh"], "Options come before the id"),
        (["exec", "-t", "--json", FIRST, "sh"], "exclude each other"),
        (["logs", FIRST, "--tail", "1", "--since", "1m"], "exclude each other"),
        (["logs", FIRST, "--since", "monday"], "neither a time nor a duration"),
        (["rm", FIRST, "--workspace", "burn"], "neither keep nor delete"),
        (["spawn", "t", "--allow", "https://h"], "has a scheme or path"),
        (["cp", "a", "b"], "one of the two"),
        (["cp", "a", f"{FIRST}:b"], f"In '{FIRST}:b' the path does not begin with /"),
        (["cp", "box:/a", "b"], "'box' is not the id of a container"),
        (["cp", f"{FIRST}:/a", f"{FIRST}:/b"], "one of the two"),
    ],
)
async def test_wrong_command_lines_exit_with_2_and_send_nothing(cli, server, args, said):
    ended = await cli(*args)

    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert server.seen == []


@pytest.mark.parametrize(
    ("metadata", "hint"),
    [
        ({"state": "RUNNING", "operation": "remove it"}, " --force kills it first."),
        ({"state": "PAUSED", "operation": "run a process in it"}, " `clawbox resume` lets it go on."),
        ({"state": "STOPPED", "operation": "run a process in it"}, ""),
    ],
)
async def test_a_wrong_state_comes_with_what_would_change_it(cli, containers, server, metadata, hint):
    refusal = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "it cannot be", "WRONG_STATE", **metadata)
    server.refuse["Remove"] = [refusal]

    assert (await cli("rm", FIRST)).err == f"clawbox: it cannot be [WRONG_STATE].{hint}\n"


@pytest.mark.parametrize(
    ("refusal", "code", "hint"),
    [
        (Refusal(grpc.StatusCode.NOT_FOUND, "no", "TEMPLATE_NOT_FOUND"), 4, "an image is named by --image"),
        (Refusal(grpc.StatusCode.PERMISSION_DENIED, "no", "POLICY_DENIED"), 6, "have the operator allow it"),
        (Refusal(grpc.StatusCode.UNIMPLEMENTED, "no", "UNKNOWN_METHOD"), 7, "`clawbox status` says what"),
    ],
)
async def test_a_refused_spawn_says_what_to_do_here(cli, server, refusal, code, hint):
    server.refuse["Spawn"] = [refusal]

    ended = await cli("spawn", "code-runner")

    assert (ended.code, ended.out) == (code, "")
    assert hint in ended.err


# What is there


async def test_ps_shows_what_is_active_and_hostile_text_as_text(cli, containers):
    shown = (await cli("ps")).out

    assert [line.split("\t")[0] for line in shown.splitlines()] == ["ID", FIRST[:12], SECOND[:12]]
    assert "[b]one[/b]\\x1b[31m" in shown
    assert len((await cli("ps", "-a")).out.splitlines()) == 4
    assert len((await cli("list", "containers")).out.splitlines()) == 3
    assert [one["container_id"] for one in json.loads((await cli("ps", "--label", "k=v", "--json")).out)] == [
        SECOND
    ]


async def test_ps_watch(cli, containers):
    lines = (await cli("ps", "--watch")).out.splitlines()

    assert lines[-1] == f"{FIRST[:12]}\tremoved"
    assert len(lines) == 7


async def test_ids_may_be_cut(cli, containers):
    assert "one" in (await cli("get", FIRST[:10])).out
    assert (await cli("get", f"clawbox-{THIRD}")).code == 0
    ended = await cli("get", "1111")
    assert (ended.code, ended.err) == (
        2,
        "clawbox: the ids of 2 containers begin with 1111. Give more of it.\n",
    )
    for unknown in ("99", "../x", "22222222-0000-4000-8000-000000000002"):
        assert (await cli("get", unknown)).code == 4


async def test_containers_end_and_one_that_is_not_there_keeps_no_other_from_it(cli, containers):
    ended = await cli("stop", FIRST, "99", SECOND, "--grace", "1s")

    assert (ended.code, ended.out) == (4, f"{FIRST}\n{SECOND}\n")
    assert ended.err.startswith("clawbox: no container's id begins with 99")
    assert containers.all[SECOND].state == pb.CONTAINER_STATE_STOPPED


async def test_kill_pause_resume_and_rm(cli, containers, server):
    assert (await cli("pause", FIRST)).code == 0
    assert containers.all[FIRST].state == pb.CONTAINER_STATE_PAUSED
    assert (await cli("resume", FIRST)).code == 0
    assert json.loads((await cli("kill", FIRST, "--json")).out)["stdout_bytes"] == "last words\n"
    assert (await cli("rm", FIRST, "--force", "--workspace", "keep")).out == f"{FIRST}\n"
    sent = server.calls("Remove")[0].request
    assert (sent.force, sent.HasField("delete_workspace"), sent.delete_workspace) == (True, True, False)


async def test_wait_exits_with_the_programs_code(cli, containers):
    containers.end(FIRST, 0)
    ended = await cli("wait", FIRST, THIRD)
    assert (ended.code, ended.out) == (3, "0\n3\n")


async def test_templates_and_stats(cli, containers):
    shown = (await cli("templates")).out
    assert "[b]x[/b] \\x1b[31m" in shown
    assert (await cli("list", "images")).out == shown
    assert len((await cli("stats", FIRST)).out.splitlines()) == 3
    assert json.loads((await cli("stats", FIRST, "--once", "--json")).out)["memory_bytes"] == 3 << 20


async def test_logs(cli, containers, server):
    containers.log(FIRST, "stdout", b"<gap>")
    containers.log(FIRST, "stdout", b"half ")
    containers.log(FIRST, "stdout", b"a line\nnext\n")
    containers.log(FIRST, "stderr", b"err\n")

    ended = await cli("logs", FIRST)
    assert (ended.code, ended.out) == (0, "half a line\nnext\n")
    assert ended.err == "clawbox: 5 bytes of stdout are no longer kept.\nerr\n"
    stamp = "2026-01-02T03:04:05.000+00:00"
    assert (await cli("logs", FIRST, "-t", "--stdout")).out == f"{stamp} half a line\n{stamp} next\n"
    await cli("logs", FIRST, "--tail", "0")
    await cli("logs", FIRST, "--since", "2026-01-02T03:04:05Z")
    tail, since = (one.request for one in server.calls("Logs")[-2:])
    assert (tail.WhichOneof("begin"), tail.tail_lines) == ("tail_lines", 0)
    assert since.since.ToJsonString() == "2026-01-02T03:04:05Z"


# exec


async def test_exec_passes_stdin_and_the_exit_code_through(containers, server):
    data = os.urandom(300_000)
    process = await start(
        "exec", "-i", FIRST, "--", "sh", "-c", "cat; echo bad >&2; exit 9", stdin=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(data), 60)

    assert (out == data, err, process.returncode) == (True, b"bad\n", 9)


async def test_exec_without_i_reads_nothing(spawn, containers):
    ended = await spawn("exec", FIRST, "sh", "-c", "cat; echo $X", "-e", stdin=b"not read")
    assert (ended.code, ended.out) == (0, "\n")


async def test_exec_as_json_lines(cli, containers):
    lines = [
        json.loads(line)
        for line in (
            await cli("exec", "-e", "X=1", "--json", FIRST, "sh", "-c", "echo $X; exit 2")
        ).out.splitlines()
    ]
    assert [line["event"] for line in lines] == ["stdout", "exited"]
    assert (lines[0]["data"], lines[1]["exit_code"]) == ("1\n", 2)


async def test_ctrl_c_goes_inside_as_a_signal(containers):
    process = await start(
        "exec", FIRST, "sh", "-c", "trap 'echo caught; exit 5' INT; echo up; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"up\n"

    process.send_signal(signal.SIGINT)
    ended = await finish(process)

    assert (ended.code, ended.out, ended.err) == (5, "caught\n", "")
    assert [one.signals for one in containers.processes.values()] == [["INT"]]


async def test_the_third_ctrl_c_gives_up(containers):
    process = await start(
        "exec", FIRST, "sh", "-c", "trap 'echo no' INT; echo up; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"up\n"
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"no\n"
    process.send_signal(signal.SIGINT)

    assert (await finish(process)).code == 130


async def test_exec_goes_on_after_the_connection_broke(containers, server, monkeypatch):
    async with Relay(server.address) as relay:
        monkeypatch.setenv("CLAWBOX_ADDRESS", relay.address)
        process = await start(
            "exec", "-i", FIRST, "--", "sh", "-c", "echo up; cat; exit 3", stdin=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"up\n"
        relay.cut()
        ended = await finish(process, b"after")

    assert (ended.code, ended.out, ended.err) == (3, "after", "")
    assert containers.attached == 1


async def test_an_exec_that_was_lost_says_how_that_comes_about(cli, containers, server):
    server.refuse["Exec"] = [Refusal(grpc.StatusCode.NOT_FOUND, "there is no exec x", "EXEC_NOT_FOUND")]

    ended = await cli("exec", FIRST, "true")

    assert (ended.code, ended.out) == (4, "")
    assert "What is executed ends when the server does" in ended.err


class Terminal:
    """A pseudo-terminal with a command on it."""

    def __init__(self) -> None:
        self.leader, self.follower = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.follower)
        self.shown = b""

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.leader, (rows, columns))

    async def start(self, *args: str) -> None:
        # A session of its own whose terminal this is, as a terminal program makes it.
        self.process = await asyncio.create_subprocess_exec(
            "sh", "-c", 'exec <"$0" >"$0" 2>&1; exec "$@"', os.ttyname(self.follower),
            sys.executable, "-m", "clawbox", *args,
            start_new_session=True, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip

    async def until(self, text: bytes) -> None:
        while text not in self.shown:
            self.shown += await asyncio.wait_for(asyncio.to_thread(os.read, self.leader, 65536), 30)

    def type(self, data: bytes) -> None:
        os.write(self.leader, data)

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 30)

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.follower) == self.before

    def close(self) -> None:
        os.close(self.leader)
        os.close(self.follower)


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    made.close()


async def test_a_terminal_inside_has_this_ones_size_and_keys(containers, terminal):
    terminal.resize(31, 101)
    await terminal.start("exec", "-i", "-t", FIRST, "sh", "-c", "stty size; echo $TERM; exec sh -i")
    await terminal.until(b"31 101\r\nxterm\r\n")
    assert not terminal.restored

    terminal.resize(44, 132)
    [process] = containers.processes.values()
    async with asyncio.timeout(30), containers.changed:
        await containers.changed.wait_for(lambda: process.sizes[-1] == (44, 132))
    terminal.type(b"stty size\r")
    await terminal.until(b"44 132\r\n")
    terminal.type(b"sleep 1000; echo over=$?\r")
    await terminal.until(b"sleep 1000")
    terminal.type(b"\x03")
    terminal.type(b"exit 6\r")

    assert await terminal.ended() == 6
    assert terminal.restored
    assert process.signals == []


async def test_a_spawn_on_a_terminal_shows_what_is_pulled_and_then_the_output(containers, terminal):
    containers.spawned_logs = [("stdout", b"the page\n")]
    await terminal.start("spawn", "--", "curl", "x")

    assert await terminal.ended() == 0
    await terminal.until(b"the page")
    assert terminal.restored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_terminal_is_given_back_whatever_happens(containers, terminal, number):
    await terminal.start("exec", "-it", FIRST, "sh", "-c", "echo ready; sleep 1000")
    await terminal.until(b"ready")
    assert not terminal.restored

    terminal.process.send_signal(number)

    assert await terminal.ended() == 128 + number
    assert terminal.restored


async def test_a_terminal_is_given_back_when_the_server_refuses(containers, terminal):
    await terminal.start("exec", "-it", "22222222-0000-4000-8000-000000000002", "sh")
    assert await terminal.ended() == 4
    await terminal.until(b"CONTAINER_NOT_FOUND")
    assert terminal.restored


async def test_without_a_terminal_inside_nothing_steers_this_one(containers, terminal):
    await terminal.start("exec", FIRST, "printf", r"a\033]52;c;AAAA\007b")
    assert await terminal.ended() == 0
    await terminal.until(b"AAAA\\x07b")
    assert b"\x1b" not in terminal.shown
