"""Attacks with an image: what its files alone do to the engine, and so to everybody."""

from __future__ import annotations

import io
import signal
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest
from clawbox_client import ClawboxError, SyncClient

from tests.containers_world import Leftovers, containers_server
from tests.engine import EngineError, ImageMaker
from tests.footprint import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine import EngineApi
    from tests.engine.private import PrivateEngine


def with_fifo(name: str) -> bytes:
    """A layer with a FIFO."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type = tarfile.FIFOTYPE
        tar.addfile(entry)
    return out.getvalue()


def hangs(engine: EngineApi, container: str) -> bool:
    """Whether the engine answers no question about a container any more."""
    try:
        type(engine)(engine.url, timeout=2).container(container)
    except (OSError, EngineError):
        return True
    return False


def test_what_hangs_the_engine_for_one_container_keeps_no_other_from_being_served(
    start_engine: Callable[..., PrivateEngine], tmp_path: Path
) -> None:
    """Docker 20.10 opens /etc/passwd of an image before it starts anything, and a FIFO never opens.

    After that it answers nothing about this container, also not to the next server.
    """
    engine = start_engine()
    images = ImageMaker(engine.api)
    good, bad = images(), images(layer=with_fifo("etc/passwd"))
    left = Leftovers(tmp_path, engine.api)

    def spawn(client: SyncClient) -> None:
        with pytest.raises(ClawboxError):
            client.spawn("attack", image=bad, hold=True, deadline=600)

    with (
        containers_server(tmp_path, engine.url) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        attack = threading.Thread(target=spawn, args=(client,))
        attack.start()
        eventually(lambda: len(left.containers()) == 1)
        (stuck,) = left.containers()
        eventually(lambda: hangs(engine.api, stuck))
        client.remove_container(client.spawn("meanwhile", image=good, hold=True).container_id, force=True)
        server.stop(signal.SIGKILL)
        attack.join(30)
    try:
        with (
            containers_server(tmp_path, engine.url) as server,
            SyncClient(server.address, token=server.token) as client,
        ):
            made = client.spawn("after it", image=good, hold=True)
            assert client.run_command(made.container_id, ["echo", "served"]).stdout == "served\n"
            client.remove_container(made.container_id, force=True)
    finally:
        engine.kill()  # asked to end, it would wait for that container, too


def test_an_image_that_hides_the_gate_ends_before_its_program_begins(
    engine_url: str, images: ImageMaker, tmp_path: Path
) -> None:
    """/etc/passwd as a link to the gate has the engine mount the one over the other."""
    bad = images(files={"etc/passwd": "/run/clawbox/gate"})
    with (
        containers_server(tmp_path, engine_url) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        with pytest.raises(ClawboxError) as refused:
            client.spawn("attack", image=bad, hold=True)
        assert refused.value.reason in {"SANDBOX_UNAVAILABLE", "ENGINE_REFUSED"}
        assert not list(client.list_containers(include_finished=True))
        assert not Leftovers(tmp_path, images.engine).containers()
