"""Spawns that come to nothing, and programs that end before anybody looks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ClawboxError, ContainerState
from clawbox_client.containers import LogChunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.containers.conftest import Serve
    from tests.faults.containers.world import LiveWorld


def output(world: LiveWorld, container_id: str) -> tuple[bytes, bytes]:
    """All that its program wrote to stdout and stderr."""
    written = {"stdout": b"", "stderr": b""}
    with world.client.logs(container_id, follow=True, deadline=20) as events:
        for event in events:
            if isinstance(event, LogChunk):
                written[event.stream] += event.data
    return written["stdout"], written["stderr"]


def refused(world: LiveWorld, image: str) -> ClawboxError:
    """How Spawn refuses an image, after which nothing is there."""
    with pytest.raises(ClawboxError) as caught:
        world.client.spawn("refused", image=image, hold=True)
    world.nothing_is_left()
    return caught.value


def test_an_image_that_the_engine_does_not_have(world: LiveWorld) -> None:
    error = refused(world, "clawbox-test/nowhere:1")
    assert (error.code.name, error.reason) == ("NOT_FOUND", "IMAGE_NOT_FOUND")
    assert "nowhere" in error.message


def test_an_image_that_no_registry_has(serve: Serve) -> None:
    # Port 1 of loopback: nobody answers there.
    template = 'templates.gone = { image = "127.0.0.1:1/clawbox/gone:1" }'
    with serve(more=template, CLAWBOX_CONTAINERS__PULL_POLICY="missing") as world:
        for _ in range(2):  # the second asks again: a failure is not remembered
            with pytest.raises(ClawboxError) as caught:
                world.client.spawn("refused", template="gone", hold=True)
            assert (caught.value.code.name, caught.value.reason) == ("NOT_FOUND", "IMAGE_NOT_FOUND")
            world.nothing_is_left()
        assert world.client.spawn("good", image=world.image, hold=True).active


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("VOLUME /workspace", "volume"),
        ("VOLUME /workspace/inner", "volume"),
        ("LABEL clawbox.owner=somebody", "label"),
        ("LABEL Clawbox.Installation=somebody", "label"),
        ("WORKDIR /proc/self/fd/8", "working folder"),
    ],
)
def test_an_image_that_asks_for_what_no_sandbox_has(
    world: LiveWorld, images: Callable[..., str], change: str, said: str
) -> None:
    error = refused(world, images([change]))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "IMAGE_REFUSED")
    assert said in error.message


def test_a_program_that_is_not_there_is_told_by_exit_code_and_log(world: LiveWorld) -> None:
    made = world.client.spawn("bad", image=world.image, command=["/bin/no-such-program", "x"])
    ended = world.client.wait_container(made.container_id, deadline=20)
    assert (ended.state, ended.exit_code) == (ContainerState.FAILED, 127)
    out, err = output(world, made.container_id)
    assert out == b""
    assert b"/bin/no-such-program" in err


def test_a_program_that_may_not_be_executed(world: LiveWorld) -> None:
    made = world.client.spawn("bad", image=world.image, command=["/workspace"])
    ended = world.client.wait_container(made.container_id, deadline=20)
    assert ended.state is ContainerState.FAILED
    assert ended.exit_code in {126, 127}
    assert b"/workspace" in output(world, made.container_id)[1]


def test_nothing_is_lost_of_a_program_that_ends_at_once(world: LiveWorld) -> None:
    def run(number: int) -> None:
        command = ["sh", "-c", f"echo out-{number}; echo err-{number} >&2; exit {number}"]
        made = world.client.spawn("brief", image=world.image, command=command)
        ended = world.client.wait_container(made.container_id, deadline=30)
        assert ended.exit_code == number
        assert ended.state is (ContainerState.FAILED if number else ContainerState.COMPLETED)
        assert output(world, made.container_id) == (f"out-{number}\n".encode(), f"err-{number}\n".encode())

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(run, range(20)))
