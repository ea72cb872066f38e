"""More is asked for than may be: exactly what may be runs, and the others are told when to try again."""

from __future__ import annotations

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ClawboxError, Container, ContainerState, SyncClient

from tests.caller import UNLIMITED, Caller
from tests.footprint import eventually

if TYPE_CHECKING:
    from tests.faults.containers.conftest import Serve

MOST = 10


def token(name: str) -> str:
    """Somebody's."""
    return f"the-token-of-{name}-0123456789abcdef"


def spawn_many(client: SyncClient, image: str, number: int) -> tuple[list[Container], list[ClawboxError]]:
    """What became of so many spawns at once."""

    def spawn(_: int) -> Container | ClawboxError:
        try:
            return client.spawn("many", image=image, hold=True)
        except ClawboxError as error:
            return error

    with ThreadPoolExecutor(number) as callers:
        found = list(callers.map(spawn, range(number)))
    return (
        [one for one in found if isinstance(one, Container)],
        [one for one in found if isinstance(one, ClawboxError)],
    )


def assert_over_the_limit(errors: list[ClawboxError]) -> None:
    """Each says so, and when to try again."""
    for error in errors:
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "CONTAINER_LIMIT")
        assert error.retry_after is not None
        assert error.retry_after > 0


def test_of_twenty_spawns_at_once_exactly_ten_run(serve: Serve) -> None:
    with serve(f"max_containers = {MOST}") as world:
        made, refused = spawn_many(world.client, world.image, 20)
        assert (len(made), len(refused)) == (MOST, 20 - MOST)
        assert_over_the_limit(refused)
        assert {one.container_id for one in world.client.list_containers()} == {
            one.container_id for one in made
        }
        assert len(world.leftovers.containers()) == MOST
        with ThreadPoolExecutor(MOST) as callers:
            done = list(callers.map(lambda one: world.client.run_command(one.container_id, ["true"]), made))
            assert all(one.ok for one in done)
            killed = list(callers.map(lambda one: world.client.kill_container(one.container_id), made))
        assert {one.container.state for one in killed} == {ContainerState.KILLED}
        # Finished ones take no place, though they are still there to be asked.
        made, refused = spawn_many(world.client, world.image, MOST)
        assert (len(made), len(refused)) == (MOST, 0)
        world.remove_all()


def test_a_spawn_that_fails_or_is_given_up_takes_no_place(serve: Serve) -> None:
    with serve("max_containers = 1") as world:
        for _ in range(3):
            with pytest.raises(ClawboxError) as caught:
                world.client.spawn("missing", image="clawbox-test/nowhere:1", hold=True)
            assert caught.value.reason == "IMAGE_NOT_FOUND"
            with pytest.raises(ClawboxError) as caught:
                world.client.spawn("too late", image=world.image, hold=True, deadline=0.05)
            assert caught.value.code.name == "DEADLINE_EXCEEDED"
            world.nothing_is_left()
        made = world.client.spawn("good", image=world.image, hold=True)
        _, refused = spawn_many(world.client, world.image, 1)
        assert_over_the_limit(refused)
        assert world.client.get_container(made.container_id).state is ContainerState.RUNNING


def test_a_tokens_runs_and_containers_count_together(serve: Serve) -> None:
    people = "".join(
        f'[[auth.tokens]]\nname = "{name}"\nscopes = ["*"]\nmax_sandboxes = 2\n'
        f'sha256 = "{hashlib.sha256(token(name).encode()).hexdigest()}"\n'
        for name in ("ann", "bob")
    )
    with serve(more=people) as world, contextlib.ExitStack() as held:
        address = world.server.address
        ann, bob = (held.enter_context(SyncClient(address, token=token(name))) for name in ("ann", "bob"))
        runs = held.enter_context(Caller(address, token("ann")))
        status = held.enter_context(Caller(address, world.server.token)).status
        first = ann.spawn("first", image=world.image, hold=True)
        running = runs.begin("spin", capabilities=UNLIMITED)
        eventually(lambda: status().running_executions == 1)
        # One container and one run: no more of either.
        _, refused = spawn_many(ann, world.image, 1)
        assert_over_the_limit(refused)
        assert "ann" in refused[0].message
        with pytest.raises(ClawboxError) as caught:
            ann.execute("echo", {})
        assert caught.value.reason == "EXECUTION_LIMIT"
        assert caught.value.retry_after
        # Others have room of their own.
        bob.spawn("others", image=world.image, hold=True)
        running.cancel()
        eventually(lambda: status().running_executions == 0)
        second = ann.spawn("second", image=world.image, hold=True)
        with pytest.raises(ClawboxError):
            ann.execute("echo", {})
        for one in (first, second):
            ann.kill_container(one.container_id)
        assert ann.execute("echo", {}).ok
