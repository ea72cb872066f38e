"""Logs and Kill give the bytes that a program wrote."""

from __future__ import annotations

from tests.integration.containers.output.test_bytes import SCRIPT, WRITTEN
from tests.integration.containers_live.world import container, logged, until


def test_every_byte_comes_as_it_was_written(world):
    with container(world.ann, command=["sh", "-c", f"{SCRIPT}; exec sleep 1000"]) as made:
        # The engine keeps what has no line end to itself until the program has ended.
        until(lambda: logged(world.ann, made) == WRITTEN)
        killed = world.ann.kill_container(made.container_id)
        assert killed.stdout_bytes == WRITTEN + b"no end"
        assert logged(world.ann, made) == WRITTEN + b"no end"
