"""Each container is watched, whatever became of the others."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from clawbox_client import ContainerState

if TYPE_CHECKING:
    from tests.faults.containers.conftest import Serve


def test_rule_99_a_workspace_that_is_gone_keeps_no_other_from_being_watched(serve: Serve) -> None:
    with serve("workspace_max_bytes = 4194304") as world:
        gone = world.client.spawn("gone", image=world.image, hold=True)
        large = world.client.spawn("large", image=world.image, hold=True)
        shutil.rmtree(world.workspace_of(gone).parent)
        fill = ["dd", "if=/dev/zero", "of=/workspace/large", "bs=1M", "count=8"]
        world.client.run_command(large.container_id, fill)
        ended = world.client.wait_container(large.container_id, deadline=60)
        assert ended.state is ContainerState.FAILED
        assert ended.state_reason == "its workspace holds more than the server allows"
        assert world.client.get_container(gone.container_id).state is ContainerState.RUNNING
