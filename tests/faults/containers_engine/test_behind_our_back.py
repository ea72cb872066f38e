"""Somebody else at the engine, or the kernel, ends or freezes a container: it is told as it was."""

from __future__ import annotations

import contextlib

import pytest

from tests.engine import EngineError
from tests.faults.containers_engine.world import output, sidecars, state_of, until_said, until_state
from tests.footprint import eventually, is_alive

TALKS = ["sh", "-c", "echo began; exec sleep 1000"]


@pytest.fixture
def spawn(client, busybox_image):
    """Spawns containers, which are forgotten at the end."""
    made = []

    def start(command, **options):
        container = client.spawn("a fault", image=busybox_image, command=command, **options)
        made.append(container.container_id)
        return container

    yield start
    for container_id in made:
        client.remove_container(container_id, force=True)


@pytest.fixture
def nothing_of(shared, shared_world):
    """Asserts that nothing of a container is there but what it wrote."""

    def check(container, pid):
        engine, folder = shared_world.engine, shared_world.run_folder(container.container_id).parent
        assert container.container_id not in "".join(shared_world.left.mounts())
        assert not engine.container_ids(name=container.name)
        assert not folder.exists()
        assert not is_alive(pid)
        assert sidecars(shared) == []

    return check


def test_one_that_was_killed_outside_says_so(client, spawn, shared_world, nothing_of):
    container = spawn(TALKS)
    until_said(client, container.container_id, "began")
    pid = shared_world.pid(container)
    shared_world.engine.call("POST", f"/containers/{container.name}/kill", {"signal": "KILL"})
    found = until_state(client, container.container_id, "killed")
    assert (found.exit_code, found.oom_killed) == (137, False)
    assert found.state_reason == "somebody outside clawbox ended it (signal 9)"
    assert found.egress == "none"
    assert output(client, container.container_id) == "began\n"
    assert client.wait_container(container.container_id, deadline=10).exit_code == 137
    nothing_of(container, pid)


def test_one_that_survives_a_signal_from_outside_runs_on_and_ends_as_itself(client, spawn, shared_world):
    container = spawn(["sh", "-c", "trap 'echo caught' USR1; echo ready; while sleep 0.1; do :; done"])
    until_said(client, container.container_id, "ready")
    shared_world.engine.call("POST", f"/containers/{container.name}/kill", {"signal": "USR1"})
    until_said(client, container.container_id, "caught")
    assert state_of(client, container.container_id) == "running"
    shared_world.engine.call("POST", f"/containers/{container.name}/stop", {"t": "20"})
    found = until_state(client, container.container_id, "killed")
    assert (found.exit_code, found.state_reason) == (143, "somebody outside clawbox ended it (signal 15)")


def test_one_whose_memory_is_used_up_says_so(client, spawn, shared_world, nothing_of):
    # tail keeps a line until it ends, and this one never does.
    container = spawn(["sh", "-c", "echo began; exec tail /dev/zero"], memory_mb=16)
    pid = -1
    with contextlib.suppress(EngineError):  # it may be gone by now, and that was looked for then
        pid = shared_world.pid(container)
    found = until_state(client, container.container_id, "failed")
    assert (found.exit_code, found.oom_killed) == (137, True)
    assert found.state_reason == "it was killed because its memory was used up"
    assert output(client, container.container_id) == "began\n"
    nothing_of(container, pid)


def test_one_whose_child_was_killed_for_its_memory_runs_on(client, spawn):
    container = spawn(["sh", "-c", "tail /dev/zero; echo child $?; exec sleep 1000"], memory_mb=16)
    until_said(client, container.container_id, "child 137")
    assert state_of(client, container.container_id) == "running"
    ended = client.stop_container(container.container_id, grace_ms=0)
    assert (ended.state.name, ended.state_reason) == ("KILLED", "it was killed")


def test_one_that_was_removed_outside_is_not_there_and_says_that_it_was_killed(
    client, spawn, shared_world, nothing_of
):
    container = spawn(TALKS)
    until_said(client, container.container_id, "began")
    pid = shared_world.pid(container)
    shared_world.engine.remove_container(container.name)
    eventually(lambda: not client.get_container(container.container_id).active)
    found = client.get_container(container.container_id)
    # Looked at between its end and its removal, its exit is known as well.
    assert (found.state.name, found.exit_code) in {("LOST", None), ("KILLED", 137)}
    assert "outside clawbox" in found.state_reason or "nobody knows" in found.state_reason
    # The engine's log went with it, so nobody knows whether that is all.
    assert output(client, container.container_id, whole=False) == "began\n"
    nothing_of(container, pid)


def test_one_that_was_frozen_outside_is_paused_and_runs_on(client, spawn, shared_world):
    container = spawn(["sh", "-c", "while sleep 0.1; do echo tick; done"])
    engine = shared_world.engine
    engine.call("POST", f"/containers/{container.name}/pause")
    found = until_state(client, container.container_id, "paused")
    assert found.state_reason == "its processes are frozen"
    engine.call("POST", f"/containers/{container.name}/unpause")
    found = until_state(client, container.container_id, "running")
    assert found.state_reason == "its program runs"
    # And the other way round: what clawbox froze, somebody else lets go.
    client.pause_container(container.container_id)
    engine.call("POST", f"/containers/{container.name}/unpause")
    until_state(client, container.container_id, "running")
    before = output(client, container.container_id)
    eventually(lambda: output(client, container.container_id) != before)


def test_one_that_is_frozen_outside_is_killed_all_the_same(client, spawn, shared_world, nothing_of):
    container = spawn(TALKS)
    pid = shared_world.pid(container)
    shared_world.engine.call("POST", f"/containers/{container.name}/pause")
    until_state(client, container.container_id, "paused")
    assert client.kill_container(container.container_id).container.state.name == "KILLED"
    nothing_of(container, pid)
