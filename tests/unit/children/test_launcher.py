import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from clawbox.children import launcher as launcher_module
from clawbox.children.channel import FrameError
from clawbox.children.launcher import ChildrenUnavailableError, Launcher, LoadFailedError
from clawbox.children.uids import UidRange, UidsExhaustedError
from tests.unit.children.conftest import ROOT, Probe


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def forkservers_of(pid):
    started = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in started if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def gone(pid):
    """Wait until the process is reaped, by its pidfd: children are not ours to wait for."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
    try:
        async with asyncio.timeout(10):
            await ended
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


async def test_a_killed_child_is_noticed_and_leaves_nothing(launcher):
    before = open_descriptors()
    probe = await Probe.start(launcher)
    os.kill(probe.child.pid, signal.SIGKILL)
    await probe.child.dead()
    assert await probe.broken is None
    assert not probe.child.alive
    assert launcher.children == 0
    probe.child.kill()  # too late, and harmless
    probe.descriptors.close()
    await asyncio.sleep(0)
    assert before == open_descriptors()


async def test_frames_that_are_none_end_the_channel(launcher):
    for hostile in ("garbage", "huge"):
        probe = await Probe.start(launcher)
        probe.tell(hostile)
        assert isinstance(await probe.broken, FrameError)
        await probe.close()


async def test_a_child_ends_with_its_channel(launcher):
    probe = await Probe.start(launcher)
    probe.protocol.close()
    probe.descriptors.close()
    async with asyncio.timeout(10):
        await probe.child.dead()


async def test_children_know_what_was_loaded_before_them(launcher):
    before = await Probe.start(launcher)
    await launcher.load("probe", "a", b"")
    after = await Probe.start(launcher)
    assert (frozenset(), frozenset({"a"})) == (before.child.loaded, after.child.loaded)
    with pytest.raises(LoadFailedError, match="it is bad"):
        await launcher.load("probe", "b", b"bad")
    await before.close()
    await after.close()


async def test_any_number_of_things_can_be_loaded_at_once(launcher):
    async with asyncio.timeout(30):
        await asyncio.gather(*(launcher.load("probe", f"{number}", b"x" * 200) for number in range(1000)))
    assert len(launcher.loaded("probe")) == 1000


async def test_a_forkserver_that_takes_nothing_is_replaced(launcher):
    probe = await Probe.start(launcher)
    (forkserver,) = forkservers_of(os.getpid())
    os.kill(forkserver, signal.SIGSTOP)
    for _ in range(10_000):  # who asks goes away each time, and what was asked stays in the socket
        load = asyncio.create_task(launcher.load("probe", "x", b"x" * 200))
        await asyncio.sleep(0)
        if load.done():
            assert isinstance(load.exception(), ChildrenUnavailableError)
            break
        load.cancel()
    await probe.close()
    another = await Probe.start(launcher)
    assert launcher.restarts == 1
    await another.close()


async def test_a_dead_forkserver_takes_its_children_and_is_replaced(launcher):
    probe = await Probe.start(launcher)
    with pytest.raises(ChildrenUnavailableError):
        await launcher.load("probe", "x", b"crash")
    probe.descriptors.close()
    async with asyncio.timeout(10):
        await probe.close()
    another = await Probe.start(launcher)
    assert launcher.restarts == 1
    await another.close()


async def test_when_control_dies_its_children_do(tmp_path):
    code = (
        "import asyncio, sys\n"
        f"sys.path.insert(0, {ROOT!r})\n"
        "from clawbox.children import launcher as m\n"
        "from tests.unit.children.conftest import PROBE, Probe\n"
        "async def main():\n"
        "    async with m.Launcher(PROBE, None) as launcher:\n"
        "        probe = await Probe.start(launcher)\n"
        "        probe.tell('hang')\n"
        "        print(probe.child.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )

    control = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert control.stdout is not None
    child = int(await control.stdout.readline())
    (forkserver,) = forkservers_of(control.pid)
    control.kill()
    await control.wait()
    await gone(forkserver)
    await gone(child)


async def test_a_forkserver_that_does_not_start_is_not_waited_for_for_ever():
    async with Launcher({"none": "clawbox.no_such_module:KIND"}, None) as launcher:
        with pytest.raises(ChildrenUnavailableError) as caught:
            async with asyncio.timeout(30):
                await launcher.fork("none")
    assert caught.value.retry_after > 0


async def test_a_forkserver_that_takes_long_to_fail_fails_all_the_same(monkeypatch):
    monkeypatch.setattr(launcher_module, "SETTLED_SECONDS", 0.0)  # as if each of them took longer than that
    async with Launcher({"none": "clawbox.no_such_module:KIND"}, None) as launcher:
        with pytest.raises(ChildrenUnavailableError):
            async with asyncio.timeout(60):
                await launcher.fork("none")


async def test_a_cancelled_fork_leaves_no_child(launcher, uids):
    await launcher.load("probe", "ready", b"")
    task = asyncio.create_task(launcher.fork("probe"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    probe = await Probe.start(launcher)  # answered after the first one
    while launcher.children > 1:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0)
    await probe.close()


def test_an_id_is_given_again_only_after_it_came_back():
    uids = UidRange(10, 2)
    assert (uids.take(), uids.take()) == (10, 11)
    with pytest.raises(UidsExhaustedError):
        uids.take()
    uids.give_back(10)
    assert uids.take() == 10


async def test_kinds_of_one_forkserver_know_what_was_loaded_for_each(family):
    before = await Probe.start(family, "serving")
    await family.load("keeping", "a", b"")
    assert (family.loaded("keeping"), family.loaded("serving")) == ({"a"}, frozenset())
    after = [await Probe.start(family, kind) for kind in ("serving", "keeping")]
    assert [probe.child.loaded for probe in (before, *after)] == [frozenset(), frozenset(), {"a"}]
    with pytest.raises(ValueError, match="'none' among serving"):
        await family.fork("none")
    for probe in (before, *after):
        await probe.close()


async def test_how_a_child_ended_is_said_with_its_kind(family, caplog):
    probe = await Probe.start(family, "serving")
    probe.tell("no such descriptor")
    await probe.child.dead()
    later = await Probe.start(family, "serving")
    async with asyncio.timeout(20):
        while f"serving {probe.child.pid} ended with status 70" not in caplog.messages:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await later.close()
    probe.descriptors.close()
