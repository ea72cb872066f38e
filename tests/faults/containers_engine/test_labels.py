"""What is known of containers when the state is lost, and what becomes of those that only look alike."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.faults.containers_engine.world import (
    World,
    client_of,
    kill,
    lose_state,
    output,
    sidecars,
    until_said,
    until_state,
)
from tests.footprint import eventually, is_alive

FIELDS = (
    "name",
    "owner",
    "task",
    "image",
    "image_id",
    "command",
    "labels",
    "workspace",
    "grant",
    "start_time",
)


@pytest.fixture
def imposters(engine_api):
    """Makes containers by the engine alone, which are removed at the end."""
    made = []

    def make(image, labels, name=""):
        container = engine_api.create(image, ["sleep", "1000"], name=name, Labels=labels)
        made.append(container)
        engine_api.start(container)
        return container

    yield make
    for container in made:
        engine_api.remove_container(container)


def workspace_of(world, container):
    """Where what is /workspace to a container is on the host."""
    (mount,) = [one for one in world.facts(container)["Mounts"] if one["Destination"] == "/workspace"]
    return Path(mount["Source"])


def reaped(world):
    """Names of the containers that were removed, as the audit log has it."""
    return {row["fields"]["container_id"] for row in world.left.audit("container_reaped")}


def test_rule_83_containers_are_known_by_their_labels_when_all_else_is_lost(world, busybox_image):
    program = ["sh", "-c", "i=0; while sleep 0.05; do i=$((i+1)); echo line $i; done"]
    with world.server() as server, client_of(server) as client:
        talks = client.spawn("talks", image=busybox_image, command=program, labels={"a": "b"})
        named = client.spawn(
            "named", image=busybox_image, hold=True, workspace_id="mine", timeout_ms=600_000, memory_mb=64
        )
        ends = ["sh", "-c", "until test -e /workspace/go; do sleep 0.05; done; exit 4"]
        over = client.spawn("over", image=busybox_image, command=ends)
        client.write_file(named.container_id, "/workspace/kept", b"mine")
        before = {one.container_id: client.get_container(one.container_id) for one in (talks, named)}
        pids = [world.pid(one) for one in (talks, named)]
        kill(server)
    (workspace_of(world, over) / "go").touch()
    eventually(lambda: world.facts(over)["State"]["Status"] == "exited")
    lose_state(world)
    with world.server() as server, client_of(server) as client:
        found = {one.container_id: one for one in client.list_containers(include_finished=True)}
        assert set(found) == set(before)
        for container_id, was in before.items():
            for name in FIELDS:
                assert getattr(found[container_id], name) == getattr(was, name), name
            assert found[container_id].expire_time == was.expire_time
            assert (found[container_id].state.name, found[container_id].egress) == ("RUNNING", "ready")
        assert [world.pid(one) for one in (talks, named)] == pids
        said = output(client, talks.container_id)
        until_said(client, talks.container_id, f"line {len(said.splitlines()) + 5}\n")
        assert client.run_command(named.container_id, ["cat", "kept"]).stdout == "mine"
        adopted = {row["fields"]["container_id"] for row in world.left.audit("container_adopted")}
        assert adopted == set(before)
        # One that had ended is over: nobody knows who would ask for it.
        assert reaped(world) == {over.name}
        assert len(sidecars(server)) == 2
        for one in (talks, named):
            client.remove_container(one.container_id, force=True, delete_workspace=True)
        world.nothing_left()
        assert world.left.workspaces() == []


@pytest.mark.parametrize("lost", [False, True], ids=["state-kept", "state-lost"])
def test_rule_83_what_only_looks_like_one_is_removed_and_nothing_else(
    lost, world, busybox_image, imposters, engine_api
):
    with world.server() as server, client_of(server) as client:
        real = client.spawn("real", image=busybox_image, hold=True)
        kill(server)
    labels = world.facts(real)["Config"]["Labels"]

    def name():
        return f"clawbox-{uuid.uuid4()}"

    def own(container):
        """The same labels for a container of that name."""
        return labels | {"clawbox.container_id": container.removeprefix("clawbox-")}

    mine = {"clawbox.installation": world.left.installation}
    foreign = {"clawbox.installation": "0" * 32}
    names = [name() for _ in range(6)]
    bad = [
        imposters(busybox_image, labels, names[0]),  # another's name
        imposters(busybox_image, own(names[1]), names[1]),
        imposters(busybox_image, own(names[2]) | {"clawbox.mac": "0" * 64}, names[2]),
        imposters(
            busybox_image,
            {key: value for key, value in own(names[3]).items() if key != "clawbox.mac"},
            names[3],
        ),
        imposters(busybox_image, labels | {"clawbox.detail": "{}"}, names[4]),
        imposters(busybox_image, labels | {"clawbox.more": "x"}, names[5]),
        imposters(busybox_image, mine),
    ]
    expected = {engine_api.container(one)["Name"].strip("/") for one in bad}
    others = [
        imposters(busybox_image, {}),
        imposters(busybox_image, labels | foreign),
        imposters(busybox_image, foreign, name()),
    ]
    if lost:
        lose_state(world)
    with world.server() as server, client_of(server) as client:
        assert [one.container_id for one in client.list_containers(include_finished=True)] == [
            real.container_id
        ]
        assert world.left.containers() == {world.facts(real)["Id"]}
        assert reaped(world) == expected
        assert [engine_api.container(one)["State"]["Status"] for one in others] == ["running"] * 3
        client.remove_container(real.container_id, force=True)
        world.nothing_left()


def test_rule_83_one_in_the_place_of_another_is_not_taken_for_it(world, busybox_image, imposters):
    with world.server() as server, client_of(server) as client:
        real = client.spawn("real", image=busybox_image, hold=True)
        kill(server)
    labels = world.facts(real)["Config"]["Labels"]
    world.engine.remove_container(real.name)
    imposters(busybox_image, labels, real.name)
    with world.server() as server, client_of(server) as client:
        assert until_state(client, real.container_id, "lost").exit_code is None
        eventually(lambda: world.left.containers() == set())
        client.remove_container(real.container_id)
        world.nothing_left()


def test_rule_83_another_identity_key_is_another_installation(world, busybox_image):
    with world.server() as server, client_of(server) as client:
        old = client.spawn("old", image=busybox_image, hold=True)
        client.write_file(old.container_id, "/workspace/kept", b"mine")
        pid = world.pid(old)
        was = world.left.installation
        kill(server)
    (world.home / "identity.key").unlink()
    with world.server() as server, client_of(server) as client:
        assert world.left.installation != was
        assert list(client.list_containers(include_finished=True)) == []
        assert is_alive(pid)
        new = client.spawn("new", image=busybox_image, hold=True)
        uids = {world.facts(one)["Config"]["User"] for one in (old, new)}
        assert len(uids) == 2
        assert server.stop() == 0
    # Neither its start nor its end did anything to it.
    assert is_alive(pid)
    assert reaped(world) == set()
    assert (workspace_of(world, old) / "kept").read_bytes() == b"mine"
    assert world.left.containers() == set()
    world.engine.remove_container(old.name)


def test_two_installations_on_one_engine_leave_each_other_alone(world, tmp_path, engine_api, busybox_image):
    other = World.at(tmp_path / "other", engine_api)
    with world.server() as first, client_of(first) as one:
        ours = one.spawn("ours", image=busybox_image, hold=True)
        with other.server() as second, client_of(second) as two:
            theirs = two.spawn("theirs", image=busybox_image, hold=True)
            assert world.left.installation != other.left.installation
            assert [each.container_id for each in one.list_containers()] == [ours.container_id]
            assert [each.container_id for each in two.list_containers()] == [theirs.container_id]
            pid = world.pid(ours)
            kill(first)
            kill(second)
    # The second begins first: it may have the first one's part of the uids, but not one that lives.
    with other.server() as second, client_of(second) as two:
        more = [two.spawn("more", image=busybox_image, hold=True) for _ in range(3)]
        with world.server() as first, client_of(first) as one:
            assert [each.container_id for each in one.list_containers()] == [ours.container_id]
            assert {each.container_id for each in two.list_containers()} == {
                theirs.container_id,
                *(each.container_id for each in more),
            }
            users = [world.facts(each)["Config"]["User"] for each in (ours, theirs, *more)]
            assert len(set(users)) == len(users)
            assert second.stop() == 0
            assert other.left.containers() == set()
            assert (one.get_container(ours.container_id).state.name, is_alive(pid)) == ("RUNNING", True)
            one.remove_container(ours.container_id, force=True)
            world.nothing_left()
    assert world.left.audit("container_reaped") == other.left.audit("container_reaped") == []
