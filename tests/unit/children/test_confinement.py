"""Properties 61 and 64 of docs/security.md, seen from inside a child."""

import errno
import os
from pathlib import Path

from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.enforcement import probe as probe_enforcement
from clawbox.children.linux import CAP_SYS_ADMIN, CAP_SYS_CHROOT, has_capability
from tests.unit.children.conftest import FIRST_UID, Probe


def root_of(pid):
    return str(Path(f"/proc/{pid}/root").readlink())


REFUSED = f"errno {errno.EPERM}"

# Numbers on x86_64 of calls that a child has no business with.
FORBIDDEN = {
    "socket": 41,
    "connect": 42,
    "bind": 49,
    "accept4": 288,
    "sendmsg": 46,
    "recvmsg": 47,
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
}


async def test_calls_outside_the_list_are_refused(probe):
    results = {name: await probe.ask("syscall", number) for name, number in FORBIDDEN.items()}
    assert dict.fromkeys(FORBIDDEN, -errno.EPERM) == results


async def test_a_child_cannot_make_sockets_open_paths_or_start_programs(probe):
    assert await probe.ask("socket") == [REFUSED] * 5
    assert await probe.ask("socketpair") == REFUSED
    assert await probe.ask("open") == REFUSED
    assert await probe.ask("exec") == REFUSED
    assert await probe.ask("fork") == REFUSED


async def test_a_child_cannot_name_another_process(probe):
    other = os.getpid()
    assert await probe.ask("kill", other) == [REFUSED] * 2
    assert await probe.ask("tgkill", other) == -errno.EPERM
    assert await probe.ask("prlimit_other", other) == REFUSED


async def test_memory_never_becomes_executable(probe):
    assert await probe.ask("executable_memory") == [REFUSED, "worked"]


async def test_clone3_says_that_it_does_not_exist_so_that_threads_still_start(probe):
    assert await probe.ask("syscall", 435) == -errno.ENOSYS
    assert await probe.ask("thread") == "ran"


async def test_the_x32_numbering_kills(probe):
    probe.tell("syscall", 0x40000000 | 39)
    await probe.broken
    await probe.child.dead()


async def test_a_child_has_no_privileges(probe):
    status = await probe.ask("status")
    assert {"0000000000000000"} == {status[f"Cap{name}"].strip() for name in ("Inh", "Prm", "Eff", "Amb")}
    if has_capability(8):
        assert status["CapBnd"].strip() == "0000000000000000"
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    limits = await probe.ask("limits")
    assert (limits["core"], limits["fsize"]) == (0, 0)
    assert limits["nofile"] <= 128


async def test_a_child_inherits_nothing_that_was_not_declared(probe):
    # Python sets the one itself.
    assert set(await probe.ask("environment")) <= {"LC_CTYPE"}
    assert await probe.ask("own_descriptors") == await probe.ask("descriptors")


async def test_each_living_child_has_its_own_uid(launcher):
    first, second = await Probe.start(launcher), await Probe.start(launcher)
    ids = [await first.ask("ids"), await second.ask("ids")]
    own = [[FIRST_UID, FIRST_UID], [FIRST_UID + 1, FIRST_UID + 1]]
    shared = [[os.getuid(), os.getgid()]] * 2  # weaker, and reported as such
    assert (own if can_have_own_uids() else shared) == [found[:2] for found in ids]
    if can_have_own_uids():
        assert (await first.ask("status"))["Groups"].strip() == ""
    await first.close()
    await second.close()


async def test_a_child_has_an_empty_network_and_root(probe, launcher):
    if has_capability(CAP_SYS_ADMIN):
        devices = (await probe.ask("net")).splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]
        assert launcher.status.network_namespace == ""
    if has_capability(CAP_SYS_CHROOT):
        assert launcher.status.empty_root == ""
        root = root_of(probe.child.pid)
        assert root.endswith(" (deleted)")


async def test_what_the_machine_cannot_give_is_said(launcher, probe):
    found = {item.name: item for item in probe_enforcement(launcher.status)}
    assert found["worker_seccomp"].in_force
    assert found["worker_own_uid"].in_force == can_have_own_uids()
    assert found["worker_network_namespace"].in_force == (launcher.status.network_namespace == "")
    assert all(item.detail for item in found.values() if not item.in_force)
    assert not {i.name: i for i in probe_enforcement(None)}["worker_network_namespace"].in_force
