"""What is said of the engine."""

from __future__ import annotations

import pytest

from clawbox.containers.backend import EngineFacts
from clawbox.containers.status import ContainersStatus, enforcements, engine_detail, runc_warning


def status(engine, problem="", runtime="runc"):
    return ContainersStatus(
        engine=engine, problem=problem, expected=True, active=0, finished=0, runtime=runtime
    )


def facts(runc="1.3.3", security=("seccomp",)):
    return EngineFacts(
        version="20.10.24",
        api_version="1.41",
        runtimes=("runc",),
        default_runtime="runc",
        runc_version=runc,
        security=security,
    )


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("1.1.5+ds1-1", ["CVE-2024-21626", "CVE-2025-31133"]),
        ("1.1.12", ["CVE-2025-31133"]),
        ("1.2.7", ["CVE-2025-31133"]),
        ("1.2.8", []),
        ("1.3.0", ["CVE-2025-31133"]),
        ("1.3.2", ["CVE-2025-31133"]),
        ("1.3.3", []),
        ("1.4.0", []),
        ("v2.0.0", []),
        ("", []),
        ("unknown", []),
    ],
)
def test_a_runc_without_known_corrections_is_named_as_it_reports_itself(version, named) -> None:
    warning = runc_warning(facts(version), "runc")
    assert [flaw for flaw in ("CVE-2024-21626", "CVE-2025-31133") if flaw in warning] == named
    assert bool(named) == (f"reports {version}" in warning)


def test_what_is_known_of_runc_is_nothing_against_another_runtime() -> None:
    assert runc_warning(facts("1.0.0"), "runsc") == ""


def test_the_engine_is_described_in_one_sentence() -> None:
    assert engine_detail(status(facts())) == "engine 20.10.24, runc, cgroup v1"
    assert engine_detail(status(None, "it does not answer: refused")) == "it does not answer: refused"


def test_what_this_machine_cannot_give_is_said() -> None:
    missing = {one.name for one in enforcements(status(facts())) if not one.in_force}
    assert missing == {
        "container_apparmor",
        "container_user_namespace",
        "container_own_kernel",
        "container_workspace_quota",
    }
    better = status(facts(security=("seccomp", "apparmor", "userns")), runtime="runsc")
    assert {one.name for one in enforcements(better) if not one.in_force} == {
        "container_workspace_quota",
        "container_seccomp",
        "container_seen_from_host",
        "container_exec_ended_alone",
    }
    assert enforcements(status(None)) == ()


@pytest.mark.parametrize("runtime", ["", "crun", "youki", "nvidia", "io.containerd.runc.v2"])
def test_a_runtime_that_shares_the_hosts_kernel_is_said_to(runtime) -> None:
    told = {one.name: one.in_force for one in enforcements(status(facts(), runtime=runtime))}
    assert not told["container_own_kernel"]
    assert told["container_seccomp"]
    assert told["container_seen_from_host"]


@pytest.mark.parametrize("runtime", ["runsc", "runsc-kvm", "kata-qemu", "io.containerd.kata.v2"])
def test_a_runtime_with_a_kernel_of_its_own_is_said_to_have_one(runtime) -> None:
    told = {one.name: one.in_force for one in enforcements(status(facts(), runtime=runtime))}
    assert told["container_own_kernel"]
    assert not told["container_seccomp"]
