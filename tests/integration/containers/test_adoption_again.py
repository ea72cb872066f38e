"""Taking over what an earlier server left, where something is in its way the first time."""

import asyncio
from dataclasses import replace

from clawbox.containers.adoption import Adoption
from clawbox.containers.states import State, Status
from clawbox.errors import ClawboxError, Reason
from tests.integration.containers.test_adoption import listed, restarted, serving
from tests.integration.containers.test_retention import USER, keeping


async def test_an_error_the_first_time_keeps_nobody_from_looking_again(tmp_path, monkeypatch):
    adopt, tries = Adoption._adopt, []

    async def fails_first(self, container, facts):
        tries.append(container.container_id)
        if len(tries) == 1:
            await asyncio.sleep(0)
            raise ClawboxError(Reason.SANDBOX_UNAVAILABLE, "there is no keeper just now")
        await adopt(self, container, facts)

    monkeypatch.setattr(Adoption, "_adopt", fails_first)
    async with asyncio.timeout(60), keeping(tmp_path) as before:
        made, _ = await before.running()
    async with asyncio.timeout(60), restarted(tmp_path, before.rows.rows) as world, serving(world):
        assert "no keeper" in world.monitor.problem
        # The engine has it no more, as the next look finds.
        await world.registry.until(made.container_id, lambda one: one.status.state is State.LOST)
        assert tries == [made.container_id] * 2


async def test_rule_82_a_uid_that_another_has_by_now_is_not_given_back(tmp_path):
    """The row of a Spawn that failed stayed, since it could not be removed; its uid was free meanwhile."""
    async with asyncio.timeout(60), keeping(tmp_path) as before:
        failed, _ = await before.running()
        runs, _ = await before.running()
        await before.registry.put(replace(failed, status=Status(), engine_id=""))
    async with asyncio.timeout(60), restarted(tmp_path, before.rows.rows) as world:
        assert world.around.uids.reserve(USER.uid)  # of the one that runs
        world.engine.listed, world.engine.stuck = [listed(runs)], {runs.engine_id}
        async with serving(world):
            assert world.registry.get(failed.container_id) is None
            assert world.registry.get(runs.container_id).active
            assert not world.around.uids.reserve(USER.uid)
