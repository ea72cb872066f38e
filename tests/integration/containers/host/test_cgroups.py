"""What an exec starts dies with it, whatever it does; the container's own program lives."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from clawbox.containers.host.cgroups import Cgroup, CgroupError, Hierarchy
from clawbox.containers.host.processes import ProcessGoneError

ESCAPES = {
    "daemon": "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; sleep 1000",
    "empty environment": "env -i /bin/sh -c '/bin/sleep 1000 & exec /bin/sleep 1000'",
    "ignores signals": "trap '' TERM INT HUP QUIT; while true; do sleep 1; done",
    "stopped": "sleep 1000 & kill -STOP $!; sleep 1000",
    "orphans": "sh -c '(sleep 1000 &) ; (sleep 1000 &)'; sleep 1000",
    "forks all the time": "for i in 1 2 3 4; do (while :; do (:); done) & done; sleep 1000",
    # Up to the container's limit on processes, where the shells give up.
    "fork bomb": "for i in 1 2 3 4; do (while :; do sleep 1000 & done) & done; sleep 1000",
}


@pytest.fixture
def container(start):
    """One that runs, and its cgroup."""
    return start(("sleep", "1000"), pids=48)


async def gated(container, name, script):
    """An exec whose gate was moved into a cgroup of its own and let go."""
    with container.folder.make_fifo(f"exec-{name}") as fifo:
        command = ["/run/clawbox/gate", f"/run/clawbox/exec-{name}", "sh", "-c", script]
        pid = await asyncio.to_thread(container.start_exec, command)
        child = container.cgroup.child(name)
        await asyncio.to_thread(child.add, pid)
        await fifo.release(10)
    return child


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("script", ESCAPES.values(), ids=ESCAPES)
async def test_rule_86_whatever_an_exec_starts_dies_with_it(container, script):
    await container.fifo.release(10)
    child = await gated(container, "one", script)
    many = 20 if "sleep 1000 & done" in script else 2
    await until(lambda: len(child.pids()) >= many)

    await child.kill(20)

    assert child.pids() == []
    child.remove()
    assert container.cgroup.children() == []
    assert container.cgroup.holds(container.pid)
    assert container.facts()["State"]["Running"]


async def test_rule_86_a_process_of_another_container_is_never_moved(container, start):
    other = start()
    child = container.cgroup.child("one")

    with pytest.raises(CgroupError, match="not in the container"):
        child.add(other.pid)
    with pytest.raises(CgroupError, match="not in the container"):
        child.add(os.getpid())

    assert not container.cgroup.holds(other.pid)
    assert other.cgroup.holds(other.pid)
    with pytest.raises(CgroupError, match="not the container's cgroup"):
        Cgroup.of(other.pid, container.engine_id)


async def test_a_signal_reaches_what_an_exec_started_and_nothing_else(container):
    await container.fifo.release(10)
    one = await gated(container, "one", "sleep 1000 & sleep 1000")
    two = await gated(container, "two", "sleep 1000 & sleep 1000")
    await until(lambda: len(one.pids()) == len(two.pids()) == 2)

    one.signal(signal.SIGTERM)

    await until(lambda: not one.pids())
    assert len(two.pids()) == 2
    await two.kill()


async def test_what_an_earlier_server_left_is_found_and_killed(container):
    await container.fifo.release(10)
    await gated(container, "left", "sleep 1000")

    (found,) = Cgroup.of(container.pid, container.engine_id).children()

    assert found.name == "left"
    with pytest.raises(CgroupError, match="cannot be removed"):
        found.remove()
    await found.kill()
    found.remove()
    found.remove()
    await found.kill()


async def test_an_exec_of_a_container_that_is_paused_is_killed_when_it_goes_on(container):
    await container.fifo.release(10)
    child = await gated(container, "one", "sleep 1000")
    container.api.call("POST", f"/containers/{container.engine_id}/pause")
    if child.parent.hierarchy.version == 1:
        with pytest.raises(CgroupError, match="outlive"):
            await child.kill(0.1)
    container.api.call("POST", f"/containers/{container.engine_id}/unpause")

    await child.kill()

    assert child.pids() == []


@pytest.fixture
def unified():
    """A container's cgroup of version 2, made by hand where the machine mounts that hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    (mount, *_) = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    engine_id = os.urandom(32).hex()
    folder = mount / f"docker-{engine_id}.scope"
    folder.mkdir()
    cgroup = Cgroup(Hierarchy(2, mount), f"/{folder.name}")
    yield cgroup
    end = time.monotonic() + 20
    while cgroup.pids() and time.monotonic() < end:
        for pid in cgroup.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for child in cgroup.children():
        child.remove()
    folder.rmdir()


FORKS = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.setsid()
if os.fork(): time.sleep(1000)
for _ in range(8):
    if not os.fork(): break
end = time.monotonic() + 60
while time.monotonic() < end:
    if not os.fork(): time.sleep(0.01); os._exit(0)
"""


def started_by_hand(program):
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)


@pytest.mark.parametrize("old_kernel", [False, True], ids=["cgroup.kill", "freezing"])
async def test_rule_86_on_version_2_everything_dies_too(unified, monkeypatch, old_kernel):
    process = started_by_hand(f"input();{FORKS}")
    (unified.folder / "cgroup.procs").write_text(str(process.pid))
    assert unified.holds(process.pid)
    child = unified.child("one")
    child.add(process.pid)
    if old_kernel:
        # Before Linux 5.14 there is no such file.
        real = os.open

        def without_kill(path, *arguments, **options):
            if str(path).endswith("cgroup.kill"):
                raise FileNotFoundError(path)
            return real(path, *arguments, **options)

        monkeypatch.setattr("clawbox.containers.host.cgroups.os.open", without_kill)
    with process.stdin as stdin:
        stdin.write(b"\n")
    await until(lambda: len(child.pids()) >= 10)

    await child.kill(20)

    assert child.pids() == []
    assert process.wait() == -signal.SIGKILL
    child.remove()
    assert unified.children() == []


def test_a_process_that_is_gone_is_not_moved(unified):
    process = subprocess.Popen(["true"])
    process.wait()

    with pytest.raises(ProcessGoneError):
        unified.child("one").add(process.pid)
    assert not unified.holds(process.pid)


def test_a_cgroup_that_this_server_does_not_see_is_refused():
    inner = Hierarchy(1, Path("/sys/fs/cgroup/freezer"), "/outer")

    assert inner.folder("/outer/x") == Path("/sys/fs/cgroup/freezer/x")
    for path in ("/other", "/outer/../x", "/../docker/x", "/outerx"):
        with pytest.raises(CgroupError, match="not visible"):
            inner.folder(path)


def test_the_name_of_a_cgroup_leads_nowhere_else(unified):
    for name in ("", "../x", "a/b", ".", "a" * 65):
        with pytest.raises(ValueError, match="cannot name"):
            unified.child(name)
