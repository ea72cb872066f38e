"""Containers that take all they can get: each is bounded, and the others and the server do not notice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ContainerState
from clawbox_client.containers import LogChunk

from clawbox.containers import monitor
from clawbox.containers.states import State
from tests.faults.containers.inside import ANN, inside
from tests.footprint import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox_client import Container

    from tests.engine import EngineApi
    from tests.faults.containers.world import LiveWorld

SECONDS = 10
"""Within which another container must be served, while one misbehaves, on a busy machine."""


@pytest.fixture
def other(world: LiveWorld) -> Iterator[Container]:
    """A container beside the hostile one, which is served all the time and at the end."""
    made = world.client.spawn("other", image=world.image, hold=True)
    yield made
    assert world.client.get_container(made.container_id).state is ContainerState.RUNNING
    assert_served(world, made)


def assert_served(world: LiveWorld, container: Container) -> None:
    """Whether it can be used, and its way out answers, soon enough."""
    began = time.monotonic()
    # Its sidecar refuses what no rule allows: that is an answer.
    request = "GET http://nowhere.test/ HTTP/1.1\\r\\nHost: nowhere.test\\r\\nConnection: close\\r\\n\\r\\n"
    asks = f"printf '{request}' | nc -w 5 127.0.0.1 3128 | grep -q '^HTTP/1.1 4'"
    done = world.client.run_command(container.container_id, ["sh", "-c", asks], deadline=SECONDS)
    assert done.ok, (done.stdout, done.stderr)
    world.client.write_file(container.container_id, "/workspace/file", b"x", deadline=SECONDS)
    assert time.monotonic() - began < SECONDS


def kept(world: LiveWorld, container: Container) -> int:
    """Bytes of output that can be read of a container that has ended."""
    with world.client.logs(container.container_id) as events:
        return sum(len(event.data) for event in events if isinstance(event, LogChunk))


def test_a_flood_of_output_is_bounded(world: LiveWorld, other: Container) -> None:
    flood = world.client.spawn("flood", image=world.image, command=["sh", "-c", "yes flood & yes more >&2"])
    folder = world.server.home / "output" / flood.container_id

    def size() -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    eventually(lambda: size() > 1 << 20)
    for _ in range(3):
        assert_served(world, other)
    killed = world.client.kill_container(flood.container_id, deadline=30)
    assert killed.container.state is ContainerState.KILLED
    assert killed.truncated
    assert len(killed.stdout_bytes) <= 262_144
    assert set(killed.stdout_bytes.split(b"\n")[1:-1]) == {b"flood"}
    assert size() < 64 << 20
    assert 0 < kept(world, flood) < 64 << 20


def test_a_fork_bomb_stays_within_its_limit(world: LiveWorld, other: Container) -> None:
    # A shell gives up when it may not fork; what it began keeps every place.
    script = "(while true; do sleep 1000 & done) 2>/dev/null & exec sleep 1000"
    bomb = world.client.spawn("bomb", image=world.image, command=["sh", "-c", script], pids=64)
    group = world.groups.of(*world.leftovers.containers() - {engine_id(world, other)})

    def processes() -> int:
        return len((group / "cgroup.procs").read_text().split())

    eventually(lambda: processes() > 32)
    for _ in range(3):
        assert processes() <= 64
        assert_served(world, other)
    killed = world.client.kill_container(bomb.container_id, deadline=30).container
    assert killed.state is ContainerState.KILLED
    assert not group.exists()


def engine_id(world: LiveWorld, container: Container) -> str:
    """What the engine calls it."""
    (found,) = world.leftovers.engine.container_ids(name=f"^/{container.name}$")
    return found


def test_a_full_tmp_is_full_for_itself_alone(world: LiveWorld, other: Container) -> None:
    greedy = world.client.spawn("greedy", image=world.image, hold=True)
    fill = ["sh", "-c", "dd if=/dev/zero of=/tmp/fill bs=1048576; df -k /tmp | tail -1"]
    done = world.client.run_command(greedy.container_id, fill, deadline=60)
    assert "No space left on device" in done.stderr or done.exit_code == 137, done
    again = world.client.run_command(greedy.container_id, ["sh", "-c", "echo x > /tmp/more"], deadline=60)
    assert not again.ok
    assert_served(world, other)
    written = world.client.run_command(other.container_id, ["sh", "-c", "echo x > /tmp/mine"])
    assert written.ok


def test_ten_thousand_connections_to_its_sidecar_are_bounded(world: LiveWorld, other: Container) -> None:
    # Many processes that each hold some: busybox's nc waits for its input to end.
    script = (
        "i=0; while [ $i -lt 10000 ]; do i=$((i+1));"
        " (sleep 3 | nc 127.0.0.1 3128 >/dev/null 2>&1) & [ $((i % 200)) = 0 ] && wait; done"
    )
    many = world.client.spawn("many", image=world.image, command=["sh", "-c", script], pids=1000)
    sidecars = world.leftovers.sidecars(world.server.descendants())
    assert len(sidecars) == 2

    def most_open() -> int:
        return max(sockets(pid) for pid in sidecars)

    eventually(lambda: most_open() > 50, 30)
    for _ in range(3):
        assert_served(world, other)
        assert most_open() < 1500
    assert world.client.get_container(many.container_id).state is ContainerState.RUNNING
    world.client.kill_container(many.container_id, deadline=30)


def sockets(pid: int) -> int:
    """How many descriptors a process has; 0 once it is gone."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


async def test_rule_99_a_workspace_that_is_too_full_ends_its_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine_api: EngineApi, busybox_image: str
) -> None:
    monkeypatch.setattr(monitor, "HEALTH_SECONDS", 0.2)
    settings = "workspace_max_bytes = 4194304"
    async with inside(tmp_path / "clawbox", engine_api, busybox_image, settings) as containers:
        good = await containers.spawn(command=("sh", "-c", "head -c 2000000 /dev/zero > f; sleep 1000"))
        bad = await containers.spawn(command=("sh", "-c", "head -c 8000000 /dev/zero > f; sleep 1000"))
        manager = containers.service.manager
        ended = await manager.wait(bad.container_id, ANN)
        assert ended.status.state is State.FAILED
        assert "workspace" in ended.status.reason
        assert manager.find(good.container_id, ANN).status.state is State.RUNNING
        for one in (good, bad):
            await containers.remove(one)
        await containers.nothing_is_left()
