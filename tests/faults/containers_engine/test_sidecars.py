"""A container's sidecar dies: the next one serves it as before, unless it dies again and again."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.containers_engine.world import output, sidecars, until_said
from tests.footprint import eventually, is_alive, name_of


@pytest.fixture
def container(client, busybox_image, upstream):
    """One that asks the upstream all the time, and says so."""
    url = f"http://127.0.0.1:{upstream.port}/sidecar"
    program = f"i=0; while sleep 0.1; do wget -q -O - {url} && i=$((i+1)) && echo line $i; done"
    made = client.spawn(
        "asks", image=busybox_image, command=["sh", "-c", program], network=[f"127.0.0.1:{upstream.port}"]
    )
    until_said(client, made.container_id, "line 1\n")
    yield made
    client.remove_container(made.container_id, force=True)


def forkservers(server):
    """Processes that sidecars are forked from."""
    return [pid for pid in server.descendants() if name_of(pid).startswith("clawbox-fork")]


def test_rule_58_a_killed_sidecar_of_a_container_is_followed_by_another(shared, client, container):
    (killed,) = sidecars(shared)
    stopped = forkservers(shared)
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)  # none is followed by another for now
    try:
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: client.get_container(container.container_id).egress == "restarting")
        assert client.get_container(container.container_id).state.name == "RUNNING"
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: client.get_container(container.container_id).egress == "ready")
    assert sidecars(shared) != [killed]
    # Its program goes on, and so does what is shown of it: nothing is missing, and nothing comes twice.
    before = output(client, container.container_id).count("line")
    until_said(client, container.container_id, f"line {before + 3}\n")


def test_rule_64_a_container_whose_sidecar_dies_again_and_again_is_ended(
    shared, shared_world, client, container
):
    pid = shared_world.pid(container)
    killed = set()

    def over():
        for sidecar in sidecars(shared):
            if sidecar not in killed:
                killed.add(sidecar)
                os.kill(sidecar, signal.SIGKILL)
        return not client.get_container(container.container_id).active

    eventually(over, 60)
    found = client.get_container(container.container_id)
    assert found.state.name == "FAILED"
    assert found.state_reason == "it was ended because it was not as safe as it must be"
    assert not is_alive(pid)
    assert len(killed) == 6
    assert sidecars(shared) == []
    assert shared_world.left.containers() == set()
