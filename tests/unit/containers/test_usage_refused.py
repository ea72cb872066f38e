"""What callers of Stats are told when the engine does not measure."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from clawbox.containers.backend import ConflictError, EngineError, NotThereError
from clawbox.containers.usage import watch_usage
from clawbox.errors import ClawboxError, Reason


class Engine:
    def __init__(self, error):
        self.error = error

    async def usage(self, engine_id):
        raise self.error


def watch(error):
    engine: Any = Engine(error)
    quarters: Any = SimpleNamespace(ended=asyncio.Event(), engine_id="e" * 64, door=None)
    return watch_usage(engine, quarters, interval_ms=0, once=True)


async def test_an_engine_that_does_not_measure_is_said_to_refuse(caplog) -> None:
    with pytest.raises(ClawboxError) as caught:
        await anext(watch(EngineError(500, "cannot read /sys/fs/cgroup/secret")))
    assert caught.value.reason is Reason.ENGINE_REFUSED
    assert caught.value.metadata["status"] == "500"
    assert "/sys/fs" not in str(caught.value)
    assert "/sys/fs/cgroup/secret" in caplog.text


@pytest.mark.parametrize("error", [NotThereError(404, "gone"), ConflictError(409, "not running")])
async def test_of_a_container_that_has_ended_there_is_no_more(error) -> None:
    assert [one async for one in watch(error)] == []
