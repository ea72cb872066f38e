"""Time ends containers, whatever they do, and in the end takes away everything that they left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from clawbox_client import ClawboxError, ContainerState

from tests.footprint import eventually

if TYPE_CHECKING:
    from tests.faults.containers.conftest import Serve
    from tests.faults.containers.world import LiveWorld

IGNORES_EVERYTHING = ["sh", "-c", "trap '' TERM INT HUP; while true; do sleep 1000; done"]


def test_a_limit_ends_it_also_while_it_is_paused(world: LiveWorld) -> None:
    # Long enough that a busy machine has made one and frozen it by then.
    limits: dict[str, Any] = {"timeout_ms": 6000, "max_lifetime_ms": 6000}
    made = []
    for limit, value in limits.items():
        for pauses in (True, False):
            options = {limit: value}
            container = world.client.spawn("short", image=world.image, command=IGNORES_EVERYTHING, **options)
            if pauses:  # before the next one is made, which takes its time
                assert world.client.pause_container(container.container_id).state is ContainerState.PAUSED
            made.append((limit, container))
    for limit, container in made:
        ended = world.client.wait_container(container.container_id, deadline=30)
        assert ended.state is ContainerState.TIMED_OUT
        assert ended.finish_time is not None
        since = container.start_time if limit == "timeout_ms" else container.create_time
        assert since is not None
        assert 5.9 <= (ended.finish_time - since).total_seconds() < 20
    assert world.leftovers.containers() == set()
    assert world.leftovers.mounts() == []


def test_a_limit_ends_what_runs_inside_too(world: LiveWorld) -> None:
    # Long enough that a busy machine has begun the command by then.
    made = world.client.spawn("short", image=world.image, hold=True, timeout_ms=4000)
    done = world.client.run_command(made.container_id, IGNORES_EVERYTHING, deadline=20)
    assert not done.ok
    assert world.client.wait_container(made.container_id, deadline=20).state is ContainerState.TIMED_OUT


def test_after_its_retention_nothing_is_left_of_it(serve: Serve) -> None:
    # Long enough that a busy machine has read file and log by then.
    with serve("retention_ms = 4000") as world:
        made = world.client.spawn("brief", image=world.image, command=["sh", "-c", "echo x > f; echo out"])
        ended = world.client.wait_container(made.container_id, deadline=20)
        assert ended.state is ContainerState.COMPLETED
        assert ended.purge_time is not None
        # What it wrote can be read until then.
        assert world.client.read_file(made.container_id, "/workspace/f") == b"x\n"
        with world.client.logs(made.container_id) as events:
            assert any(getattr(event, "data", b"") == b"out\n" for event in events)

        def gone() -> bool:
            try:
                world.client.get_container(made.container_id)
            except ClawboxError as error:
                return error.reason == "CONTAINER_NOT_FOUND"
            return False

        eventually(gone, 20)
        world.nothing_is_left()
        with pytest.raises(ClawboxError) as caught:
            world.client.remove_container(made.container_id)
        assert caught.value.reason == "CONTAINER_NOT_FOUND"


def test_no_retention_at_all_forgets_it_as_it_ends(serve: Serve) -> None:
    with serve("retention_ms = 0") as world:
        command = ["sh", "-c", "until [ -e go ]; do sleep 0.05; done"]
        made = world.client.spawn("brief", image=world.image, command=command)
        assert made.active
        (world.workspace_of(made) / "go").touch()
        world.nothing_is_left()
