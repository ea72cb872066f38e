"""What authenticates containers' labels, and names the installation: no sandbox is needed for it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from clawbox.egress.keeper.messages import MAX_LABELS_CHARACTERS
from clawbox.errors import ClawboxError, Reason
from tests.egress_world.supervised import processes, suspend


async def test_rule_83_the_first_one_who_needs_a_mac_starts_the_keeper(world):
    assert not world.supervisor.status().keeper
    mac = await world.supervisor.mac("{}")
    assert len(mac) == 32
    assert await world.supervisor.mac("{}") == mac
    status = world.supervisor.status()
    assert status.keeper
    assert not status.started


async def test_rule_83_the_name_of_the_installation_stays_the_same(world):
    name = await world.supervisor.installation()
    assert len(name) == 32
    assert int(name, 16)
    assert await world.supervisor.installation() == name


async def test_rule_83_labels_that_are_too_large_are_the_callers_fault(world):
    with pytest.raises(ClawboxError) as caught:
        await world.supervisor.mac("x" * (MAX_LABELS_CHARACTERS + 1))
    assert caught.value.reason is Reason.INVALID_FIELD
    assert len(await world.supervisor.mac("x" * MAX_LABELS_CHARACTERS)) == 32


async def test_rule_83_a_mac_that_a_keeper_died_over_is_the_next_ones(world):
    mac = await world.supervisor.mac("{}")
    (keeper,) = processes("clawbox-keeper")
    await suspend(keeper)  # it is asked, as one that is dying may be, and never answers
    asked = asyncio.create_task(world.supervisor.mac("{}"))
    await asyncio.sleep(0)
    os.kill(keeper, signal.SIGKILL)
    assert await asked == mac
    assert processes("clawbox-keeper") != [keeper]
