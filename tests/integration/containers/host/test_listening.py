"""Folder, FIFO and listener of a container on the real engine."""

import asyncio
import os
import socket
import stat
import time
from pathlib import Path

import pytest

from clawbox.containers.host.fifo import Fifo, GateStuckError
from clawbox.containers.host.namespaces import (
    NamespaceDeniedError,
    PortTakenError,
    listen_inside,
)
from clawbox.containers.host.processes import ProcessGoneError
from tests.integration.containers.host.conftest import USER

TALK = "echo hello | nc 127.0.0.1 3128"


def network_of(pid):
    """What the network namespace of a process is known by."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


async def test_the_program_finds_what_listens_at_its_first_instruction(start):
    started = start(("sh", "-c", TALK))
    with await listen_inside(started.pid, started.pidfd) as sock:
        await started.fifo.release(10)
        accepted, peer = await asyncio.get_running_loop().sock_accept(sock)
        with accepted:
            assert await asyncio.get_running_loop().sock_recv(accepted, 100) == b"hello\n"

    assert peer[0] == "127.0.0.1"
    assert started.api.wait(started.engine_id) == 0


async def test_rule_87_the_listener_shares_its_port_with_nobody(start):
    started = start()

    with await listen_inside(started.pid, started.pidfd) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockname() == ("127.0.0.1", 3128)
        with pytest.raises(PortTakenError):
            await listen_inside(started.pid, started.pidfd)


async def test_rule_87_a_program_that_took_the_port_is_told_from_other_failures(start):
    started = start(("nc", "-l", "-p", "3128"))
    await started.fifo.release(10)
    await asyncio.to_thread(_wait_for_listener, started.pid)

    with pytest.raises(PortTakenError):
        await listen_inside(started.pid, started.pidfd)


async def test_rule_87_the_port_can_be_taken_again_by_the_next_server(start):
    started = start(("sh", "-c", f"{TALK}; sleep 1000"))
    with await listen_inside(started.pid, started.pidfd) as sock:
        await started.fifo.release(10)
        accepted, _ = await asyncio.get_running_loop().sock_accept(sock)
        accepted.close()  # closed here first: TIME_WAIT is on this side

    (await listen_inside(started.pid, started.pidfd)).close()


async def test_listening_leaves_this_servers_threads_where_they_were(start):
    started = start()
    own = network_of("self")

    (await listen_inside(started.pid, started.pidfd)).close()

    seen = await asyncio.gather(*(asyncio.to_thread(os.stat, "/proc/thread-self/ns/net") for _ in range(8)))
    assert {facts.st_ino for facts in seen} == {own}
    assert network_of(started.pid) != own


async def test_the_hosts_own_namespace_is_never_listened_in():
    pidfd = os.pidfd_open(os.getpid())
    try:
        with pytest.raises(NamespaceDeniedError, match="the host's"):
            await listen_inside(os.getpid(), pidfd)
    finally:
        os.close(pidfd)


async def test_a_process_that_ended_or_is_another_is_not_entered(start):
    started, other = start(), start()

    with pytest.raises(ProcessGoneError):
        await listen_inside(started.pid, other.pidfd)
    started.api.remove_container(started.engine_id)
    with pytest.raises(ProcessGoneError):
        await listen_inside(started.pid, started.pidfd)


async def test_a_cancelled_caller_leaves_no_listener(start):
    started = start()
    for turns in range(4):
        task = asyncio.create_task(listen_inside(started.pid, started.pidfd))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():  # it was faster
            task.result().close()

    async def free():
        while True:
            try:
                return await listen_inside(started.pid, started.pidfd)
            except PortTakenError:  # a thread closes its own in a moment
                await asyncio.sleep(0.005)

    (await asyncio.wait_for(free(), 10)).close()


async def test_rule_88_the_containers_user_connects_and_the_same_user_on_the_host_does_not(start):
    started = start(("sh", "-c", "ls -ln /run/clawbox; echo $(cat /run/clawbox/greeting)"))
    started.folder.write({"greeting": b"hello"})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(started.folder.socket))
        started.folder.socket.chmod(0o666)
        listener.listen()
        await started.fifo.release(10)
        assert started.api.wait(started.engine_id) == 0

        assert os.waitstatus_to_exitcode(_as_user(started.folder.socket)) == 13
    lines = {line.split()[-1]: line.split() for line in started.output().splitlines() if line.count(" ") > 5}
    assert {name: fields[0] for name, fields in lines.items()} == {
        "gate": "-r-xr-xr-x",
        "go": "pr--r--r--",
        "greeting": "-r--r--r--",
        "hold": "-r-xr-xr-x",
        "proxy.sock": "srw-rw-rw-",
    }
    assert {(fields[2], fields[3]) for fields in lines.values()} == {("0", "0")}
    assert started.output().splitlines()[-1] == "hello"


def _wait_for_listener(pid):
    end = time.monotonic() + 20
    while not any(
        ":0C38 " in Path(f"/proc/{pid}/net/{kind}").read_text() for kind in ("tcp", "tcp6")
    ):  # 3128
        assert time.monotonic() < end
        time.sleep(0.01)


def _as_user(path):
    """Connect as the container's user, outside of it; the exit status is the error's number."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setgroups([])
            os.setresgid(USER.gid, USER.gid, USER.gid)
            os.setresuid(USER.uid, USER.uid, USER.uid)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                status = 0
        except OSError as error:
            status = error.errno or 98
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


async def test_rule_88_a_container_cannot_change_its_run_folder(start):
    tries = "echo x > /run/clawbox/f; rm /run/clawbox/go; echo x > /run/clawbox/go; chmod 777 /run/clawbox/go"
    started = start(("sh", "-c", f"{tries}; true"))
    await started.fifo.release(10)

    assert started.api.wait(started.engine_id) == 0
    assert started.output().count("Read-only file system") == 3
    assert started.output().count("Permission denied") == 1
    assert stat.S_IMODE((started.folder.run / "go").stat().st_mode) == 0o444


async def test_a_gate_that_is_refused_ends_and_its_program_never_runs(start):
    started = start(("echo", "ran"))
    await started.fifo.wait_for_gate(10)

    started.fifo.close()

    assert started.api.wait(started.engine_id) == 127
    assert "ran" not in started.output()


async def test_a_gate_that_started_while_no_server_ran_is_found_waiting(start):
    started = start(("echo", "ran"))
    await started.fifo.wait_for_gate(10)
    with started.folder.reattach() as again:
        started.fifo.close()
        assert again.waiting
        await again.release(10)

    assert started.api.wait(started.engine_id) == 0
    assert started.folder.reattach() is None


async def test_a_gate_that_was_stopped_is_not_let_go_later(start):
    started = start(("echo", "ran"))
    await started.fifo.wait_for_gate(10)
    started.api.call("POST", f"/containers/{started.engine_id}/pause")

    with pytest.raises(GateStuckError, match="did not take its byte"):
        await started.fifo.release(0.05)

    started.api.call("POST", f"/containers/{started.engine_id}/unpause")
    assert started.api.wait(started.engine_id) == 127
    assert "ran" not in started.output()


async def test_a_fifo_without_a_gate_is_given_up_in_time(tmp_path):
    os.mkfifo(tmp_path / "go")

    with Fifo.hold(tmp_path / "go") as fifo:
        assert not fifo.waiting
        with pytest.raises(GateStuckError, match="nothing came"):
            await fifo.release(0.01)
        assert not fifo.held
    with pytest.raises(OSError, match="no FIFO"):
        Fifo.hold(_file(tmp_path / "file"))


def _file(path):
    path.write_bytes(b"")
    return path
