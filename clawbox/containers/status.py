"""How containers do, and what this machine and its engine give them, for System.GetStatus. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.children.enforcement import Enforcement
from clawbox.containers.runtimes import has_own_kernel

if TYPE_CHECKING:
    from clawbox.containers.backend import EngineFacts

_KNOWN_FLAWS: Final = (
    # CVE-2024-21626: a descriptor of the host's that leaks into the container.
    ((1, 1, 12), "CVE-2024-21626"),
    # CVE-2025-31133, -52565, -52881: mounts that a race redirects, over /proc among them.
    ((1, 2, 8), "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881"),
)
_FIXED_IN_1_3: Final = (1, 3, 3)
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class ContainersStatus:
    """How it is with containers."""

    engine: EngineFacts | None
    """What the engine says; None: it does not answer."""
    problem: str
    """Why it does not; empty where it does."""
    expected: bool
    """Whether there is meant to be one: the settings name it, or it has answered before."""
    active: int
    finished: int
    runtime: str
    """In force, ``runc`` for one."""


def engine_detail(status: ContainersStatus) -> str:
    """One sentence about the engine."""
    facts = status.engine
    if facts is None:
        return status.problem or "it does not answer"
    engine = f"engine {facts.version}, {status.runtime}, cgroup v{facts.cgroup_version}"
    return "; ".join(filter(None, (status.problem, engine, runc_warning(facts, status.runtime))))


def runc_warning(facts: EngineFacts, runtime: str) -> str:
    """What is known against the runc that an engine reports; empty: nothing.

    Distributions correct old versions and keep their numbers, so it says what is reported, not what is so.
    """
    matched = _VERSION.match(facts.runc_version)
    if matched is None or runtime not in {"", "runc"}:
        return ""
    version = (int(matched[1]), int(matched[2]), int(matched[3] or 0))
    flaws = [flaw for fixed, flaw in _KNOWN_FLAWS if version < fixed]
    if (1, 3, 0) <= version < _FIXED_IN_1_3:
        flaws.append(_KNOWN_FLAWS[-1][1])
    if not flaws:
        return ""
    return (
        f"runc reports {facts.runc_version}: releases before {_fixed(version)} have {' and '.join(flaws)},"
        " unless its distributor corrected them under the old number"
    )


def _fixed(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, _FIXED_IN_1_3 if version >= (1, 3, 0) else _KNOWN_FLAWS[-1][0]))


def enforcements(status: ContainersStatus) -> tuple[Enforcement, ...]:
    """What confines containers here beyond what each of them has everywhere (docs/security.md, 78)."""
    facts = status.engine
    if facts is None:
        return ()
    apart = has_own_kernel(status.runtime)
    return (
        _either(
            "container_seccomp",
            "seccomp" in facts.security and not apart,
            "clawbox's own profile",
            f"{status.runtime} answers system calls by a kernel of its own, and applies no profile"
            if apart
            else "the engine has no system call filters, so no container is let run",
        ),
        _either(
            "container_seen_from_host",
            not apart,
            "a container's processes and mounts are looked at before its program runs",
            f"what is inside {status.runtime} is seen from outside by its namespaces and network alone",
        ),
        _either(
            "container_exec_ended_alone",
            not apart,
            "a process that is started inside is ended with all that it started, and nothing else is",
            f"{status.runtime} lets nobody end one process alone: where one must end, its container does",
        ),
        _either(
            "container_apparmor",
            "apparmor" in facts.security,
            "the engine's own profile",
            "there is none; capabilities, namespaces and system call filters stay",
        ),
        _either(
            "container_user_namespace",
            bool({"userns", "rootless"} & set(facts.security)),
            "the engine maps the users of containers to others of the host",
            "a uid in a container is that uid on the host: each container has one that nobody else has",
        ),
        _either(
            "container_own_kernel",
            apart,
            f"{status.runtime} gives containers a kernel of their own",
            "containers share the host's kernel; gVisor's runsc would give them another",
        ),
        Enforcement(
            "container_workspace_quota",
            in_force=False,
            detail="the kernel keeps no quota of a workspace; its size is watched, and a container whose"
            " workspace holds too much is ended",
        ),
    )


def _either(name: str, in_force: bool, given: str, missing: str) -> Enforcement:  # noqa: FBT001
    return Enforcement(name, in_force, given if in_force else missing)
