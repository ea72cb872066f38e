"""What the profile decides, evaluated as the engine and libseccomp do: 64-bit arguments, compared whole."""

import errno
import json

import pytest

from clawbox.containers.seccomp import seccomp_profile

ALLOW = 0
REFUSED = """
userfaultfd keyctl add_key request_key bpf perf_event_open ptrace process_vm_readv process_vm_writev
process_madvise kcmp mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree
mount_setattr unshare setns open_by_handle_at fanotify_init init_module finit_module delete_module
kexec_load kexec_file_load reboot swapon swapoff iopl ioperm modify_ldt syslog acct quotactl quotactl_fd
settimeofday clock_settime sethostname setdomainname vhangup lookup_dcookie mbind set_mempolicy
get_mempolicy migrate_pages move_pages uselib ustat sysfs _sysctl nfsservctl statmount listmount
lsm_set_self_attr some_call_of_tomorrow
"""
NEEDED = """
read write openat close execve exit_group mmap mprotect brk futex clock_gettime getrandom epoll_pwait
eventfd2 inotify_init1 memfd_create pipe2 wait4 kill prctl rseq statx renameat2 connect bind listen accept4
sendmsg recvmsg timerfd_create signalfd4 setsid ioctl shmget mq_open seccomp
"""
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
COMPARE = {
    "SCMP_CMP_EQ": lambda value, rule: value == rule["value"],
    "SCMP_CMP_MASKED_EQ": lambda value, rule: value & rule["value"] == rule["valueTwo"],
}


@pytest.fixture(scope="module")
def profile():
    return json.loads(seccomp_profile())


@pytest.fixture(params=MACHINES)
def decide(profile, request):
    """The error number that a call gets on a machine, or ALLOW."""

    def decision(call, *arguments):
        values = [argument % 2**64 for argument in (*arguments, 0, 0, 0, 0, 0, 0)]
        for rule in profile["syscalls"]:
            if (
                call in rule["names"]
                and MACHINES[request.param] in rule.get("includes", {}).get("arches", MACHINES.values())
                and all(COMPARE[test["op"]](values[test["index"]], test) for test in rule.get("args", []))
            ):
                return ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else rule["errnoRet"]
        return profile["defaultErrnoRet"]

    return decision


def test_rule_80_the_native_architecture_is_the_only_one(profile):
    # An entry without others: what comes by another's numbers is killed, as libseccomp does by default.
    assert profile["archMap"] == [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
    ]
    assert "architectures" not in profile
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["defaultErrnoRet"] == errno.EPERM


def test_rule_80_sockets_are_unix_internet_and_route_netlink(decide):
    for family in range(64):
        expected = ALLOW if family in {1, 2, 10, 16} else errno.EPERM
        assert decide("socket", family, 1, 0) == expected, family
    assert decide("socket", 2, 3, 255) == ALLOW  # raw: the kernel refuses it without CAP_NET_RAW
    for protocol in range(1, 32):
        assert decide("socket", 16, 3, protocol) == errno.EPERM, protocol


def test_rule_80_no_family_hides_in_bits_that_the_kernel_does_not_read(decide):
    for family in (2, 16, 38, 40):
        assert decide("socket", family | 1 << 32, 1, 0) == errno.EPERM
    assert decide("socket", 16, 3, 9 | 1 << 32) == errno.EPERM


def test_rule_80_there_is_no_other_way_to_a_socket(decide):
    assert decide("socketpair", 1, 1, 0) == ALLOW
    for family in (0, 2, 16, 30, 40):
        assert decide("socketpair", family, 1, 0) == errno.EPERM
    for call in ("socketcall", "pidfd_getfd", "io_uring_setup", "io_uring_enter", "io_uring_register"):
        assert decide(call) == errno.EPERM


@pytest.mark.parametrize("call", REFUSED.split())
def test_what_programs_in_a_sandbox_do_not_need_is_refused(decide, call):
    assert decide(call) == errno.EPERM


def test_no_call_makes_a_namespace(decide):
    threads = 0x3D0F00  # what a libc passes for a thread
    assert decide("clone", threads) == ALLOW
    assert decide("clone", 0x1200011) == ALLOW  # and for a process
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide("clone", threads | flag) == errno.EPERM
    # Not EPERM: a libc would believe it, and not go back to clone.
    assert decide("clone3") == errno.ENOSYS


def test_the_personality_stays(decide):
    assert decide("personality", 0) == decide("personality", 0xFFFFFFFF) == ALLOW
    for personality in (8, 0x20000, 0x40000, 0x400000, 1 << 32):
        assert decide("personality", personality) == errno.EPERM


@pytest.mark.parametrize("call", NEEDED.split())
def test_what_ordinary_programs_need_is_allowed(decide, call):
    assert decide(call) == ALLOW


def test_thread_local_storage_of_its_machine_can_be_set(profile):
    [rule] = [rule for rule in profile["syscalls"] if "arch_prctl" in rule["names"]]
    assert rule["includes"] == {"arches": ["amd64"]}


def test_nothing_depends_on_a_capability_and_every_comparison_is_exact(profile):
    # Containers have no capability, so a rule for one would never be meant; and a comparison for "not equal"
    # could be met by bits that the kernel does not read.
    for rule in profile["syscalls"]:
        assert "excludes" not in rule
        assert set(rule.get("includes", {})) <= {"arches"}
        assert rule["comment"]
        for test in rule.get("args", []):
            assert test["op"] in COMPARE
