"""No room where state, output and workspaces are: new containers are refused, those that run go on."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ClawboxError, Container, ContainerState

from tests.footprint import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.containers.conftest import Serve
    from tests.faults.containers.world import LiveWorld


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MiB, seen by the engine, too."""
    folder = tmp_path / "clawbox"
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount a disk: {mounted.stderr!r}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """Use every byte that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    assert os.statvfs(path).f_bavail == 0


def spawn_is_refused(world: LiveWorld) -> ClawboxError:
    """How."""
    with pytest.raises(ClawboxError) as caught:
        world.client.spawn("full", image=world.image, hold=True)
    return caught.value


def made(world: LiveWorld) -> Container | None:
    """A container, once it can be made."""
    with contextlib.suppress(ClawboxError):
        return world.client.spawn("room", image=world.image, hold=True)
    return None


def test_a_full_disk_refuses_new_containers_and_keeps_those_that_run(serve: Serve, disk: Path) -> None:
    with serve() as world:
        first, second = (world.client.spawn("before", image=world.image, hold=True) for _ in range(2))
        fill(disk / "filler")
        for _ in range(3):
            error = spawn_is_refused(world)
            assert error.code.name in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}, error
            assert error.reason not in {"", "INTERNAL"}
        assert {one.container_id for one in world.client.list_containers(include_finished=True)} == {
            first.container_id,
            second.container_id,
        }
        assert len(world.leftovers.containers()) == 2
        # What runs goes on, can be used and ended.
        done = world.client.run_command(first.container_id, ["echo", "here"])
        assert done.stdout == "here\n"
        with pytest.raises(ClawboxError) as caught:
            world.client.write_file(first.container_id, "/workspace/file", b"x" * (1 << 20))
        assert caught.value.reason not in {"", "INTERNAL"}
        assert world.client.kill_container(second.container_id).container.state is ContainerState.KILLED
        assert world.client.get_container(first.container_id).state is ContainerState.RUNNING
        (disk / "filler").unlink()
        eventually(lambda: made(world))
        world.client.write_file(first.container_id, "/workspace/file", b"x" * (1 << 20))
