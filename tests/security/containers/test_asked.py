"""What the engine was asked for, as it says itself: every hardening value."""

from __future__ import annotations

import json

import pytest

from clawbox.containers.seccomp import seccomp_profile
from tests.security.containers.conftest import MEMORY_MB, PIDS

MIB = 1 << 20
HOST = {
    "NetworkMode": "none",
    "Privileged": False,
    "CapDrop": ["ALL"],
    "ReadonlyRootfs": True,
    "IpcMode": "none",
    "CgroupnsMode": "private",
    "PidMode": "",
    "UTSMode": "",
    "UsernsMode": "",
    "Memory": MEMORY_MB * MIB,
    "MemorySwap": MEMORY_MB * MIB,
    "PidsLimit": PIDS,
    "OomScoreAdj": 500,
    "Init": True,
    "AutoRemove": False,
    "PublishAllPorts": False,
    "Ulimits": [
        {"Name": "core", "Hard": 0, "Soft": 0},
        {"Name": "nofile", "Hard": 4096, "Soft": 4096},
    ],
    "LogConfig": {
        "Type": "local",
        "Config": {"max-file": "2", "max-size": str(16 * MIB), "compress": "false"},
    },
}
NOTHING = (
    *("CapAdd", "GroupAdd", "Devices", "DeviceCgroupRules", "DeviceRequests", "Binds", "VolumesFrom"),
    *("Links", "PortBindings", "Sysctls", "ExtraHosts", "Dns", "ContainerIDFile", "VolumeDriver"),
)


@pytest.mark.parametrize("name", HOST)
def test_each_value_is_asked_for(box, name):
    assert box.engine["HostConfig"][name] == HOST[name]


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_more_is_given(box, name):
    assert not box.engine["HostConfig"].get(name)


def test_what_is_in_memory_has_a_size_and_runs_nothing(box):
    uid, gid = box.engine["Config"]["User"].split(":")
    assert box.engine["HostConfig"]["Tmpfs"] == {
        "/tmp": f"rw,noexec,nosuid,nodev,size={256 * MIB},mode=1777,uid={uid},gid={gid}",
        "/dev/shm": f"rw,noexec,nosuid,nodev,size={64 * MIB},mode=1777",
    }


def test_what_is_masked_and_read_only(box):
    host = box.engine["HostConfig"]
    assert {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"} <= set(host["MaskedPaths"])
    assert set(host["ReadonlyPaths"]) == {
        *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),
    }


def test_the_security_options_are_no_new_privileges_and_the_own_profile(box):
    plain, profile = box.engine["HostConfig"]["SecurityOpt"][:2]
    assert plain == "no-new-privileges:true"
    assert json.loads(profile.removeprefix("seccomp=")) == json.loads(seccomp_profile())


def test_it_is_restarted_by_nobody_and_checked_by_nobody(box):
    assert box.engine["HostConfig"]["RestartPolicy"]["Name"] == "no"
    assert box.engine["Config"]["Healthcheck"] == {"Test": ["NONE"]}
    assert "Health" not in box.engine["State"]


def test_who_runs_it_and_what(box):
    config = box.engine["Config"]
    uid, gid = map(int, config["User"].split(":"))
    assert uid == gid > 0
    assert box.engine["Image"] == box.container.image_id == config["Image"]
    assert config["Entrypoint"] == ["/run/clawbox/gate"]
    assert (config["Tty"], config["OpenStdin"]) == (False, False)
    assert config["StopSignal"] == "SIGTERM"
    assert config["Hostname"] == box.container_id[:12]


def test_what_of_the_host_is_mounted(box, server):
    mounts = {
        mount["Target"]: (mount.get("ReadOnly", False), mount["BindOptions"])
        for mount in box.engine["HostConfig"]["Mounts"]
    }
    alone = {"Propagation": "rprivate", "NonRecursive": True}
    assert mounts == {
        "/run/clawbox": (True, alone),
        "/workspace": (False, alone),
        "/etc/passwd": (True, alone),
        "/etc/group": (True, alone),
    }
    sources = {mount["Source"] for mount in box.engine["HostConfig"]["Mounts"]}
    assert all(source.startswith(f"{server.home}/") for source in sources)


def test_every_label_is_the_servers(box):
    assert all(name.startswith("clawbox.") for name in box.engine["Config"]["Labels"])
