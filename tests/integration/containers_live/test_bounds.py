"""How much is kept for an owner: finished containers, and workspaces that have names."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ClawboxError, Container, ContainerState

from tests.containers_world import Leftovers
from tests.integration.containers_live import world as worlds
from tests.integration.containers_live.world import container, logged, refused, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine import EngineApi
    from tests.integration.containers_live.world import Outside, World


@pytest.fixture(scope="module")
def bounded(
    tmp_path_factory: pytest.TempPathFactory, engine_url: str, busybox_image: str, reachable: Outside
) -> Iterator[World]:
    """A server that keeps two finished containers and one workspace of each owner."""
    with worlds.running(
        tmp_path_factory.mktemp("bounded") / "clawbox",
        engine_url,
        busybox_image,
        reachable,
        containers="max_finished = 2\nmax_workspaces = 1",
    ) as world:
        yield world


def test_the_container_that_ended_first_is_gone_and_the_newest_can_be_read(
    bounded: World, engine_api: EngineApi
) -> None:
    left = Leftovers(bounded.server.home, engine_api)
    script = ["sh", "-c", "echo written > /workspace/file; echo said"]
    made = []
    for client in (bounded.ann, bounded.bob, bounded.ann, bounded.ann):
        made.append(client.spawn("brief", command=script))
        ended = client.wait_container(made[-1].container_id, deadline=30)
        assert ended.state is ContainerState.COMPLETED
    first, bobs, second, third = made

    def of_first() -> list[str]:
        names = (first.container_id, first.workspace.workspace_id)
        return [path for path in (*left.folders(), *left.workspaces()) if path.endswith(names)]

    until(lambda: not of_first())
    for call in (bounded.ann.get_container, bounded.ann.wait_container, bounded.ann.remove_container):
        assert refused(call, first.container_id).reason == "CONTAINER_NOT_FOUND"
    finished = bounded.ann.list_containers(include_finished=True)
    assert [one.container_id for one in finished] == [third.container_id, second.container_id]
    for client, one in ((bounded.bob, bobs), (bounded.ann, second), (bounded.ann, third)):
        assert logged(client, one) == b"said\n"
        assert client.read_file(one.container_id, "/workspace/file") == b"written\n"
        client.remove_container(one.container_id)
    assert left.folders() == []
    assert left.workspaces() == []


def test_one_workspace_too_many_is_refused_until_another_is_deleted(bounded: World) -> None:
    with container(bounded.ann, workspace_id="mine") as made:
        bounded.ann.write_file(made.container_id, "/workspace/file", b"x")
        error = refused(bounded.ann.spawn, "more", hold=True, workspace_id="more")
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "WORKSPACE_LIMIT")
        assert "delete_workspace" in error.message
        # Nothing was made; nobody else's room is taken, and a fresh one is no matter.
        assert [one.container_id for one in bounded.ann.list_containers()] == [made.container_id]
        with container(bounded.ann) as fresh, container(bounded.bob, workspace_id="more"):
            error = refused(
                bounded.ann.remove_container, fresh.container_id, force=True, delete_workspace=False
            )
            assert error.reason == "WORKSPACE_LIMIT"
            assert bounded.ann.get_container(fresh.container_id).state is ContainerState.RUNNING
    with container(bounded.ann, workspace_id="mine") as again:
        assert bounded.ann.read_file(again.container_id, "/workspace/file") == b"x"
        assert refused(bounded.ann.spawn, "more", workspace_id="more").reason == "WORKSPACE_LIMIT"
        bounded.ann.remove_container(again.container_id, force=True, delete_workspace=True)
    with container(bounded.ann, workspace_id="more") as more:
        bounded.ann.remove_container(more.container_id, force=True, delete_workspace=True)


def test_of_spawns_at_once_only_one_makes_the_last_workspace(bounded: World) -> None:
    def spawn(name: str) -> Container | ClawboxError:
        try:
            return bounded.admin.spawn("at once", hold=True, workspace_id=name)
        except ClawboxError as error:
            return error

    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(spawn, ("a", "b", "c", "d")))
    made = [one for one in found if isinstance(one, Container)]
    assert [one.reason for one in found if isinstance(one, ClawboxError)] == ["WORKSPACE_LIMIT"] * 3
    assert [one.container_id for one in bounded.admin.list_containers()] == [made[0].container_id]
    bounded.admin.remove_container(made[0].container_id, force=True, delete_workspace=True)
