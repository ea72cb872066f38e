"""The server dies at every step of making and ending a container: the next one leaves nothing half done."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox_client.errors import ClawboxError, NotFound

from tests.faults.containers_engine.world import client_of, output, sidecars, until_said
from tests.footprint import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clawbox_client import SyncClient

    from tests.faults.containers_engine.world import World
    from tests.live import LiveServer

DYING = Path(__file__).with_name("dying.py")
PROGRAM = ["sh", "-c", "echo began; exec sleep 1000"]
MOST = 60


class Deaths:
    """Servers one after the other, each of which dies one step later than the one before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._steps = world.home.parent / "steps"
        self.names: list[str] = []
        """Of the steps at which one died."""

    def over(self) -> None:
        """No step is counted any more."""
        self._steps.unlink()

    def __iter__(self) -> Iterator[tuple[LiveServer, SyncClient, Callable[[], None]]]:
        """A server, its administrator, and what makes it mortal; until one survives."""
        for step in range(1, MOST):
            self._steps.unlink(missing_ok=True)
            wrapper = (sys.executable, str(DYING), str(self._steps), str(step))
            with self._world.server(wrapper=wrapper) as server, client_of(server) as client:
                yield server, client, self._steps.touch
                counted = self._steps.read_text().splitlines() if self._steps.exists() else []
                if len(counted) < step:
                    return
                server.process.wait(10)
                self.names.append(counted[-1])
        raise AssertionError(f"there is no end of steps: {self.names}")


def dies(server, act, *arguments, **options):
    """Whether a server dies while something is asked of it."""
    with contextlib.suppress(ClawboxError):
        act(*arguments, **options)
        return False
    server.process.wait(10)
    return True


def test_spawn_leaves_nothing_whenever_the_server_dies(world, busybox_image):
    deaths = Deaths(world)
    for server, client, begin in deaths:
        # What the server before left: a container that runs, of which its caller was not told, or nothing.
        for left in client.list_containers(include_finished=True):
            assert left.state.name == "RUNNING"
            assert deaths.names[-1] in {"Fifo.release", "ContainerRows.save"}
            client.remove_container(left.container_id, force=True)
        eventually(lambda: world.left.workspaces() == [], explain=lambda: deaths.names[-1:])
        world.nothing_left()
        assert sidecars(server) == []
        begin()
        if not dies(server, client.spawn, "dies", image=busybox_image, command=PROGRAM):
            deaths.over()
            (made,) = client.list_containers()
            client.remove_container(made.container_id, force=True)
            world.nothing_left()
    assert {
        "Workspaces.acquire",
        "ContainerRows.save",
        "ContainerFolder.make",
        "DockerBackend.create",
        "DockerBackend.start",
        "SandboxDoor.listen_unix",
        "SandboxDoor.listen_namespace",
        "OutputCapture.began",
        "Fifo.release",
    } <= set(deaths.names)


def test_the_end_of_a_container_is_told_whenever_the_server_dies(world, busybox_image):
    deaths = Deaths(world)
    last = ""
    for server, client, begin in deaths:
        if last:
            with contextlib.suppress(NotFound):
                found = client.wait_container(last, deadline=20)
                assert (found.state.name, found.exit_code) == ("KILLED", 137), deaths.names[-1]
                assert output(client, last) == "began\n"
                client.remove_container(last)
        eventually(lambda: world.left.workspaces() == [], explain=lambda: deaths.names[-1:])
        world.nothing_left()
        last = client.spawn("dies", image=busybox_image, command=PROGRAM).container_id
        until_said(client, last, "began\n")
        begin()

        def end(asked=client, made=last):
            asked.kill_container(made)
            asked.remove_container(made)

        dies(server, end)
    world.nothing_left()
    assert {
        "ContainerRows.save",
        "DockerBackend.signal",
        "OutputCapture.ended",
        "DockerBackend.remove",
        "ContainerFolder.remove",
        "ContainerRows.delete",
        "OutputCapture.forgotten",
        "Workspaces.delete",
    } <= set(deaths.names)
