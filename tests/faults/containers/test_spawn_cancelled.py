"""Spawn is one transaction: given up at whichever step, it leaves nothing."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from clawbox.containers import making
from clawbox.containers.calls import WorkspaceCall
from clawbox.containers.docker import DockerBackend
from clawbox.containers.execs import Execs
from clawbox.containers.host.fifo import Fifo
from clawbox.containers.host.workspaces import Workspaces
from clawbox.containers.output.capture import OutputCapture
from clawbox.containers.registry import Registry
from clawbox.egress.sandbox_door import SandboxDoor
from clawbox.egress.supervisor import EgressSupervisor
from tests.faults.containers.inside import ANN, Inside, Step, inside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engine import EngineApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = {
    "resolve the image": (DockerBackend, "image", 1),
    "have a workspace": (Workspaces, "acquire", 1),
    "keep its row": (Registry, "put", 1),
    "sign its labels": (EgressSupervisor, "mac", 1),
    "make it": (DockerBackend, "create", 1),
    "open its way out": (making, "open_way_out", 1),
    "start its sidecar": (SandboxDoor, "open", 1),
    "start it": (DockerBackend, "start", 1),
    "see whether it runs": (DockerBackend, "inspect", 1),
    "hold its process": (making, "occupy", 1),
    "check its gate": (making, "check_gate", 1),
    "listen inside": (making, "listen", 1),
    "follow its output": (OutputCapture, "began", 1),
    "watch what runs inside": (Execs, "began", 1),
    "let its gate go": (Fifo, "release", 1),
    "keep that it runs": (Registry, "put", 2),
}


def open_descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def containers(
    tmp_path_factory: pytest.TempPathFactory, engine_api: EngineApi, busybox_image: str
) -> AsyncIterator[Inside]:
    """Of one service for all tests here, which serves as before when they are done."""
    home = tmp_path_factory.mktemp("inside") / "clawbox"
    async with inside(home, engine_api, busybox_image, "max_containers = 2") as made:
        descriptors = open_descriptors()
        yield made
        good = await made.spawn()
        assert good.active
        await made.remove(good)
        await made.nothing_is_left()
        assert open_descriptors() < descriptors + 10


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("step", STEPS)
async def test_given_up_at_a_step_it_leaves_nothing(
    containers: Inside,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    when: str,
) -> None:
    owner, name, turn = STEPS[step]
    stop = Step(when, turn)
    stop.at(monkeypatch, owner, name)
    spawning = asyncio.create_task(containers.spawn())
    await asyncio.wait(
        [spawning, reached := asyncio.create_task(stop.reached.wait())],
        timeout=30,
        return_when="FIRST_COMPLETED",
    )
    assert reached.done(), spawning
    spawning.cancel()
    stop.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    monkeypatch.undo()
    await containers.nothing_is_left()
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []


async def test_given_up_before_it_began_and_once_more_while_it_is_undone(
    containers: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, undone = Step("before"), Step("before")
    started.at(monkeypatch, DockerBackend, "inspect")
    undone.at(monkeypatch, DockerBackend, "remove")
    spawning = asyncio.create_task(containers.spawn())
    await started.reached.wait()
    spawning.cancel()
    started.go_on.set()
    await undone.reached.wait()
    for _ in range(3):
        spawning.cancel()
        await asyncio.sleep(0)
    assert not spawning.done()
    undone.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    monkeypatch.undo()
    await containers.nothing_is_left()


async def test_given_up_in_the_moment_in_which_it_is_done_it_leaves_nothing(containers: Inside) -> None:
    spawning = asyncio.create_task(containers.spawn())
    await asyncio.sleep(0)
    (making_it,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("spawn "))
    # Called when the container runs already, and before its caller gets to know.
    making_it.add_done_callback(lambda _: spawning.cancel())
    with pytest.raises(asyncio.CancelledError):
        await spawning
    await containers.nothing_is_left()


async def give_up(containers: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Spawn with the workspace `mine`, which is to go with it, is given up when all is there."""
    stop = Step("before")
    stop.at(monkeypatch, DockerBackend, "start")
    workspace = WorkspaceCall(workspace_id="mine", delete_on_removal=True)
    spawning = asyncio.create_task(containers.spawn(workspace=workspace))
    await stop.reached.wait()
    spawning.cancel()
    stop.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    monkeypatch.undo()


async def test_given_up_it_leaves_a_named_workspace_only_where_that_was_there_before(
    containers: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    await give_up(containers, monkeypatch)
    await containers.nothing_is_left()
    made = await containers.spawn(workspace=WorkspaceCall(workspace_id="mine"))
    await containers.remove(made)
    there = containers.world.leftovers.workspaces()
    await give_up(containers, monkeypatch)
    assert containers.world.leftovers.workspaces() == there
    last = await containers.spawn(workspace=WorkspaceCall(workspace_id="mine", delete_on_removal=True))
    await containers.remove(last)
    await containers.nothing_is_left()


async def test_given_up_it_takes_along_a_workspace_that_was_to_go_with_a_container_before(
    containers: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await containers.spawn(workspace=WorkspaceCall(workspace_id="mine", delete_on_removal=True))
    await containers.service.manager.kill(first.container_id, ANN)
    await give_up(containers, monkeypatch)
    assert containers.world.leftovers.workspaces()  # the first one's, which is still there
    await containers.remove(first)
    await containers.nothing_is_left()

    second = await containers.spawn(workspace=WorkspaceCall(workspace_id="mine", delete_on_removal=True))
    await containers.service.manager.kill(second.container_id, ANN)
    stop = Step("before")
    stop.at(monkeypatch, DockerBackend, "start")
    workspace = WorkspaceCall(workspace_id="mine", delete_on_removal=True)
    spawning = asyncio.create_task(containers.spawn(workspace=workspace))
    await stop.reached.wait()
    # Its workspace is in use, and so is left to whom it serves now.
    await containers.remove(second)
    spawning.cancel()
    stop.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    await containers.nothing_is_left()


async def test_the_server_stops_in_the_middle_of_a_spawn(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    engine_api: EngineApi,
    busybox_image: str,
) -> None:
    home = tmp_path_factory.mktemp("stopping") / "clawbox"
    async with inside(home, engine_api, busybox_image) as containers:
        stop = Step("before")
        stop.at(monkeypatch, making, "listen")
        spawning = asyncio.create_task(containers.spawn())
        await stop.reached.wait()
        # Left while the gate waits.
    with pytest.raises(asyncio.CancelledError):
        await spawning
    held = containers.world.held
    left = await asyncio.to_thread(held)
    assert (left.containers, left.folders, left.workspaces, left.mounts, left.cgroups) == (
        frozenset(),
        (),
        (),
        (),
        frozenset(),
    )
    assert containers.world.leftovers.rows() == []
