"""Stop while the engine is away: the program is asked to end, and has its time to do so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.containers_world.server import wait_for_containers
from tests.engine.images import make_image
from tests.faults.containers_engine.world import World, client_of, until_said
from tests.footprint import eventually, is_alive

if TYPE_CHECKING:
    from pathlib import Path

CLEANS_UP = [
    "sh",
    "-c",
    "trap 'echo bye > /workspace/bye; exit 0' TERM; echo began; while true; do sleep 0.1; done",
]


def test_one_that_is_stopped_while_the_engine_is_away_ends_as_it_wants(start_engine, tmp_path: Path) -> None:
    engine = start_engine({"live-restore": True})
    image = make_image(engine.api, name="busybox")
    world = World.at(tmp_path / "clawbox", engine.api)
    with world.server() as server, client_of(server) as client:
        program = client.spawn("cleans up", image=image, command=CLEANS_UP, workspace_id="kept")
        until_said(client, program.container_id, "began")
        pid = world.pid(program)
        engine.kill()
        wait_for_containers(server, serving=False)
        with ThreadPoolExecutor(1) as thread:
            stopping = thread.submit(
                client.stop_container, program.container_id, grace_ms=60_000, deadline=90
            )
            eventually(lambda: not is_alive(pid))
            engine.start()
            stopped = stopping.result()
        assert (stopped.state.name, stopped.exit_code) == ("STOPPED", 0)
        (left,) = (server.home / "workspaces").glob("*/kept/files/bye")
        assert left.read_text() == "bye\n"
        client.remove_container(program.container_id, delete_workspace=True)
