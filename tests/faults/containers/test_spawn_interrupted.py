"""Callers that leave, or have no time, while their containers are made; and a server that is stopped."""

from __future__ import annotations

import re
import signal
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ClawboxError, Container, ContainerState, DeadlineExceeded, SyncClient
from clawbox_client.v1 import containers_pb2

from tests.footprint import eventually

if TYPE_CHECKING:
    from tests.faults.containers.conftest import Serve
    from tests.faults.containers.world import LiveWorld

TRIES = 30
AT_ONCE = 3


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_whenever_its_caller_leaves_nothing_is_left(world: LiveWorld, how: str) -> None:
    """At moments spread over the time that a spawn takes."""

    def spawn(number: int) -> bool:
        seconds = 0.01 + 0.6 * number / TRIES
        if how == "deadline":
            try:
                made = world.client.spawn("late", image=world.image, hold=True, deadline=seconds)
            except DeadlineExceeded:
                return False
        else:
            request = containers_pb2.SpawnRequest(task="left", image=world.image, hold=True)
            call = world.client.containers.Spawn.future(request, timeout=60)
            timer = threading.Timer(seconds, call.cancel)
            timer.start()
            try:
                made = world.client.get_container(call.result().container_id)
            except Exception:  # noqa: BLE001 - grpc has several for a call that was cancelled
                assert call.cancelled()
                return False
            finally:
                timer.cancel()
        world.client.remove_container(made.container_id, force=True)
        return True

    before = spawned(world)
    with ThreadPoolExecutor(AT_ONCE) as callers:
        done = list(callers.map(spawn, range(TRIES)))
    assert not all(done)
    # A call that the server had answered already is the caller's own; it was told nothing but may look.
    # All others come to nothing, some of them still.
    late: list[Container] = []

    def only_those_are_left() -> bool:
        late[:] = world.client.list_containers()
        return len(late) == spawned(world) - before - sum(done)

    eventually(only_those_are_left)
    assert {one.state for one in late} <= {ContainerState.RUNNING}
    for one in late:
        world.client.remove_container(one.container_id, force=True)
    world.nothing_is_left()


def spawned(world: LiveWorld) -> int:
    """How many calls of Spawn the server has answered with a container."""
    url = f"http://127.0.0.1:{world.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        said = answer.read().decode()
    found = re.search(r'^clawbox_containers_total\{status="spawned"\} (\S+)$', said, re.MULTILINE)
    return 0 if found is None else int(float(found[1]))


@pytest.mark.parametrize("seconds", [0.05, 0.3])
def test_a_server_that_is_stopped_meanwhile_leaves_what_it_told_of_and_no_more(
    serve: Serve, seconds: float
) -> None:
    with serve(CLAWBOX_SERVER__GRACE_MS="0") as world:
        server = world.server

        def spawn(_: int) -> Container | None:
            with SyncClient(server.address, token=server.token) as client:
                try:
                    return client.spawn("stopping", image=world.image, hold=True, deadline=30)
                except ClawboxError:
                    return None

        with ThreadPoolExecutor(4) as callers:
            begun = [callers.submit(spawn, number) for number in range(4)]
            threading.Event().wait(seconds)  # any moment will do
            assert server.stop(signal.SIGTERM) == 0
            told = {made.container_id for one in begun if (made := one.result()) is not None}
        left = world.leftovers
        assert left.containers() == set()
        assert left.mounts() == []
        assert world.groups.orphans() == set()
        assert not [name for name in left.folders() if name.startswith("containers/")]
        rows = dict(left.rows())
        assert told <= set(rows)
        assert set(rows.values()) <= {"stopped", "killed"}, rows
