"""A spawn that is sent again, because its answer was lost, makes one container."""

from __future__ import annotations

import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ClawboxError, ContainerState, DeadlineExceeded

if TYPE_CHECKING:
    from tests.faults.containers.world import LiveWorld


@pytest.fixture
def request_id() -> str:
    """One that no other test has."""
    return str(uuid.uuid4())


def test_sent_again_it_is_the_same_container(world: LiveWorld, request_id: str) -> None:
    first, second = (
        world.client.spawn("again", image=world.image, hold=True, request_id=request_id) for _ in range(2)
    )
    assert first.container_id == second.container_id
    assert len(world.leftovers.containers()) == 1
    world.client.kill_container(first.container_id)
    # As it is now, not as it was.
    again = world.client.spawn("again", image=world.image, hold=True, request_id=request_id)
    assert (again.container_id, again.state) == (first.container_id, ContainerState.KILLED)


def test_with_another_body_it_is_refused(world: LiveWorld, request_id: str) -> None:
    made = world.client.spawn("one", image=world.image, hold=True, request_id=request_id)
    for options in ({"hold": True, "env": {"A": "1"}}, {"command": ["true"]}):
        with pytest.raises(ClawboxError) as caught:
            world.client.spawn("one", image=world.image, request_id=request_id, **options)
        assert caught.value.code.name == "INVALID_ARGUMENT"
        assert [one.field for one in caught.value.violations] == ["request_id"]
    assert [one.container_id for one in world.client.list_containers()] == [made.container_id]


def test_sent_many_times_at_once_it_makes_one(world: LiveWorld, request_id: str) -> None:
    def spawn(_: int) -> str:
        made = world.client.spawn("many", image=world.image, hold=True, request_id=request_id)
        return made.container_id

    with ThreadPoolExecutor(8) as callers:
        assert len(set(callers.map(spawn, range(8)))) == 1
    assert len(world.leftovers.containers()) == 1


def test_a_failure_is_not_remembered(world: LiveWorld, request_id: str) -> None:
    with pytest.raises(ClawboxError) as caught:
        world.client.spawn("x", image="clawbox-test/nowhere:1", hold=True, request_id=request_id)
    assert caught.value.reason == "IMAGE_NOT_FOUND"
    with pytest.raises(ClawboxError) as caught:
        world.client.spawn("late", image=world.image, hold=True, request_id=request_id, deadline=0.05)
    assert caught.value.code.name == "DEADLINE_EXCEEDED"
    world.nothing_is_left()
    assert world.client.spawn("good", image=world.image, hold=True, request_id=request_id).active


def test_one_that_waits_gets_its_turn_when_the_first_is_given_up(world: LiveWorld, request_id: str) -> None:
    def spawn(deadline: float) -> str:
        with contextlib.suppress(DeadlineExceeded):
            made = world.client.spawn(
                "turns", image=world.image, hold=True, request_id=request_id, deadline=deadline
            )
            return made.container_id
        return ""

    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(spawn, (0.05, 0.1, 0.2, 60)))
    assert found[-1]
    assert set(found) <= {"", found[-1]}
    assert len(world.leftovers.containers()) == 1
