"""Properties 61 and 64 of docs/security.md, seen from inside a child."""

import errno

from clawbox.children.enforcement import can_have_own_uids, probe_egress
from clawbox.children.enforcement import probe as probe_enforcement
from tests.unit.children.conftest import Probe

REFUSED = f"errno {errno.EPERM}"


async def test_memory_never_becomes_executable(probe):
    assert await probe.ask("executable_memory") == [REFUSED, "worked"]


async def test_clone3_says_that_it_does_not_exist_so_that_threads_still_start(probe):
    assert await probe.ask("syscall", 435) == -errno.ENOSYS
    assert await probe.ask("thread") == "ran"


async def test_what_the_machine_cannot_give_is_said(launcher, probe):
    found = {item.name: item for item in probe_enforcement(launcher.status)}
    assert found["worker_seccomp"].in_force
    assert found["worker_own_uid"].in_force == can_have_own_uids()
    assert found["worker_network_namespace"].in_force == (launcher.status.network_namespace == "")
    assert all(item.detail for item in found.values() if not item.in_force)
    assert not {i.name: i for i in probe_enforcement(None)}["worker_network_namespace"].in_force


async def test_what_the_machine_cannot_give_to_the_way_out_is_said(family):
    probe = await Probe.start(family, "keeping")
    found = {item.name: item for item in probe_egress(family.status)}
    assert found["egress_own_uid"].in_force == can_have_own_uids()
    locked = (await probe.ask("limits"))["memlock"] != 0
    assert found["keeper_memory_lock"].in_force == locked
    assert all(item.detail for item in found.values() if not item.in_force)
    assert not {i.name: i for i in probe_egress(None)}["keeper_memory_lock"].in_force
    await probe.close()
