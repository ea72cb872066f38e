"""The engine goes away and comes back: nobody is told what is not known, and nothing is left."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest
from clawbox_client.errors import Unavailable

from tests.containers_world.server import wait_for_containers
from tests.engine.images import make_image
from tests.faults.containers_engine.world import (
    World,
    client_of,
    kill,
    output,
    sidecars,
    status_of,
    until_said,
)
from tests.footprint import eventually, is_alive

TALKS = ["sh", "-c", "echo began; exec sleep 1000"]


@pytest.fixture
def engine(start_engine):
    """An engine of the test's own."""
    return start_engine()


@pytest.fixture
def image(engine):
    """On that engine, with which it goes."""
    return make_image(engine.api, name="busybox")


@pytest.fixture
def world(tmp_path, engine):
    """An installation that uses it."""
    return World.at(tmp_path / "clawbox", engine.api)


def refused(call, *arguments, **options):
    """Assert that a call says that the engine is away, and when to try again."""
    with pytest.raises(Unavailable) as error:
        call(*arguments, **options)
    assert error.value.code is grpc.StatusCode.UNAVAILABLE
    assert error.value.reason == "DOCKER_UNAVAILABLE"
    assert error.value.retry_after


def ended_with_its_engine(container):
    """Whether it is told as what it was: ended by a signal that neither its program nor clawbox sent."""
    return container.state.name in {"KILLED", "FAILED"} and container.exit_code in {137, 143}


def is_told_away(server, client, seconds=5.0):
    """Assert that everybody who asks is told so, soon."""
    wait_for_containers(server, seconds, serving=False)
    assert client.is_serving("clawbox.v1.Sandbox")
    eventually(lambda: status_of(client, "docker")[0] == "down", seconds)


@pytest.mark.parametrize("stop", ["stop", "kill"])
def test_all_recovers_when_the_engine_was_away(stop, engine, image, world):
    with world.server() as server, client_of(server) as client:
        talks = client.spawn("talks", image=image, command=TALKS)
        held = client.spawn("held", image=image, hold=True, timeout_ms=600_000)
        until_said(client, talks.container_id, "began")
        getattr(engine, stop)()
        is_told_away(server, client)
        refused(client.spawn, "another", image=image, hold=True)
        if stop == "kill":  # its containers go on for now
            refused(client.run_command, held.container_id, ["true"])
            refused(client.pause_container, held.container_id)
        # What is known without the engine is still told.
        assert output(client, talks.container_id, whole=False) == "began\n"
        assert {one.container_id for one in client.list_containers(include_finished=True)} == {
            talks.container_id,
            held.container_id,
        }
        engine.start()
        wait_for_containers(server)
        # An engine that goes away takes its containers along, sooner or later.
        for one in (talks, held):
            found = client.wait_container(one.container_id, deadline=60)
            assert ended_with_its_engine(found)
        assert status_of(client, "docker")[0] == "ok"
        eventually(lambda: sidecars(server) == [])
        assert output(client, talks.container_id, whole=False) == "began\n"
        again = client.spawn("again", image=image, command=["sh", "-c", "echo fresh; exit 3"])
        ended = client.wait_container(again.container_id, deadline=60)
        assert (ended.exit_code, output(client, again.container_id)) == (3, "fresh\n")
        eventually(lambda: world.left.containers() == set())
        for one in (talks, held, again):
            client.remove_container(one.container_id)
        world.nothing_left()
        assert world.left.workspaces() == []


def test_a_time_limit_is_kept_while_the_engine_is_away(engine, image, world):
    with world.server() as server, client_of(server) as client:
        # Long enough that a busy machine has seen it run, and killed the engine, by then.
        timed = client.spawn("timed", image=image, command=TALKS, timeout_ms=6_000)
        until_said(client, timed.container_id, "began")
        pid = world.pid(timed)
        engine.kill()  # its containers go on without it
        assert is_alive(pid)
        is_told_away(server, client)
        eventually(lambda: not is_alive(pid), 20)
        assert timed.expire_time is not None
        assert datetime.now(UTC) >= timed.expire_time
        engine.start()
        found = client.wait_container(timed.container_id, deadline=60)
        assert (found.state.name, found.state_reason) == ("TIMED_OUT", "its time limit was reached")
        client.remove_container(timed.container_id)
        eventually(lambda: world.left.containers() == set())
        world.nothing_left()


def test_one_can_be_killed_while_the_engine_is_away(engine, image, world):
    with world.server() as server, client_of(server) as client:
        container = client.spawn("held", image=image, hold=True)
        pid = world.pid(container)
        engine.kill()
        is_told_away(server, client)
        with ThreadPoolExecutor(1) as thread:
            killing = thread.submit(client.kill_container, container.container_id, deadline=60)
            eventually(lambda: not is_alive(pid))
            engine.start()
            killed = killing.result().container
        assert (killed.state.name, killed.exit_code) == ("KILLED", 137)
        client.remove_container(container.container_id)
        world.nothing_left()


def test_a_server_that_starts_while_the_engine_is_away_adopts_when_it_is_back(engine, image, world):
    with world.server() as server, client_of(server) as client:
        held = client.spawn("held", image=image, hold=True)
        kill(server)
    engine.stop()
    began = time.monotonic()
    with world.server(serving=False) as server, client_of(server) as client:
        assert time.monotonic() - began < 20
        is_told_away(server, client)
        refused(client.spawn, "another", image=image, hold=True)
        found = client.get_container(held.container_id)
        assert found.state.name == "RUNNING"
        # It is known, and nothing can be done about it yet.
        refused(client.kill_container, held.container_id)
        refused(client.stop_container, held.container_id)
        refused(client.remove_container, held.container_id, force=True)
        refused(client.run_command, held.container_id, ["true"])
        engine.start()
        wait_for_containers(server)
        ended = client.wait_container(held.container_id, deadline=60)
        assert ended_with_its_engine(ended)
        client.remove_container(held.container_id)
        world.nothing_left()


def test_a_server_that_never_saw_its_engine_stops(engine, image, world):
    with world.server() as server, client_of(server) as client:
        held = client.spawn("held", image=image, hold=True)
        kill(server)
    engine.kill()
    with world.server(serving=False) as server:
        before = len(server.log.read_text())
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()[before:]
    assert world.left.rows() == [(held.container_id, "running")]


def test_containers_that_outlive_their_engine_are_found_running(start_engine, tmp_path):
    engine = start_engine({"live-restore": True})
    image = make_image(engine.api, name="busybox")
    world = World.at(tmp_path / "clawbox", engine.api)
    program = ["sh", "-c", "i=0; while sleep 0.05; do i=$((i+1)); echo line $i; done"]
    with world.server() as server, client_of(server) as client:
        talks = client.spawn("talks", image=image, command=program)
        held = client.spawn("held", image=image, hold=True)
        pids = [world.pid(one) for one in (talks, held)]
        until_said(client, talks.container_id, "line 3\n")
        # Its server sees it go and come back.
        engine.kill()
        is_told_away(server, client)
        engine.start()
        wait_for_containers(server)
        assert [world.pid(one) for one in (talks, held)] == pids
        assert client.run_command(held.container_id, ["echo", "here"]).stdout == "here\n"
        kill(server)
    # And one that starts while it is away finds them when it is back.
    engine.kill()
    with world.server(serving=False) as server, client_of(server) as client:
        is_told_away(server, client)
        assert sidecars(server) == []
        engine.start()
        wait_for_containers(server)
        found = {one.container_id: one for one in client.list_containers()}
        assert set(found) == {talks.container_id, held.container_id}
        assert {(one.state.name, one.egress) for one in found.values()} == {("RUNNING", "ready")}
        assert [world.pid(one) for one in (talks, held)] == pids
        assert client.run_command(held.container_id, ["echo", "again"]).stdout == "again\n"
        for one in (talks, held):
            client.remove_container(one.container_id, force=True)
        world.nothing_left()
    assert not any(map(is_alive, pids))
