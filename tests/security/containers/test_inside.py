"""What a program inside sees and may do: every hardening value, as the kernel applies it."""

from __future__ import annotations

import io
import platform
import tarfile

import pytest
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

from tests.security.containers.conftest import PIDS, told_by

MIB = 1 << 20
NATIVE_KILLS = platform.machine() == "x86_64"


@pytest.mark.parametrize("process", ["status", "init"])
def test_no_process_has_a_right_or_can_gain_one(inside, process):
    found = inside[process]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[name][0], 16) == 0, name
    assert found["NoNewPrivs"] == ["1"]
    assert found["Seccomp"] == ["2"]


def test_rule_82_every_process_has_the_containers_own_number(inside, box):
    uid, gid = box.engine["Config"]["User"].split(":")
    for process in ("status", "init"):
        assert inside[process]["Uid"] == [uid] * 4
        assert inside[process]["Gid"] == [gid] * 4
        assert set(inside[process]["Groups"]) <= {gid}


def test_calls_that_no_program_needs_fail(inside):
    told = dict(inside["calls"])
    # A libc takes ENOSYS for an old kernel and uses clone, whose flags the filter sees.
    assert told.pop("clone3") == "ENOSYS"
    assert set(told.values()) == {"EPERM"}, told


def test_rule_80_another_architectures_numbers_kill_a_program_of_a_container(inside):
    if NATIVE_KILLS:
        assert (inside["int 0x80"], inside["x32"]) == ("SIGSYS", "SIGSYS")


def test_rule_80_no_family_but_unix_internet_and_route_netlink_opens_inside(inside):
    assert set(inside["families"].values()) == {"EPERM"}
    assert inside["a family in bits that the kernel does not read"] == "EPERM"
    assert inside["netlink"].pop("0") == "open"
    assert set(inside["netlink"].values()) == {"EPERM"}
    assert inside["raw"] == "EPERM"
    assert inside["usual"] == ["open", "open", "open"]


def test_files_are_written_in_the_workspace_and_in_bounded_memory_alone(inside):
    # /dev/shm and /dev/mqueue are memory, the first of 64 MiB, the second within RLIMIT_MSGQUEUE.
    assert inside["writable"] == {
        "folders": ["/dev/mqueue", "/dev/shm", "/tmp", "/workspace"],
        "files": [],
    }
    assert inside["tmp"]["sizes"] == {"/tmp": 256 * MIB, "/dev/shm": 64 * MIB}


def test_nothing_in_tmp_is_executed_or_is_a_device(inside):
    assert (inside["tmp"]["program"], inside["tmp"]["device"]) == ("EACCES", "EPERM")
    for path in ("/tmp", "/dev/shm"):
        assert {"noexec", "nosuid", "nodev"} <= set(inside["mounts"][path]["own"])


def test_what_is_mounted(inside):
    mounts = inside["mounts"]
    for path in ("/", "/run/clawbox", "/etc/passwd", "/etc/group", "/sys", "/proc/sys"):
        assert "ro" in mounts[path]["own"], path
    assert "rw" in mounts["/workspace"]["own"]
    kernels = {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay"}
    of_the_host = {path for path, mount in mounts.items() if mount["kind"] not in kernels}
    engines = {
        "/etc/resolv.conf",
        "/etc/hostname",
        "/etc/hosts",
        "/sbin/docker-init",
        "/usr/sbin/docker-init",
    }
    assert of_the_host <= {"/workspace", "/run/clawbox", "/etc/passwd", "/etc/group", *engines}
    # Nothing that is mounted on the host later appears in it, or the other way round.
    assert not any(tag.startswith("shared") for path, mount in mounts.items() for tag in mount["tags"])


def test_what_the_kernel_tells_to_root_alone_is_masked(inside):
    assert inside["masked"]
    assert set(inside["masked"].values()) == {0}


def test_limits(inside):
    assert inside["limits"] == {"core": [0, 0], "nofile": [4096, 4096]}
    # The rest of them are its init, its program, and who counts.
    assert inside["forks"] == {"made": PIDS - 3, "why": "EAGAIN"}


def test_its_processes_are_all_that_it_sees(inside, box):
    told = inside["processes"]
    assert len(told) == 3
    assert "docker-init" in told["1"]
    assert inside["orphan"] == "reaped"
    assert inside["hostname"] == box.container_id[:12]


def test_no_network_but_its_loopback(inside):
    assert inside["interfaces"] == ["lo"]
    assert inside["routes"] == []
    assert inside["connections"] == {
        "the host": "ECONNREFUSED",
        "a network": "ENETUNREACH",
        "metadata": "ENETUNREACH",
    }


def test_no_socket_but_its_sidecars_and_no_device_of_the_host(inside):
    assert inside["sockets"] == ["/run/clawbox/proxy.sock"]
    assert inside["abstract sockets"] == []
    assert inside["block devices"] == []
    assert inside["devices"] == ["full", "null", "ptmx", "random", "tty", "urandom", "zero"]


def test_nothing_of_the_servers_environment_is_in_its_own(inside, server):
    told = inside["environment"]
    assert told["HOME"] == inside["folder"] == "/workspace"
    assert server.token not in str(told)
    assert not {name for name in told if name.startswith("CLAWBOX_")} - {
        *("CLAWBOX_CONTAINER_ID", "CLAWBOX_PROXY_SOCKET", "CLAWBOX_PROXY_TOKEN"),
    }


# Some authorities of the system's have serial numbers that are none.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_rule_36_of_its_authority_it_has_the_certificate_and_no_key(box):
    """In any of its files, and in what its programs are told."""
    box.run("sh", "-c", "tar -c -f /workspace/run.tar -C /run/clawbox --exclude=proxy.sock --exclude=go .")
    with tarfile.open(fileobj=io.BytesIO(box.read("/workspace/run.tar"))) as archive:
        opened = {entry.name: archive.extractfile(entry) for entry in archive}
        files = {name: file.read() for name, file in opened.items() if file is not None}
    certificates = [name for name, data in files.items() if b"BEGIN CERTIFICATE" in data]
    assert certificates
    told = box.run("sh", "-c", "tr '\\0' '\\n' < /proc/1/environ; env").encode()
    assert not [name for name, data in {**files, "environ": told}.items() if b"PRIVATE KEY" in data]
    stores = [data for name, data in files.items() if name.endswith(".p12")]
    assert stores
    for store in stores:
        held = load_pkcs12(store, None)
        assert held.key is None
        assert held.additional_certs


def test_root_by_template_has_no_right_either(spawn, server):
    told = told_by(spawn(template="root", pids=PIDS), server.port)
    assert told["status"]["Uid"] == ["0"] * 4
    assert int(told["status"]["CapBnd"][0], 16) == int(told["status"]["CapEff"][0], 16) == 0
    assert {value for name, value in told["calls"].items() if name != "clone3"} == {"EPERM"}
    assert set(told["families"].values()) == {"EPERM"}
    # Root's own besides: tmpfs of the runtime's, which count as the container's memory.
    assert set(told["writable"]["folders"]) <= {
        *("/dev", "/dev/mqueue", "/dev/shm", "/sys/fs/cgroup", "/tmp", "/workspace"),
    }
    assert told["writable"]["files"] == []
    assert told["block devices"] == []
    assert told["forks"]["made"] < PIDS
