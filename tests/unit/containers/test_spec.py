"""What the engine is asked for: every hardening value, and nothing that a request or an image chose."""

import json
from dataclasses import replace

import pytest

from clawbox.containers.commands import container_command
from clawbox.containers.image_facts import ImageFacts
from clawbox.containers.labels import Identity, mac_of
from clawbox.containers.mounts import MountError
from clawbox.containers.narrowing import ContainerGrant, ContainerLimits, Isolation
from clawbox.containers.seccomp import seccomp_profile
from clawbox.containers.spec import (
    ContainerPlan,
    EngineTerms,
    ExecPlan,
    HostFolders,
    build,
    build_exec,
    engine_name,
)
from clawbox.containers.users import User
from clawbox.errors import ClawboxError, Reason
from clawbox.policy import NetworkGrant

IMAGE = ImageFacts(
    "sha256:" + "a" * 64,
    entrypoint=("/entry",),
    command=("serve", "--all"),
    environment=("PATH=/usr/bin", "LD_PRELOAD=/evil.so", "http_proxy=http://evil"),
    volumes=("/data", "/data/", "/var/lib/db"),
    working_dir="/app",
    stop_signal="SIGQUIT",
)
GRANT = ContainerGrant(
    isolation=Isolation.CONTAINER,
    network=NetworkGrant(),
    credentials=frozenset(),
    limits=ContainerLimits(memory_mb=512, pids=256, cpu_shares=1024, max_output_bytes=262_144),
)
IDENTITY = Identity(
    installation="inst",
    container_id="6a1e1c4e-0f4e-4f66-9c53-0f3a6cf0a3a1",
    owner="alice",
    task="t",
    image="docker.io/library/alpine:latest",
    image_id=IMAGE.image_id,
    uid=900_001,
    gid=900_001,
    created_ms=1,
    grant=GRANT,
)
FOLDERS = HostFolders(run="/s/run", passwd="/s/passwd", group="/s/group", workspace="/w/1")
PLAN = ContainerPlan(
    identity=IDENTITY,
    mac=b"\x01\x02",
    image=IMAGE,
    command=("sh", "-c", "true"),
    folders=FOLDERS,
    environment={"A": "1"},
    way_out={"CLAWBOX_PROXY_TOKEN": "T", "HTTP_PROXY": "http://127.0.0.1:3128"},
)


def host(plan=PLAN):
    return build(plan)["HostConfig"]


def test_the_program_starts_behind_the_gate():
    body = build(PLAN)

    assert body["Entrypoint"] == ["/run/clawbox/gate"]
    assert body["Cmd"] == ["/run/clawbox/go", "sh", "-c", "true"]
    assert body["Healthcheck"] == {"Test": ["NONE"]}


def test_the_whole_host_part_is_what_is_promised():
    config = host()
    assert config.pop("Mounts")
    assert config.pop("SecurityOpt")
    assert config.pop("MaskedPaths")

    assert config == {
        "NetworkMode": "none",
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "GroupAdd": [],
        "ReadonlyRootfs": True,
        "ReadonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        "Devices": [],
        "DeviceCgroupRules": [],
        "DeviceRequests": [],
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "UsernsMode": "",
        "Memory": 536_870_912,
        "MemorySwap": 536_870_912,
        "OomKillDisable": False,
        "OomScoreAdj": 500,
        "PidsLimit": 256,
        "CpuShares": 1024,
        "NanoCpus": 0,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": 4096, "Hard": 4096},
        ],
        "Tmpfs": {
            "/tmp": "rw,noexec,nosuid,nodev,size=268435456,mode=1777,uid=900001,gid=900001",
            "/dev/shm": "rw,noexec,nosuid,nodev,size=67108864,mode=1777",
        },
        "Binds": [],
        "VolumesFrom": [],
        "Links": [],
        "PortBindings": {},
        "PublishAllPorts": False,
        "Sysctls": {},
        "Init": True,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "CgroupParent": "",
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": "16777216", "max-file": "2", "compress": "false"},
        },
    }


def test_the_kernels_folders_are_masked_as_runtimes_do():
    assert {
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/acpi",
        "/proc/scsi",
        "/sys/firmware",
    } <= set(host()["MaskedPaths"])


def test_no_new_privileges_the_profile_and_apparmor_are_asked_for():
    assert host()["SecurityOpt"] == ["no-new-privileges:true", f"seccomp={seccomp_profile()}"]
    armored = replace(PLAN, engine=EngineTerms(apparmor="docker-default"))
    assert host(armored)["SecurityOpt"][2:] == ["apparmor=docker-default"]
    assert "\n" not in seccomp_profile()


def test_limits_are_the_grants():
    limits = replace(GRANT.limits, memory_mb=64, pids=8, cpu_shares=2, cpu_millis=1500)
    config = host(replace(PLAN, identity=replace(IDENTITY, grant=replace(GRANT, limits=limits))))

    assert config["Memory"] == config["MemorySwap"] == 64 << 20
    assert (config["PidsLimit"], config["CpuShares"], config["NanoCpus"]) == (8, 2, 1_500_000_000)


def test_what_the_host_chooses_is_passed_on():
    assert "Runtime" not in host()
    engine = EngineTerms(runtime="runsc", cgroup_parent="/clawbox", open_files=9)
    assert host(replace(PLAN, engine=engine))["Ulimits"][1] == {"Name": "nofile", "Soft": 9, "Hard": 9}
    assert (
        host(replace(PLAN, engine=engine))["Runtime"],
        host(replace(PLAN, engine=engine))["CgroupParent"],
    ) == (
        "runsc",
        "/clawbox",
    )


def test_rule_82_the_user_is_a_number_of_its_own_and_processes_are_counted_by_container():
    body = build(PLAN)

    assert body["User"] == "900001:900001"
    assert {limit["Name"] for limit in body["HostConfig"]["Ulimits"]} == {"core", "nofile"}
    mounted = {mount["Target"]: mount for mount in body["HostConfig"]["Mounts"]}
    assert mounted["/etc/passwd"]["ReadOnly"]
    assert mounted["/etc/group"]["ReadOnly"]


def test_rule_83_the_labels_are_those_that_the_mac_is_over():
    labels = build(PLAN)["Labels"]

    assert mac_of(labels) == b"\x01\x02"
    assert labels["clawbox.installation"] == "inst"
    with pytest.raises(ValueError, match="no MAC"):
        build(replace(PLAN, mac=b""))


def test_rule_83_an_image_with_labels_of_ours_makes_no_container():
    with pytest.raises(ClawboxError) as caught:
        build(replace(PLAN, image=replace(IMAGE, labels=("clawbox.policy",))))
    assert caught.value.reason is Reason.IMAGE_REFUSED


def test_rule_84_volumes_become_small_memory():
    mounts = [mount for mount in host()["Mounts"] if mount["Type"] != "bind"]

    options = {"SizeBytes": 64 << 20, "Mode": 0o1777}
    assert mounts == [
        {"Type": "tmpfs", "Target": "/data", "TmpfsOptions": options},
        {"Type": "tmpfs", "Target": "/var/lib/db", "TmpfsOptions": options},
    ]
    with pytest.raises(ClawboxError) as caught:
        build(replace(PLAN, image=replace(IMAGE, volumes=("/workspace/x",))))
    assert caught.value.reason is Reason.IMAGE_REFUSED


def test_rule_85_nothing_that_an_image_sets_decides_what_runs():
    body = build(PLAN)

    assert body["Env"] == [
        "A=1",
        "CLAWBOX_PROXY_TOKEN=T",
        "HOME=/workspace",
        "HTTP_PROXY=http://127.0.0.1:3128",
        "LD_PRELOAD=",
        "http_proxy=",
    ]
    assert body["WorkingDir"] == "/workspace"
    assert body["StopSignal"] == "SIGQUIT"
    assert build(replace(PLAN, image=replace(IMAGE, stop_signal="")))["StopSignal"] == "SIGTERM"
    with pytest.raises(ClawboxError):
        build(replace(PLAN, working_dir="/proc/self/fd/7"))
    with pytest.raises(ClawboxError):
        build(replace(PLAN, image=replace(IMAGE, working_dir="/proc/self/fd/7")))


def test_rule_88_the_run_folder_is_read_only_and_only_the_workspace_is_not():
    binds = {mount["Target"]: mount for mount in host()["Mounts"] if mount["Type"] == "bind"}

    assert {target: (mount["Source"], mount["ReadOnly"]) for target, mount in binds.items()} == {
        "/run/clawbox": ("/s/run", True),
        "/workspace": ("/w/1", False),
        "/etc/passwd": ("/s/passwd", True),
        "/etc/group": ("/s/group", True),
    }
    for mount in binds.values():
        assert mount["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True}
    read_only = replace(PLAN, identity=replace(IDENTITY, workspace_read_only=True))
    assert all(mount["ReadOnly"] for mount in host(read_only)["Mounts"] if mount["Type"] == "bind")


def test_rule_78_sources_within_each_other_make_no_container():
    with pytest.raises(MountError):
        build(replace(PLAN, folders=replace(FOLDERS, passwd="/s/run/passwd")))


def test_rule_89_the_image_is_named_by_its_id():
    assert build(PLAN)["Image"] == IMAGE.image_id
    for image_id in ("alpine", "sha256:" + "b" * 64):
        with pytest.raises(ValueError, match="image"):
            build(replace(PLAN, image=replace(IMAGE, image_id=image_id)))


def test_only_who_was_granted_it_joins_a_network():
    direct = replace(PLAN, identity=replace(IDENTITY, grant=replace(GRANT, isolation=Isolation.DIRECT)))

    assert host(replace(direct, engine=EngineTerms(direct_network="bridge")))["NetworkMode"] == "bridge"
    assert host(replace(PLAN, engine=EngineTerms(direct_network="bridge")))["NetworkMode"] == "none"
    for network in ("", "host", "none", "container:abc", "ns:/proc/1/ns/net"):
        with pytest.raises(ValueError, match="no network"):
            build(replace(direct, engine=EngineTerms(direct_network=network)))


def test_the_body_is_json():
    assert json.loads(json.dumps(build(PLAN))) == build(PLAN)
    assert engine_name(IDENTITY.container_id) == f"clawbox-{IDENTITY.container_id}"


@pytest.mark.parametrize(
    ("requested", "hold", "template", "command"),
    [
        (("a", "b"), False, ("t",), ("a", "b")),
        ((), False, ("t", "x"), ("t", "x")),
        ((), False, (), ("/entry", "serve", "--all")),
        ((), True, ("t",), ("/run/clawbox/hold",)),
    ],
)
def test_the_command_is_the_requests_the_templates_or_the_images(requested, hold, template, command):
    assert container_command(requested, hold=hold, template=template, image=IMAGE) == command


@pytest.mark.parametrize(
    ("requested", "hold", "field"),
    [
        (("",), False, "command"),
        (("a\0",), False, "command[0]"),
        (("a",) * 1025, False, "command"),
        (("a", "x" * 131_072), False, "command"),
        (("a",), True, "hold"),
        ((), False, "command"),
    ],
)
def test_a_command_that_is_none_is_refused(requested, hold, field):
    with pytest.raises(ClawboxError) as caught:
        container_command(requested, hold=hold, template=(), image=ImageFacts(IMAGE.image_id))
    assert caught.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == [field]


EXEC = ExecPlan(
    command=("ls",), fifo="/run/clawbox/go-1", user=User(900_001, 900_001), environment={"B": "2", "A": "1"}
)


def test_a_process_inside_starts_behind_a_gate_of_its_own():
    assert build_exec(replace(EXEC, tty=True)) == {
        "Cmd": ["/run/clawbox/gate", "/run/clawbox/go-1", "ls"],
        "Env": ["A=1", "B=2"],
        "User": "900001:900001",
        "WorkingDir": "/workspace",
        "Privileged": False,
        "Tty": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
    }
    for fifo in ("/run/clawbox/go", "/tmp/go", ""):
        with pytest.raises(ValueError, match="FIFO"):
            build_exec(replace(EXEC, fifo=fifo))


def test_rule_85_a_process_inside_gets_no_more_than_its_container():
    for plan in (
        replace(EXEC, environment={"LD_PRELOAD": "x"}),
        replace(EXEC, working_dir="/proc/self/fd/7"),
        replace(EXEC, command=()),
    ):
        with pytest.raises(ClawboxError) as caught:
            build_exec(plan)
        assert caught.value.reason is Reason.INVALID_FIELD
