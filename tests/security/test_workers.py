"""Workers: confined from their first message on, one principal each, and ended from outside.

The numbers are those of docs/security.md.
"""

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.filters import compute_only
from clawbox.children.launcher import Launcher
from clawbox.children.linux import CAP_SYS_ADMIN, CAP_SYS_CHROOT, has_capability
from clawbox.children.seccomp import build
from clawbox.errors import ClawboxError, Reason
from clawbox.wasm import pool as pool_module
from clawbox.wasm import roster
from clawbox.wasm.model import Abi, Outcome, Run
from clawbox.wasm.pool import WorkerPool
from tests.integration.pool.conftest import LIMITS
from tests.integration.pool.test_workers import LONG, busy, eventually
from tests.unit.children.conftest import PROBE, ROOT, Probe
from tests.unit.children.test_seccomp import ARM, KILL, X86, decide
from tests.unit.wasm import wat

REFUSED = f"errno {errno.EPERM}"
NO_MEMORY = f"errno {errno.ENOMEM}"

# Numbers on x86_64 of calls that a child has no business with.
FORBIDDEN = {
    "socket": 41,
    "connect": 42,
    "bind": 49,
    "accept4": 288,
    "sendmsg": 46,
    "recvfrom": 45,
    "sendto": 44,
    "open": 2,
    "openat": 257,
    "openat2": 437,
    "execve": 59,
    "execveat": 322,
    "fork": 57,
    "vfork": 58,
    "ptrace": 101,
    "kill": 62,
    "tkill": 200,
    "pidfd_open": 434,
    "pidfd_send_signal": 424,
    "process_vm_readv": 310,
    "ioctl": 16,
    "mount": 165,
    "unshare": 272,
    "setns": 308,
    "bpf": 321,
    "io_uring_setup": 425,
    "userfaultfd": 323,
    "perf_event_open": 298,
    "keyctl": 250,
    "memfd_create": 319,
    "setuid": 105,
    "chroot": 161,
    "sched_setscheduler": 144,
    "setpriority": 141,
    "personality": 135,
    "poll": 7,
    "rt_sigaction": 13,
    "shmget": 29,
    "modify_ldt": 154,
    "arch_prctl": 158,
    "remap_file_pages": 216,
    "membarrier": 324,
    "seccomp": 317,
    "process_vm_writev": 311,
    "kcmp": 312,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "landlock_create_ruleset": 444,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "not a call yet": 999,
}


def status_of(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def limits_of(pid, *, hard=False):
    """The soft or hard limits of a process, by their names."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[hard] for line in lines}


def root_of(pid):
    return str(Path(f"/proc/{pid}/root").readlink())


# 61


async def test_rule_61_calls_outside_the_list_are_refused(probe):
    results = {name: await probe.ask("syscall", number) for name, number in FORBIDDEN.items()}
    assert dict.fromkeys(FORBIDDEN, -errno.EPERM) == results


async def test_rule_61_a_worker_can_make_no_socket_and_open_no_path(probe):
    assert await probe.ask("socket") == [REFUSED] * 5
    assert await probe.ask("socketpair") == REFUSED
    assert await probe.ask("open") == REFUSED


async def test_rule_61_a_worker_has_an_empty_network_and_root(probe, launcher):
    if has_capability(CAP_SYS_ADMIN):
        devices = (await probe.ask("net")).splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]
        assert launcher.status.network_namespace == ""
    if has_capability(CAP_SYS_CHROOT):
        assert launcher.status.empty_root == ""
        root = root_of(probe.child.pid)
        assert root.endswith(" (deleted)")


async def test_rule_61_the_workers_of_a_pool_are_confined_from_the_start(pool, execute):
    await execute(wat.ECHO)
    found = [status_of(worker.child.pid) for worker in pool._workers if worker.ready.done()]
    assert found
    for status in found:
        assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")
        assert {int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Amb")} == {0}
    if can_have_own_uids():
        assert len({status["Uid"] for status in found}) == len(found)
        assert "0" not in {uid for status in found for uid in status["Uid"].split()}


# 64


async def test_rule_64_a_worker_never_executes_a_program_and_never_forks(probe):
    assert await probe.ask("exec") == REFUSED
    assert await probe.ask("fork") == REFUSED


async def test_rule_64_a_worker_cannot_name_another_process():
    """Not even one of its own uid, which is all that there is where the server is not root."""
    other = await asyncio.create_subprocess_exec("sleep", "60")
    async with Launcher(PROBE, None) as launcher:
        probe = await Probe.start(launcher)
        assert await probe.ask("kill", other.pid) == [REFUSED] * 2
        assert await probe.ask("tgkill", other.pid) == -errno.EPERM
        assert await probe.ask("prlimit_other", other.pid) == REFUSED
        await probe.close()
    assert other.returncode is None
    other.kill()
    await other.wait()


async def test_rule_64_a_worker_has_no_privileges_and_no_core_dumps(probe):
    status = await probe.ask("status")
    assert {"0000000000000000"} == {status[f"Cap{name}"].strip() for name in ("Inh", "Prm", "Eff", "Amb")}
    if has_capability(8):
        assert status["CapBnd"].strip() == "0000000000000000"
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    limits = await probe.ask("limits")
    assert (limits["core"], limits["fsize"]) == (0, 0)
    assert limits["nofile"] <= 128


async def test_rule_64_a_worker_inherits_nothing_that_was_not_declared(probe):
    # Python sets the one itself.
    assert set(await probe.ask("environment")) <= {"LC_CTYPE"}
    assert await probe.ask("own_descriptors") == await probe.ask("descriptors")


async def test_rule_64_each_living_worker_has_its_own_uid(launcher):
    first, second = await Probe.start(launcher), await Probe.start(launcher)
    found = [status_of(one.child.pid) for one in (first, second)]
    uids = [set(status["Uid"].split()) for status in found]
    if can_have_own_uids():
        assert uids == [set(status["Gid"].split()) for status in found]
        assert len({str(os.getuid())}.union(*uids)) == 3
        assert {status["Groups"].strip() for status in found} == {""}
    else:  # weaker, and reported as such
        assert uids == [{str(os.getuid())}] * 2
    await first.close()
    await second.close()


def test_rule_64_what_shares_a_workers_uid_cannot_read_it(tmp_path):
    """As it is where the server is not root: same uid, and no capability."""
    script = tmp_path / "same_uid.py"
    script.write_text(
        "import asyncio, os, sys\n"
        f"sys.path.insert(0, {ROOT!r})\n"
        "from clawbox.children import launcher as m\n"
        "from tests.unit.children.conftest import PROBE, Probe\n"
        "async def main():\n"
        "    async with m.Launcher(PROBE, None) as launcher:\n"
        "        probe = await Probe.start(launcher)\n"
        "        status = open(f'/proc/{probe.child.pid}/status').read()\n"
        "        assert f'Uid:\\t{os.getuid()}\\t' in status\n"
        "        for name in ('environ', 'mem'):\n"
        "            try:\n"
        "                open(f'/proc/{probe.child.pid}/{name}', 'rb').close()\n"
        "                print(name, 'opened')\n"
        "            except PermissionError:\n"
        "                print(name, 'refused')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        preexec_fn=drop_capabilities,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["environ refused", "mem refused"]


def drop_capabilities():
    from clawbox.children import linux

    if linux.has_capability(linux.CAP_SETPCAP):
        for number in linux.bounding_set():
            linux.prctl(linux.PR_CAPBSET_DROP, number)


async def test_rule_64_workers_that_crash_again_and_again_are_not_started_for_ever(
    forge, observer, uids, monkeypatch
):
    monkeypatch.setattr(pool_module, "KIND", "tests.security.crashing_kind:KIND")
    run = Run(forge.tool(wat.ECHO), "alice", b"1", LIMITS)
    async with (
        WorkerPool(workers=1, max_concurrent=1, uids=uids, observer=observer) as pool,
        asyncio.timeout(20),
    ):
        for _ in range(10):
            with pytest.raises(ClawboxError) as caught:
                await pool.run(run)
            assert caught.value.reason is Reason.SANDBOX_UNAVAILABLE
            assert caught.value.retry_after
    assert set(observer.ended) == {"lost"}
    assert len(observer.ended) < 15


# 65


async def test_rule_65_no_worker_serves_two_principals(pool, execute):
    served: dict[int, str] = {}
    for owner in ("alice", "bob", "carol", "alice", "bob"):
        await execute(wat.ECHO, owner=owner)
        for worker in pool._workers:
            if worker.owner is not None:
                assert served.setdefault(worker.child.pid, worker.owner) == worker.owner
    assert len(served) >= 3


async def test_rule_65_after_a_trap_the_worker_is_replaced_and_after_an_exit_it_is_not(
    pool, execute, observer, forge
):
    await asyncio.gather(*(pool.preload(forge.tool(text)) for text in (wat.EXIT_3, wat.TRAP)))
    await execute(wat.EXIT_3)
    (worker,) = (worker for worker in pool._workers if worker.owner == "alice")
    await execute(wat.TRAP)
    assert worker.calls == 2
    await observer.until(lambda: not worker.child.alive)
    assert (await execute(wat.ECHO, b"1")).output == b"1"


async def test_rule_65_a_worker_is_replaced_when_it_served_enough(pool, execute, monkeypatch):
    monkeypatch.setattr(roster, "CALLS_PER_WORKER", 3)
    pids = set()
    for _ in range(7):
        await execute(wat.ECHO)
        pids |= {worker.child.pid for worker in pool._workers if worker.owner == "alice"}
    assert len(pids) >= 2


async def test_rule_65_nothing_of_a_call_is_left_for_the_next(execute):
    assert [(await execute(wat.COUNTER)).output for _ in range(3)] == [b"1"] * 3


# 80


@pytest.mark.parametrize("architecture", [X86, ARM])
def test_rule_80_another_architectures_numbers_kill(architecture):
    program = build(architecture, compute_only(7))
    assert decide(program, 0x40000003, 1) == KILL  # i386: where 102 is socketcall
    assert decide(program, X86.audit if architecture is ARM else ARM.audit, 1) == KILL


async def test_rule_80_the_x32_numbering_kills(probe):
    probe.tell("syscall", 0x40000000 | 39)
    await probe.broken
    await probe.child.dead()


# 92


async def test_rule_92_a_component_has_one_memory_whatever_it_is_made_of(execute):
    more = "(core module $more (memory 1)) " + "(core instance (instantiate $more)) " * 7
    result = await execute(wat.component_text("unreachable", imports=more), abi=Abi.COMPONENT)
    assert "memory count too high" in result.message


async def test_rule_92_the_kernel_bounds_the_memory_of_the_process(pool, execute):
    call = asyncio.create_task(execute(wat.SPIN, limits=LONG))
    await eventually(lambda: busy(pool))
    (worker,) = busy(pool)
    await eventually(lambda: int(limits_of(worker.child.pid)["Max data size"]) < 512 << 20)
    call.cancel()
    await asyncio.wait([call])


async def test_rule_92_tables_count_as_memory_too(execute):
    tables = "(table 10000000 funcref) " * 32  # 2.5 GB
    limits = msgspec.structs.replace(LIMITS, table_elements=10_000_000)
    result = await execute(wat.module(tables, start=""), limits=limits)
    assert (result.outcome, "more tables" in result.message) == (Outcome.MEMORY_EXCEEDED, True)
    few = await execute(wat.module("(table 1000 funcref) " * 32, start=""), limits=limits)
    assert few.outcome is Outcome.OK


async def test_rule_92_no_worker_can_raise_the_limit_of_its_memory(uids):
    async with Launcher(PROBE, uids) as launcher:
        probe = await Probe.start(launcher, data_bytes=64 << 20)
        assert await probe.ask("raise_limits") == ["refused"] * 3
        assert await probe.ask("allocate", 40) == "worked"
        assert await probe.ask("allocate", 80) == NO_MEMORY
        assert await probe.ask("reserve", 64 << 10) == NO_MEMORY  # 64 GiB of address space
        await probe.close()


async def test_rule_92_no_worker_has_memory_that_the_limit_does_not_count(probe):
    assert await probe.ask("uncounted_memory") == [REFUSED] * 2


async def test_rule_92_a_worker_may_never_have_more_than_the_server_allows_any_run(uids, forge):
    async with WorkerPool(workers=1, max_concurrent=1, uids=uids, max_memory_bytes=64 << 20) as pool:
        run = Run(forge.tool(wat.ECHO), "alice", b"1", LIMITS)
        assert (await pool.run(run)).outcome is Outcome.OK
        (worker,) = (worker for worker in pool._workers if worker.owner == "alice")
        soft, hard = limits_of(worker.child.pid), limits_of(worker.child.pid, hard=True)
        assert 0 < int(soft["Max data size"]) < int(hard["Max data size"]) < 2 << 30
        assert int(hard["Max address space"]) < 64 << 30


# 93


async def test_rule_93_a_sleep_ends_with_its_time_and_what_was_written_survives(execute, observer):
    # Time enough to be begun on a busy machine: what was not yet written cannot survive.
    result = await execute(wat.SLEEP, limits=msgspec.structs.replace(LIMITS, timeout_ms=1500))
    assert (result.outcome, result.stderr) == (Outcome.TIMEOUT, b"zzz")
    assert "overstayed" in observer.ended
