"""Get, List, Watch and Wait: how callers see what is there and what changes."""

from __future__ import annotations

import queue
import threading
import uuid
from itertools import pairwise
from typing import Any

import pytest
from clawbox_client import (
    ContainerChanged,
    ContainerRemoved,
    ContainersSnapshot,
    ContainerState,
    DeadlineExceeded,
    NotFound,
)
from clawbox_client.v1 import containers_pb2 as pb

from tests.integration.containers_live.world import container, refused, until


@pytest.fixture(scope="module")
def four(world):
    """Three that hold and one that has ended, oldest first, with a label of their own."""
    label = {"batch": uuid.uuid4().hex}
    made = [
        world.ann.spawn(
            f"number {number}",
            command=["true"] if number == 1 else [],
            hold=number != 1,
            labels={**label, "number": str(number)},
        )
        for number in range(4)
    ]
    world.ann.wait_container(made[1].container_id, deadline=30)
    try:
        yield label, [one.container_id for one in made]
    finally:
        for one in made:
            world.ann.remove_container(one.container_id, force=True)


def listed(world, **options):
    return [one.container_id for one in world.ann.list_containers(**options)]


def test_get_tells_one(world, held):
    found = world.ann.get_container(held.container_id)
    assert found == held
    assert refused(lambda: world.ann.get_container(str(uuid.uuid4()))).reason == "CONTAINER_NOT_FOUND"


def test_the_active_ones_are_listed_newest_first(world, four):
    label, ids = four
    assert listed(world, labels=label) == [ids[3], ids[2], ids[0]]
    assert listed(world, labels=label, include_finished=True) == ids[::-1]


def test_filters_must_all_match(world, four):
    label, ids = four
    assert listed(world, labels=label, states=[ContainerState.COMPLETED]) == [ids[1]]
    assert listed(world, labels={**label, "number": "2"}) == [ids[2]]
    assert listed(world, labels={**label, "number": "5"}) == []
    assert listed(world, labels=label, template="bare") == []
    assert listed(world, labels=label, owner="ann") == [ids[3], ids[2], ids[0]]
    assert refused(lambda: listed(world, owner="bob")).reason == "SCOPE_MISSING"
    with container(world.ann, template="bare", hold=True, request_id="list-by-this") as made:
        assert listed(world, template="bare") == [made.container_id]
        assert listed(world, request_id="list-by-this") == [made.container_id]


def test_pages_hold_every_container_once(world, four):
    label, ids = four
    assert listed(world, labels=label, include_finished=True, page_size=1) == ids[::-1]
    request = pb.ContainersListRequest(
        page_size=3, filter=pb.ContainerFilter(labels=label, include_finished=True)
    )
    first = world.stub.List(request, **world.as_("ann"))
    assert len(first.containers) == 3
    request.page_token = first.next_page_token
    assert [one.container_id for one in world.stub.List(request, **world.as_("ann")).containers] == [ids[0]]


def test_a_page_goes_on_behind_one_that_is_gone(world):
    label = {"batch": uuid.uuid4().hex}
    with (
        container(world.ann, labels=label) as first,
        container(world.ann, labels=label) as second,
        container(world.ann, labels=label) as third,
    ):
        pages = world.ann.list_containers(labels=label, page_size=2)
        assert [next(pages).container_id, next(pages).container_id] == [
            third.container_id,
            second.container_id,
        ]
        world.ann.remove_container(second.container_id, force=True)
        assert [one.container_id for one in pages] == [first.container_id]


class Watching:
    """A watch in a thread of its own."""

    def __init__(self, client, **options):
        self.stream = client.watch_containers(**options)
        self._events: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        for event in self.stream:
            self._events.put(event)

    def next(self):
        return self._events.get(timeout=20)

    def states(self, container_id, end):
        """What it is told to be, up to a state; and the last event."""
        seen: list[ContainerState] = []
        while not seen or seen[-1] is not end:
            event = self.next()
            assert isinstance(event, ContainerChanged)
            assert event.container.container_id == container_id
            if seen[-1:] != [event.container.state]:
                seen.append(event.container.state)
        return seen, event

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self._thread.join()


def test_a_watch_tells_what_is_there_and_then_every_change(world):
    label = {"batch": uuid.uuid4().hex}
    state = ContainerState
    with (
        container(world.ann, labels=label) as before,
        Watching(world.ann, labels=label, include_finished=True) as watch,
    ):
        snapshot = watch.next()
        assert isinstance(snapshot, ContainersSnapshot)
        assert [one.container_id for one in snapshot.containers] == [before.container_id]
        assert snapshot.complete
        assert snapshot.revision
        made = world.ann.spawn("to be watched", hold=True, labels=label)
        seen, _ = watch.states(made.container_id, state.RUNNING)
        assert seen == [state.CREATING, state.RUNNING]
        world.ann.pause_container(made.container_id)
        watch.states(made.container_id, state.PAUSED)
        world.ann.resume_container(made.container_id)
        _, mark = watch.states(made.container_id, state.RUNNING)
        world.ann.kill_container(made.container_id)
        _, ended = watch.states(made.container_id, state.KILLED)
        assert ended.container.exit_code == 137
        world.ann.remove_container(made.container_id)
        removed = watch.next()
        assert isinstance(removed, ContainerRemoved)
        assert removed.container_id == made.container_id
        # Who comes back is told what came after, and nothing twice.
        with Watching(world.ann, labels=label, include_finished=True, after_revision=mark.revision) as again:
            _, same = again.states(made.container_id, state.KILLED)
            assert same.revision == ended.revision
            assert again.next() == removed
        with Watching(
            world.ann, labels=label, include_finished=True, after_revision="of-another-server:9"
        ) as again:
            assert isinstance(again.next(), ContainersSnapshot)


def test_what_no_longer_matches_is_told_once_more(world):
    label = {"batch": uuid.uuid4().hex}
    with container(world.ann, labels=label) as made, Watching(world.ann, labels=label) as watch:
        assert isinstance(watch.next(), ContainersSnapshot)
        world.ann.kill_container(made.container_id)
        watch.states(made.container_id, ContainerState.KILLED)


def test_a_watch_for_a_request_sees_it_from_its_beginning(world):
    with Watching(world.ann, request_id="watched-from-before") as watch:
        assert watch.next().containers == ()
        with container(world.ann, request_id="watched-from-before") as made:
            seen, _ = watch.states(made.container_id, ContainerState.RUNNING)
            assert seen[0] is ContainerState.CREATING


def test_nobody_is_told_of_what_is_anothers(world):
    with Watching(world.bob) as watch:
        assert watch.next().complete
        with container(world.ann), container(world.bob) as own:
            watch.states(own.container_id, ContainerState.RUNNING)


def test_wait_returns_when_the_program_has_ended(world):
    with container(world.ann, command=["sh", "-c", "until [ -e go ]; do sleep 0.05; done; exit 5"]) as made:
        ended = []
        thread = threading.Thread(
            target=lambda: ended.append(world.ann.wait_container(made.container_id, deadline=30))
        )
        thread.start()
        world.ann.write_file(made.container_id, "/workspace/go", b"")
        thread.join()
        assert (ended[0].state, ended[0].exit_code) == (ContainerState.FAILED, 5)
        assert world.ann.wait_container(made.container_id) == ended[0]


def test_wait_ends_with_its_deadline_and_the_container_goes_on(world, held):
    with pytest.raises(DeadlineExceeded):
        world.ann.wait_container(held.container_id, deadline=0.3)
    assert world.ann.get_container(held.container_id).active


def test_a_wait_for_one_that_is_removed_is_told(world):
    with container(world.ann) as made:
        caught = []

        def wait():
            try:
                caught.append(world.ann.wait_container(made.container_id, deadline=30))
            except NotFound as error:
                caught.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        world.ann.remove_container(made.container_id, force=True)
        thread.join()
        until(lambda: caught)


def test_times_are_in_order(world, four):
    label, _ = four
    found = list(world.ann.list_containers(labels=label, include_finished=True))
    assert all(one.create_time >= other.create_time for one, other in pairwise(found))
