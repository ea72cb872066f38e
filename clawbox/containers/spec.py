"""A container as the engine is asked to make it: every hardening value, in one place. Pure.

The values are those of the Engine API from 1.41 (Docker 20.10). What the engine has a default for is said
all the same where it matters, so that neither a daemon's settings nor an image decides it. docs/security.md
has what each is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from clawbox.containers.commands import check_command
from clawbox.containers.environment import check_environment, container_environment
from clawbox.containers.gate import FOLDER, GO_PATH, behind_gate
from clawbox.containers.image_facts import ImageFacts, check_image, stop_signal
from clawbox.containers.images import image_id
from clawbox.containers.labels import Identity, sealed, to_labels
from clawbox.containers.mounts import TMP, WORKSPACE, Mount, check_mounts, check_working_dir
from clawbox.containers.narrowing import Isolation
from clawbox.containers.seccomp import seccomp_profile
from clawbox.containers.users import User

if TYPE_CHECKING:
    from collections.abc import Mapping

Body = dict[str, Any]
"""JSON of the Engine API."""

_MIB: Final = 1 << 20
_TMP_BYTES: Final = 256 * _MIB
_SHM_BYTES: Final = 64 * _MIB
_VOLUME_BYTES: Final = 64 * _MIB
LOG_DRIVER: Final = "local"
_LOG_FILES: Final = 2
_LOG_FILE_BYTES: Final = 16 * _MIB
_OOM_SCORE: Final = 500
"""When the host itself has no memory left, its containers go first."""

# As runtimes mask them by default; what a kernel does not have is passed over.
_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFolders:
    """Where on the host a container's own files are; sources of mounts, none within another."""

    run: str
    """Gate, FIFOs, socket and certificates."""
    passwd: str
    """A file of :func:`~clawbox.containers.users.passwd_file`."""
    group: str
    """A file of :func:`~clawbox.containers.users.group_file`."""
    workspace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTerms:
    """What this host's engine is asked for besides. Empty: the engine's own."""

    runtime: str = ""
    apparmor: str = ""
    """A profile that the host has loaded."""
    cgroup_parent: str = ""
    open_files: int = 4096
    """Descriptors of a process. No more than the engine itself may have: without CAP_SYS_RESOURCE on the host
    it cannot give more, and no container starts."""
    direct_network: str = ""
    """The engine's network that containers with :attr:`Isolation.DIRECT` join."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """Everything that a container is made from."""

    identity: Identity
    mac: bytes
    """Over the labels of :attr:`identity`."""
    image: ImageFacts
    command: tuple[str, ...]
    folders: HostFolders
    engine: EngineTerms = EngineTerms()
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the request sets."""
    way_out: Mapping[str, str] = field(default_factory=dict)
    """:func:`~clawbox.egress.environment.sandbox_environment`; empty without a sidecar."""
    working_dir: str = WORKSPACE
    home: str = WORKSPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlan:
    """Everything that a process inside a container is made from."""

    command: tuple[str, ...]
    fifo: str
    """Its own, where the gate waits: a path in the container."""
    user: User
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = WORKSPACE
    tty: bool = False


def bind_mounts(folders: HostFolders, *, workspace_read_only: bool) -> tuple[Mount, ...]:
    """What of the host a container sees, and where. Raises MountError for sources within each other."""
    mounts = (
        Mount(folders.run, FOLDER),
        Mount(folders.workspace, WORKSPACE, read_only=workspace_read_only),
        Mount(folders.passwd, "/etc/passwd"),
        Mount(folders.group, "/etc/group"),
    )
    check_mounts(mounts)
    return mounts


def engine_name(container_id: str) -> str:
    """What a container is called in the engine."""
    return f"clawbox-{container_id}"


def build(plan: ContainerPlan) -> Body:
    """The body of ``POST /containers/create``.

    Raises INVALID_FIELD for what a request may not ask for, IMAGE_REFUSED for an image that brings what no
    sandbox may have, MountError for a state folder that is not safe, and ValueError for a plan that
    contradicts itself.
    """
    identity = plan.identity
    if not plan.mac:
        raise ValueError("the labels have no MAC")
    if image_id(plan.image.image_id) != identity.image_id:
        raise ValueError("the labels name another image")
    check_image(plan.image)
    check_command(plan.command)
    gated = behind_gate(plan.command)
    return {
        "Hostname": identity.container_id[:12],
        "User": str(User(identity.uid, identity.gid)),
        # The id, never the name: what that stands for can change (docs/security.md, 89).
        "Image": plan.image.image_id,
        # Naming an entrypoint drops the image's command, too.
        "Entrypoint": gated[:1],
        "Cmd": gated[1:],
        "Env": list(
            container_environment(
                image=plan.image.environment,
                home=plan.home,
                request=plan.environment,
                way_out=plan.way_out,
            )
        ),
        "WorkingDir": check_working_dir(plan.working_dir),
        "Labels": sealed(to_labels(identity), plan.mac),
        "StopSignal": stop_signal(plan.image),
        "Healthcheck": {"Test": ["NONE"]},
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "ExposedPorts": {},
        "HostConfig": _host_config(plan),
    }


def build_exec(plan: ExecPlan) -> Body:
    """The body of ``POST /containers/ID/exec``: a process that starts behind the gate.

    Raises INVALID_FIELD for what a request may not ask for.
    """
    check_command(plan.command)
    check_environment(plan.environment)
    if not plan.fifo.startswith(f"{FOLDER}/") or plan.fifo == GO_PATH:
        raise ValueError(f"{plan.fifo!r} is not the FIFO of one exec")
    return {
        "Cmd": behind_gate(plan.command, fifo=plan.fifo),
        "Env": [f"{name}={plan.environment[name]}" for name in sorted(plan.environment)],
        "User": str(plan.user),
        "WorkingDir": check_working_dir(plan.working_dir),
        "Privileged": False,
        "Tty": plan.tty,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
    }


def _host_config(plan: ContainerPlan) -> Body:
    identity, limits = plan.identity, plan.identity.grant.limits
    memory = limits.memory_mb * _MIB
    config: Body = {
        "NetworkMode": _network(plan),
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "GroupAdd": [],
        "SecurityOpt": _security_options(plan.engine),
        "ReadonlyRootfs": True,
        "MaskedPaths": list(_MASKED),
        "ReadonlyPaths": list(_READ_ONLY),
        "Devices": [],
        "DeviceCgroupRules": [],
        "DeviceRequests": [],
        "IpcMode": "none",
        "CgroupnsMode": "private",
        # Empty: a namespace of the container's own.
        "PidMode": "",
        "UTSMode": "",
        "UsernsMode": "",
        "Memory": memory,
        "MemorySwap": memory,  # memory and swap together: so none
        "OomKillDisable": False,
        "OomScoreAdj": _OOM_SCORE,
        "PidsLimit": limits.pids,
        "CpuShares": limits.cpu_shares,
        "NanoCpus": 0 if limits.cpu_millis is None else limits.cpu_millis * 1_000_000,
        # None on processes: that one counts all of a uid, in whichever container.
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": plan.engine.open_files, "Hard": plan.engine.open_files},
        ],
        "Tmpfs": {
            # The container's own: runc up to 1.1 gives it the mode that /tmp has in the image, mode= or not.
            TMP: f"{_tmpfs(_TMP_BYTES)},uid={identity.uid},gid={identity.gid}",
            # Without an IPC namespace that others can join the engine mounts none; semaphores need it.
            "/dev/shm": _tmpfs(_SHM_BYTES),  # noqa: S108 - the container's, not the server's
        },
        "Mounts": _mounts(plan),
        "Binds": [],
        "VolumesFrom": [],
        "Links": [],
        "PortBindings": {},
        "PublishAllPorts": False,
        "Sysctls": {},
        "Init": True,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "CgroupParent": plan.engine.cgroup_parent,
        "LogConfig": {
            # It keeps bytes as they are; json-file makes U+FFFD of what is not UTF-8.
            "Type": LOG_DRIVER,
            "Config": {"max-size": str(_LOG_FILE_BYTES), "max-file": str(_LOG_FILES), "compress": "false"},
        },
    }
    if plan.engine.runtime:
        config["Runtime"] = plan.engine.runtime
    return config


def _network(plan: ContainerPlan) -> str:
    if plan.identity.grant.isolation is not Isolation.DIRECT:
        return "none"
    network = plan.engine.direct_network
    if network in {"", "none", "host"} or ":" in network:
        raise ValueError(f"{network!r} is no network that a container may join")
    return network


def _security_options(engine: EngineTerms) -> list[str]:
    options = ["no-new-privileges:true", f"seccomp={seccomp_profile()}"]
    if engine.apparmor:
        options.append(f"apparmor={engine.apparmor}")
    return options


def _mounts(plan: ContainerPlan) -> list[Body]:
    mounts = bind_mounts(plan.folders, workspace_read_only=plan.identity.workspace_read_only)
    binds: list[Body] = [
        {
            "Type": "bind",
            "Source": mount.source,
            "Target": mount.target,
            "ReadOnly": mount.read_only,
            # Nothing that is mounted below the source comes with it, now or later.
            "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
        }
        for mount in mounts
    ]
    # A volume would be a writable folder of the host without a bound (docs/security.md, 84). What the image
    # has there is copied, with its owners and modes; the mode is for a folder that the image does not have.
    volumes: list[Body] = [
        {
            "Type": "tmpfs",
            "Target": volume,
            "TmpfsOptions": {"SizeBytes": _VOLUME_BYTES, "Mode": 0o1777},
        }
        for volume in sorted({volume.rstrip("/") for volume in plan.image.volumes})
    ]
    return binds + volumes


def _tmpfs(size: int) -> str:
    return f"rw,noexec,nosuid,nodev,size={size},mode=1777"
