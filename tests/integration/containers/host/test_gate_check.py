"""Before the gate opens: every hardening value that an engine left out is noticed."""

import os
import subprocess
from pathlib import Path

import pytest

from clawbox.containers.host.gate_check import UnsafeContainerError, check_exec_gate, check_gate
from clawbox.containers.host.mounted import OpenedMounts
from clawbox.containers.host.processes import ProcessGoneError
from clawbox.containers.mounts import Mount, MountError
from clawbox.containers.users import User
from tests.integration.containers.host.conftest import USER


async def differences(started, **changed):
    with pytest.raises(UnsafeContainerError) as raised:
        await check_gate(started.pid, started.terms(**changed))
    return "\n".join(raised.value.differences)


def host(**changed):
    return lambda body: body["HostConfig"].update(changed)


def security(*kept):
    def change(body):
        options = body["HostConfig"]["SecurityOpt"]
        body["HostConfig"]["SecurityOpt"] = [one for one in options if one.startswith(kept)]

    return change


def unconfined(body):
    body["HostConfig"]["SecurityOpt"] = ["no-new-privileges:true", "seccomp=unconfined"]


def supplementary(body):
    body["HostConfig"]["GroupAdd"] = ["4242"]


def add_route(pid):
    """As a network of the engine's brings."""
    entered = ["nsenter", "-t", str(pid), "-n"]
    subprocess.run([*entered, "ip", "route", "add", "10.9.0.0/16", "dev", "lo"], check=True)


def mount(body, target, **changed):
    (found,) = [one for one in body["HostConfig"]["Mounts"] if one["Target"] == target]
    found.update(changed)


async def test_rule_79_a_container_made_as_asked_passes_and_goes_on(start):
    started = start(("sh", "-c", "id -u; cat /proc/self/status"))

    await check_gate(started.pid, started.terms())
    assert started.output() == ""
    await started.fifo.release(10)

    assert started.api.wait(started.engine_id) == 0
    assert str(USER.uid) in started.output()


async def test_rule_79_without_an_init_the_gate_is_the_first_process(start):
    started = start(change=host(Init=False))

    await check_gate(started.pid, started.terms())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(host(CapDrop=[]), "has capabilities", id="capabilities"),
        pytest.param(host(CapDrop=["ALL"], CapAdd=["NET_RAW"]), "CapBnd 2000", id="one-capability"),
        pytest.param(security("seccomp"), "may gain privileges", id="no-new-privileges"),
        pytest.param(unconfined, "under no seccomp filter", id="seccomp"),
        pytest.param(lambda body: body.update(User="912346:912345"), "runs as uid", id="uid"),
        pytest.param(lambda body: body.update(User="912345:0"), "runs as gid", id="gid"),
        pytest.param(supplementary, "is in groups", id="groups"),
        pytest.param(host(ReadonlyRootfs=False), "root file system can be written", id="root"),
        pytest.param(host(NetworkMode="host"), "net namespace is the host's", id="net"),
        pytest.param(host(PidMode="host"), "pid namespace is the host's", id="pid"),
        pytest.param(host(IpcMode="host"), "ipc namespace is the host's", id="ipc"),
        pytest.param(host(UTSMode="host"), "uts namespace is the host's", id="uts"),
        pytest.param(host(CgroupnsMode="host"), "cgroup namespace is the host's", id="cgroup"),
    ],
)
async def test_rule_79_one_hardening_value_less_is_noticed(start, change, said):
    def changed(body):
        change(body)
        if body["HostConfig"]["UTSMode"] == "host" or body["HostConfig"]["NetworkMode"] == "host":
            body["Hostname"] = ""

    assert said in await differences(start(change=changed))


async def test_rule_79_a_privileged_container_differs_in_nearly_everything(start):
    def privileged(body):
        body["HostConfig"] |= {"Privileged": True, "SecurityOpt": [], "CapDrop": [], "ReadonlyRootfs": False}

    said = await differences(start(change=privileged))

    for part in ("capabilities", "gain privileges", "seccomp", "root file system"):
        assert part in said


async def test_rule_79_another_folder_at_a_target_is_noticed(start, tmp_path):
    other = tmp_path / "other"
    other.mkdir()

    said = await differences(start(change=lambda body: mount(body, "/workspace", Source=str(other))))

    assert "/workspace is another file than was opened" in said


async def test_rule_79_a_folder_that_was_replaced_after_it_was_opened_is_noticed(start):
    def replace(body):
        (source,) = [one["Source"] for one in body["HostConfig"]["Mounts"] if one["Target"] == "/workspace"]
        opened_first.append(OpenedMounts.open([Mount(source, "/workspace", read_only=False)]))
        Path(source).rename(f"{source}.before")
        Path(source).mkdir()

    opened_first: list[OpenedMounts] = []
    started = start(change=replace)
    with opened_first[0] as before:
        said = await differences(started, mounts=before)

    assert "/workspace is another file than was opened" in said


async def test_rule_79_a_mount_that_is_missing_is_noticed(start):
    def without(body):
        mounts = body["HostConfig"]["Mounts"]
        body["HostConfig"]["Mounts"] = [one for one in mounts if one["Target"] != "/etc/passwd"]

    said = await differences(start(change=without))

    assert "/etc/passwd" in said


@pytest.mark.parametrize("sbin", ["usr/sbin", "usr/bin"])
async def test_rule_79_the_engines_own_files_may_be_where_links_of_the_image_lead(start, images, sbin):
    linked = images(files={f"{sbin}/true": b"", "sbin": sbin, "etc/resolv.conf": "../run/resolv.conf"})

    started = start(change=lambda body: body.update(Image=linked))

    await check_gate(started.pid, started.terms())


async def test_rule_79_no_folder_is_the_engines_own_because_a_link_of_the_image_leads_there(
    start, images, tmp_path
):
    linked = images(files={"host/true": b"", "sbin": "host"})
    (tmp_path / "docker-init").write_bytes(b"")

    def change(body):
        body["Image"] = linked
        body["HostConfig"]["Init"] = False
        body["HostConfig"]["Mounts"].append({"Type": "bind", "Source": str(tmp_path), "Target": "/host"})

    assert "/host is mounted too" in await differences(start(change=change))


@pytest.mark.parametrize("target", ["/run/clawbox", "/etc/passwd", "/etc/group"])
async def test_rule_79_a_mount_that_can_be_written_is_noticed(start, target):
    said = await differences(start(change=lambda body: mount(body, target, ReadOnly=False)))

    assert f"{target} can be written" in said


async def test_rule_79_a_workspace_that_was_to_be_read_only_is_noticed(start):
    assert "/workspace can be written" in await differences(start(read_only=True))


async def test_rule_79_a_mount_more_is_noticed(start, tmp_path):
    def more(body):
        body["HostConfig"]["Binds"] = [f"{tmp_path}:/host"]

    assert "/host is mounted too" in await differences(start(change=more))


async def test_rule_79_a_mount_of_the_hosts_memory_is_noticed(start):
    def more(body):
        body["HostConfig"]["Binds"] = ["/dev:/host:ro"]

    assert "/host is mounted too" in await differences(start(change=more))


async def test_rule_79_a_network_is_noticed(start):
    started = start()
    add_route(started.pid)

    assert "route to a network" in await differences(started)


async def test_a_network_that_was_asked_for_is_none_too_much(start):
    started = start()
    add_route(started.pid)

    await check_gate(started.pid, started.terms(own_network=True))


async def test_rule_79_a_process_besides_the_gate_is_noticed(start):
    started = start()
    started.start_exec(["sleep", "100"])

    with pytest.raises(UnsafeContainerError, match="3 processes run in it"):
        await check_gate(started.pid, started.terms(), timeout=0.2)


async def test_rule_79_another_program_than_the_gate_is_noticed(start):
    def ungated(body):
        body["Entrypoint"], body["Cmd"] = ["sleep"], ["100"]

    with pytest.raises(UnsafeContainerError, match="0 of them gates"):
        await check_gate((started := start(change=ungated)).pid, started.terms(), timeout=0.2)


async def test_rule_79_a_container_that_ended_is_no_container(start):
    started = start()
    # One that comes to a FIFO that nobody holds waits for ever.
    await started.fifo.wait_for_gate(10)
    started.fifo.close()
    assert started.api.wait(started.engine_id) == 127

    with pytest.raises(ProcessGoneError):
        await check_gate(started.pid, started.terms())


async def test_rule_79_links_of_an_image_are_followed_inside_it_alone(start, images):
    """What is mounted is looked for where the container sees it, not where a link leads on the host."""

    def linked(body):
        body["Image"] = images(files={"elsewhere/x": b"", "workspace": "/elsewhere"}, name="linked")

    started = start(change=linked)

    await check_gate(started.pid, started.terms())


async def test_rule_78_what_is_mounted_is_looked_at_when_it_is_opened(tmp_path):
    open_to_all = tmp_path / "shared"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "workspace").mkdir()
    (tmp_path / "link").symlink_to(open_to_all)

    for source, said in ((open_to_all / "workspace", "can be written"), (tmp_path / "link", "neither")):
        with pytest.raises(MountError, match=said):
            OpenedMounts.open([Mount(str(source), "/workspace")])


async def test_the_gate_of_an_exec_is_told_from_others(start):
    started = start()
    await check_gate(started.pid, started.terms())
    await started.fifo.release(10)
    facts = {"user": USER, "gate": started.folder.gate, "container_pid": started.pid}

    with started.folder.make_fifo("exec-1") as fifo:
        gated = started.start_exec(["/run/clawbox/gate", "/run/clawbox/exec-1", "sleep", "100"])
        await fifo.wait_for_gate(10)
        pidfd = os.pidfd_open(gated)
        try:
            check_exec_gate(gated, pidfd=pidfd, **facts)
            with pytest.raises(UnsafeContainerError, match="runs as uid"):
                check_exec_gate(gated, pidfd=pidfd, **(facts | {"user": User(5, 5)}))
            await fifo.release(10)
            with pytest.raises(UnsafeContainerError, match="does not execute the gate"):
                check_exec_gate(started.pid, pidfd=started.pidfd, **facts)
        finally:
            os.close(pidfd)
