"""What the engine's answers mean. Pure.

What an answer lacks is what Go leaves out: empty. What has the wrong shape raises ValueError, TypeError or
LookupError, which :func:`~clawbox.containers.docker.connection.translated` makes an ``EngineError`` of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clawbox.containers.backend import (
    ContainerFacts,
    EngineAction,
    EngineEvent,
    EngineFacts,
    ExecFacts,
    ImageFound,
    Listed,
    UsageSample,
)
from clawbox.containers.docker.frames import nanoseconds
from clawbox.containers.image_facts import ImageFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Answer = Mapping[str, Any]

EVENTS: Final = tuple(action.value for action in EngineAction)
_ENGINES_OWN: Final = frozenset({"image", "name", "exitCode", "signal", "execDuration"})
"""What an event has among the labels, and what no label can stand in for: the engine writes it last."""
_UNLIMITED: Final = 1 << 62
"""From here on a number is how a kernel says that there is no limit."""
_NOT_OVER: Final = frozenset({"created", "running", "paused", "restarting"})


def engine_facts(version: Answer, info: Answer, api: str) -> EngineFacts:
    """Of ``GET /version`` and ``GET /info``."""
    parts = {part["Name"]: part.get("Version", "") for part in version.get("Components") or ()}
    return EngineFacts(
        version=version["Version"],
        api_version=api,
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        default_runtime=info.get("DefaultRuntime", ""),
        runc_version=parts.get("runc", ""),
        cgroup_version=int(info.get("CgroupVersion") or 1),
        cgroup_driver=info.get("CgroupDriver", ""),
        security=tuple(_option_name(option) for option in info.get("SecurityOptions") or ()),
        engine_id=info.get("ID", ""),
    )


def container_facts(said: Answer) -> ContainerFacts:
    """Of ``GET /containers/ID/json``."""
    state, config, host = said["State"], said["Config"], said.get("HostConfig") or {}
    status = state["Status"]
    started_ms = _milliseconds(state.get("StartedAt"))
    over = status not in _NOT_OVER
    return ContainerFacts(
        engine_id=said["Id"],
        name=said["Name"].removeprefix("/"),
        status=status,
        pid=int(state.get("Pid") or 0),
        exit_code=int(state["ExitCode"]) if over and started_ms is not None else None,
        oom_killed=bool(state.get("OOMKilled")),
        error=state.get("Error", ""),
        started_ms=started_ms,
        finished_ms=_finished_ms(state, started_ms) if over else None,
        labels=dict(config.get("Labels") or {}),
        command=(said.get("Path", ""), *(said.get("Args") or ())),
        working_dir=config.get("WorkingDir") or "",
        image_id=said["Image"],
        user=config.get("User", ""),
        runtime=host.get("Runtime", ""),
        cgroup_parent=host.get("CgroupParent", ""),
    )


def listed(said: Iterable[Answer]) -> list[Listed]:
    """Of ``GET /containers/json``."""
    return [
        Listed(
            engine_id=one["Id"],
            name=next(iter(one.get("Names") or ()), "").removeprefix("/"),
            status=one["State"],
            labels=dict(one.get("Labels") or {}),
        )
        for one in said
    ]


def image_found(said: Answer) -> ImageFound:
    """Of ``GET /images/NAME/json``."""
    config = said.get("Config") or {}
    facts = ImageFacts(
        said["Id"],
        entrypoint=_argv(config.get("Entrypoint")),
        command=_argv(config.get("Cmd")),
        environment=tuple(config.get("Env") or ()),
        volumes=tuple(sorted(config.get("Volumes") or ())),
        labels=tuple(sorted(config.get("Labels") or ())),
        working_dir=config.get("WorkingDir") or "",
        stop_signal=config.get("StopSignal") or "",
    )
    return ImageFound(facts, digests=tuple(said.get("RepoDigests") or ()))


def engine_event(said: Answer) -> EngineEvent | None:
    """Of one line of ``GET /events``; None: something that nobody here asked about."""
    if said.get("Type") != "container" or said.get("Action") not in EVENTS:
        return None
    actor = said["Actor"]
    attributes = dict(actor.get("Attributes") or {})
    action = EngineAction(said["Action"])
    return EngineEvent(
        action=action,
        engine_id=actor["ID"],
        labels={key: value for key, value in attributes.items() if key not in _ENGINES_OWN},
        time_ns=int(said["timeNano"]),
        exit_code=_number(attributes, "exitCode") if action is EngineAction.DIE else None,
        signal=_number(attributes, "signal") if action is EngineAction.KILL else None,
    )


def usage_sample(said: Answer) -> UsageSample | None:
    """Of ``GET /containers/ID/stats``, with cgroup v1 or v2; None: the container does not run.

    Memory is without the file cache that the kernel drops first, as ``docker stats`` counts it.
    """
    time_ns = nanoseconds(said["read"].encode())
    memory, pids = said.get("memory_stats") or {}, said.get("pids_stats") or {}
    if time_ns is None or not (memory or pids):
        return None
    cache = memory.get("stats") or {}
    used = int(memory.get("usage") or 0)
    # v1 has both; there, the first counts the cgroups below as well, as the usage does.
    inactive = int(cache.get("total_inactive_file", cache.get("inactive_file", 0)) or 0)
    blocks = (said.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    return UsageSample(
        time_ns=time_ns,
        memory_bytes=used - inactive if inactive < used else used,
        memory_limit_bytes=_limit(memory.get("limit")),
        cpu_ns=int(((said.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage") or 0),
        pids=int(pids.get("current") or 0),
        pids_limit=_limit(pids.get("limit")),
        block_read_bytes=_blocks(blocks, "read"),
        block_write_bytes=_blocks(blocks, "write"),
    )


def exec_facts(said: Answer) -> ExecFacts:
    """Of ``GET /exec/ID/json``."""
    running = bool(said.get("Running"))
    code = said.get("ExitCode")
    return ExecFacts(
        running=running,
        pid=int(said.get("Pid") or 0),
        exit_code=None if running or code is None else int(code),
    )


def _option_name(option: str) -> str:
    # name=seccomp,profile=default; before Docker 17 only the name.
    return option.partition(",")[0].removeprefix("name=")


def _milliseconds(time: str | None) -> int | None:
    since = nanoseconds(time.encode()) if time else None
    return None if since is None else since // 1_000_000


def _finished_ms(state: Answer, started_ms: int | None) -> int | None:
    # The engine notes the start after the process began, and the end of a short one can have come before.
    finished_ms = _milliseconds(state.get("FinishedAt"))
    return finished_ms if finished_ms is None or started_ms is None else max(started_ms, finished_ms)


def _argv(said: object) -> tuple[str, ...]:
    # The engine makes a list of what an image's author wrote as one string.
    if said is not None and not isinstance(said, list):
        raise TypeError("a command that is no list")
    return tuple(said or ())


def _number(attributes: Mapping[str, str], name: str) -> int | None:
    text = attributes.get(name, "")
    return int(text) if text.removeprefix("-").isdecimal() else None


def _limit(said: int | None) -> int:
    number = int(said or 0)
    return 0 if number >= _UNLIMITED else number


def _blocks(said: Iterable[Answer], what: str) -> int:
    return sum(int(one["value"]) for one in said if str(one.get("op", "")).lower() == what)
