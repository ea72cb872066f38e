"""Somebody deletes a workspace on the host while its container runs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ClawboxError, ContainerState

from tests.footprint import eventually

if TYPE_CHECKING:
    from tests.faults.containers.world import LiveWorld


@pytest.mark.parametrize("what", ["files", "all"])
def test_a_container_whose_workspace_is_gone_can_be_used_and_ended(world: LiveWorld, what: str) -> None:
    command = ["sh", "-c", "echo here > /workspace/file; while true; do sleep 1; done"]
    made = world.client.spawn("gone", image=world.image, command=command)
    other = world.client.spawn("other", image=world.image, hold=True)
    files = world.workspace_of(made)
    eventually((files / "file").exists)  # what is made while all is deleted would be left
    shutil.rmtree(files if what == "files" else files.parent)
    # What is mounted is still a folder, though without a name: nothing in it can be made.
    assert world.client.get_container(made.container_id).state is ContainerState.RUNNING
    script = ["sh", "-c", "ls -A /workspace; echo x > /workspace/x"]
    listed = world.client.run_command(made.container_id, script, working_dir="/")
    assert listed.stdout == ""
    assert not listed.ok
    for call in (
        # In the folder that is no more nothing can be started.
        lambda: world.client.run_command(made.container_id, ["true"]),
        lambda: world.client.write_file(made.container_id, "/workspace/new", b"x"),
        lambda: world.client.read_file(made.container_id, "/workspace/file"),
        lambda: world.client.stat_file(made.container_id, "/workspace/file"),
    ):
        with pytest.raises(ClawboxError) as caught:
            call()
        assert caught.value.reason not in {"", "INTERNAL"}
        assert caught.value.code.name in {"NOT_FOUND", "FAILED_PRECONDITION", "UNAVAILABLE"}
    world.client.write_file(other.container_id, "/workspace/new", b"x")
    assert world.client.read_file(other.container_id, "/workspace/new") == b"x"
    killed = world.client.kill_container(made.container_id).container
    assert killed.state is ContainerState.KILLED
    world.client.remove_container(made.container_id, delete_workspace=True)
    assert world.client.get_container(other.container_id).state is ContainerState.RUNNING


def test_a_kept_workspace_that_is_gone_is_made_again(world: LiveWorld) -> None:
    for _ in range(2):
        made = world.client.spawn("kept", image=world.image, hold=True, workspace_id="kept-one")
        world.client.write_file(made.container_id, "/workspace/file", b"x", exclusive=True)
        (folder,) = (world.server.home / "workspaces").glob("*/kept-one")
        shutil.rmtree(folder)
        world.client.remove_container(made.container_id, force=True)
