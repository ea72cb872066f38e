"""Requests that are wrong: each a typed error that says which field."""

from __future__ import annotations

from typing import Any

import pytest
from clawbox_client.v1 import capabilities_pb2 as caps
from clawbox_client.v1 import containers_pb2 as pb
from clawbox_client.v1 import sandbox_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from clawbox.containers.states import State

DIGEST = "@sha256:" + "0" * 64


def rule(host):
    return caps.Capabilities(network=caps.NetworkCapabilities(rules=[caps.NetworkRule(host=host)]))


def unknown(number: Any) -> Any:
    """A number that an enum does not have, as newer clients send it."""
    return number


def filter_of(*states: Any) -> pb.ContainerFilter:
    return pb.ContainerFilter(states=states)


def resources(**fields):
    return caps.Capabilities(resources=caps.Resources(**fields))


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"image": "evil/image"}, "IMAGE_NOT_ALLOWED", None),
        ({"image": "alpineevil"}, "IMAGE_NOT_ALLOWED", None),
        ({"image": "alpine/evil"}, "IMAGE_NOT_ALLOWED", None),
        ({"image": "evil.example/alpine"}, "IMAGE_NOT_ALLOWED", None),
        ({"image": "docker.io/evil/alpine" + DIGEST}, "IMAGE_NOT_ALLOWED", None),
        ({"image": "registry.example/teamwork/x"}, "IMAGE_NOT_ALLOWED", None),
        ({"image": "registry.example/team/../evil"}, "INVALID_FIELD", "image"),
        ({"image": "Alpine"}, "INVALID_FIELD", "image"),
        ({"image": "alpine\n"}, "INVALID_FIELD", "image"),
        ({"image": "sha256:" + "0" * 64}, "INVALID_FIELD", "image"),
        ({"image": ""}, "INVALID_FIELD", "image"),
        ({"template": ""}, "INVALID_FIELD", "template"),
        ({"template": "nobody"}, "TEMPLATE_NOT_FOUND", None),
        ({"task": ""}, "INVALID_FIELD", "task"),
        ({"task": "x" * 1025}, "INVALID_FIELD", "task"),
        ({"command": ["a"]}, "INVALID_FIELD", "hold"),
        ({"hold": False, "command": ["a\0b"]}, "INVALID_FIELD", "command[0]"),
        ({"env": {"CLAWBOX_TOKEN": "x"}}, "INVALID_FIELD", "env[CLAWBOX_TOKEN]"),
        ({"env": {"http_proxy": "x"}}, "INVALID_FIELD", "env[http_proxy]"),
        ({"env": {"LD_PRELOAD": "x"}}, "INVALID_FIELD", "env[LD_PRELOAD]"),
        ({"env": {"A=B": "x"}}, "INVALID_FIELD", "env[A=B]"),
        ({"env": {"A": "x\0y"}}, "INVALID_FIELD", "env[A]"),
        ({"labels": {"clawbox.x": "y"}}, "INVALID_FIELD", "labels[clawbox.x]"),
        ({"labels": {"Up": "y"}}, "INVALID_FIELD", "labels[Up]"),
        ({"policy": caps.EXECUTION_POLICY_WASM_ONLY}, "INVALID_FIELD", "policy"),
        ({"policy": 99}, "INVALID_FIELD", "policy"),
        ({"policy": caps.EXECUTION_POLICY_CONTAINER_DIRECT}, "POLICY_DENIED", None),
        ({"capabilities": rule("other.example")}, "POLICY_DENIED", None),
        ({"capabilities": rule("*")}, "INVALID_FIELD", "capabilities.network.rules[0].host"),
        ({"capabilities": rule("")}, "INVALID_FIELD", "capabilities.network.rules[0].host"),
        (
            {
                "capabilities": caps.Capabilities(
                    network=caps.NetworkCapabilities(
                        rules=[caps.NetworkRule(host="api.example", tls_mode=unknown(77))]
                    )
                )
            },
            "INVALID_FIELD",
            "capabilities.network.rules[0].tls_mode",
        ),
        ({"capabilities": caps.Capabilities(credentials=["other"])}, "CREDENTIAL_NOT_ALLOWED", None),
        ({"capabilities": resources(memory_mb=1 << 40)}, "POLICY_DENIED", None),
        ({"capabilities": resources(memory_mb=0)}, "INVALID_FIELD", "capabilities.resources.memory_mb"),
        ({"capabilities": resources(pids=1)}, "INVALID_FIELD", "capabilities.resources.pids"),
        ({"capabilities": resources(timeout_ms=(1 << 64) - 1)}, "POLICY_DENIED", None),
        ({"capabilities": resources(fuel=5)}, "INVALID_FIELD", "capabilities.resources.fuel"),
        ({"workspace": pb.WorkspaceSpec(workspace_id="../x")}, "INVALID_FIELD", "workspace.workspace_id"),
        ({"workspace": pb.WorkspaceSpec(workspace_id="x" * 65)}, "INVALID_FIELD", "workspace.workspace_id"),
        ({"request_id": "with space"}, "INVALID_FIELD", "request_id"),
        ({"request_id": "x" * 129}, "INVALID_FIELD", "request_id"),
    ],
)
async def test_a_spawn_that_is_wrong(service, fields, reason, field) -> None:
    request = pb.SpawnRequest(**{"task": "a test", "hold": True, **fields})
    refusal = await service.refused(service.containers.Spawn(request, **service.as_("ann")))
    assert refusal.reason == reason
    if field is not None:
        assert field in [one.field for one in refusal.bad_request.field_violations]
    assert service.manager.spawned == []


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"workspace/a",
        b"/workspace/a\0b",
        b"/workspace/../etc/passwd",
        b"/workspace/./a",
        b"/workspace//a",
        b"/workspace/a/",
        b"/workspace/" + b"x" * 4_086,
        b"/workspace/" + b"x" * 256,
        b"/workspacex/a",
        b"/etc/passwd",
        b"/",
        b"/proc/self/root",
    ],
)
async def test_a_path_that_is_wrong(service, path) -> None:
    made = await service.spawned()
    wanted = {"container_id": made.container_id, "path": path}
    write = [pb.WriteFileRequest(start=pb.WriteFileStart(**wanted))]
    for call in (
        service.containers.WriteFile(iter(write), **service.as_("ann")),
        service.containers.ReadFile(pb.ReadFileRequest(**wanted), **service.as_("ann")),
        service.containers.ListFiles(pb.ListFilesRequest(**wanted), **service.as_("ann")),
        service.containers.StatFile(pb.StatFileRequest(**wanted), **service.as_("ann")),
        service.containers.MakeDirectory(pb.MakeDirectoryRequest(**wanted), **service.as_("ann")),
        service.containers.RemoveFile(pb.RemoveFileRequest(**wanted), **service.as_("ann")),
    ):
        refusal = await service.refused(call)
        assert refusal.reason == "INVALID_FIELD"
        assert refusal.bad_request.field_violations[0].field == "path"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "/proc/self/root/etc/passwd"])
async def test_a_link_never_leads_outside(service, target) -> None:
    made = await service.spawned()
    folder = service.manager.folder
    (folder / "outside").write_bytes(b"kept")
    (folder / made.workspace.workspace_id / "link").symlink_to(target)
    wanted = {"container_id": made.container_id, "path": b"/workspace/link"}
    read = service.containers.ReadFile(pb.ReadFileRequest(**wanted), **service.as_("ann"))
    assert (await service.refused(read)).reason in {"INVALID_FIELD", "FILE_NOT_FOUND", "WRONG_STATE"}
    assert (folder / "outside").read_bytes() == b"kept"


def _start(made, **fields):
    return pb.ExecRequest(
        start=pb.ExecStart(**{"container_id": made.container_id, "command": ["cat"], **fields})
    )


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (lambda _: [], "message"),
        (lambda _: [pb.ExecRequest()], "message"),
        (lambda _: [pb.ExecRequest(stdin=b"x")], "message"),
        (lambda made: [_start(made), _start(made)], "start"),
        (lambda made: [_start(made), pb.ExecRequest(attach=pb.ExecAttach(exec_id="x"))], "attach"),
        (lambda made: [_start(made), pb.ExecRequest()], "message"),
        (lambda made: [_start(made), pb.ExecRequest(stdin=b"x" * 65_537)], "stdin"),
        (
            lambda made: [_start(made), pb.ExecRequest(resize=pb.TerminalSize(rows=5, columns=5))],
            "resize",
        ),
        (
            lambda made: [
                _start(made, tty=True),
                pb.ExecRequest(resize=pb.TerminalSize(rows=0, columns=5)),
            ],
            "resize.rows",
        ),
        (
            lambda made: [_start(made), pb.ExecRequest(signal=pb.ExecSignal(name="SIGTERM"))],
            "signal.name",
        ),
        (lambda made: [_start(made), pb.ExecRequest(signal=pb.ExecSignal())], "signal.name"),
        (lambda made: [_start(made, command=[])], "command"),
        (lambda made: [_start(made, env={"BASH_ENV": "x"})], "env[BASH_ENV]"),
        (lambda made: [_start(made, user="root")], "user"),
        (lambda made: [_start(made, working_dir="/proc/1")], "working_dir"),
        (lambda made: [_start(made, timeout_ms=0)], "timeout_ms"),
        (lambda made: [_start(made, exec_id="a b")], "exec_id"),
        (lambda made: [_start(made, size=pb.TerminalSize(rows=1, columns=1))], "size"),
        (lambda _: [pb.ExecRequest(attach=pb.ExecAttach())], "attach.exec_id"),
        (lambda _: [pb.ExecRequest(start=pb.ExecStart(command=["cat"]))], "container_id"),
    ],
)
async def test_an_exec_that_is_wrong(service, messages, field) -> None:
    made = await service.spawned()
    refusal = await service.refused(service.containers.Exec(iter(messages(made)), **service.as_("ann")))
    assert refusal.reason == "INVALID_FIELD"
    assert field in [one.field for one in refusal.bad_request.field_violations]
    assert all(process.detached.is_set() for process in service.execs.started)


async def test_nothing_is_run_in_a_container_that_is_not_running(service) -> None:
    made = await service.spawned()
    await service.manager.finish(made.container_id, State.COMPLETED)
    execs = service.containers.Exec(iter([_start(made)]), **service.as_("ann"))
    run = service.containers.RunCommand(
        pb.RunCommandRequest(container_id=made.container_id, command=["x"]), **service.as_("ann")
    )
    for call in (execs, run):
        refusal = await service.refused(call)
        assert refusal.reason == "WRONG_STATE"
        assert refusal.precondition.violations[0].subject == made.container_id


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Get", pb.ContainersGetRequest(), "container_id"),
        ("Wait", pb.ContainersWaitRequest(), "container_id"),
        ("Stop", pb.ContainersStopRequest(container_id="x", grace_ms=600_001), "grace_ms"),
        ("List", pb.ContainersListRequest(page_size=1001), "page_size"),
        ("List", pb.ContainersListRequest(filter=filter_of(0)), "filter.states[0]"),
        ("List", pb.ContainersListRequest(filter=filter_of(1, 99)), "filter.states[1]"),
        ("Watch", pb.ContainersWatchRequest(filter=filter_of(99)), "filter.states[0]"),
        ("ListTemplates", pb.ListTemplatesRequest(page_size=1001), "page_size"),
        ("Logs", pb.ContainersLogsRequest(streams=[sandbox_pb2.STREAM_LOG]), "streams[0]"),
        ("Logs", pb.ContainersLogsRequest(streams=[unknown(77)]), "streams[0]"),
        ("Logs", pb.ContainersLogsRequest(since=Timestamp(seconds=1 << 62)), "since"),
    ],
)
async def test_another_request_that_is_wrong(service, method, request_, field) -> None:
    refusal = await service.refused(getattr(service.containers, method)(request_, **service.as_("ann")))
    assert refusal.reason == "INVALID_FIELD"
    assert refusal.bad_request.field_violations[0].field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"interval_ms": 99}, "interval_ms"), ({"interval_ms": 3_600_001}, "interval_ms")],
)
async def test_stats_that_are_wrong(service, fields, field) -> None:
    made = await service.spawned()
    request = pb.ContainersStatsRequest(container_id=made.container_id, **fields)
    refusal = await service.refused(service.containers.Stats(request, **service.as_("ann")))
    assert refusal.bad_request.field_violations[0].field == field


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (lambda _: [], "part"),
        (lambda _: [pb.WriteFileRequest()], "part"),
        (lambda _: [pb.WriteFileRequest(chunk=b"x")], "part"),
        (lambda start: [start(), start()], "part"),
        (lambda start: [start(), pb.WriteFileRequest()], "part"),
        (lambda start: [start(), pb.WriteFileRequest(chunk=b"x" * 65_537)], "chunk"),
        (lambda start: [start(mode=0o1777)], "mode"),
        (lambda start: [start(size_bytes=2), pb.WriteFileRequest(chunk=b"x")], "size_bytes"),
        (lambda start: [start(size_bytes=1), pb.WriteFileRequest(chunk=b"xy")], "size_bytes"),
    ],
)
async def test_an_upload_that_is_wrong(service, messages, field) -> None:
    made = await service.spawned()

    def start(**fields):
        return pb.WriteFileRequest(
            start=pb.WriteFileStart(container_id=made.container_id, path=b"/workspace/f", **fields)
        )

    refusal = await service.refused(service.containers.WriteFile(iter(messages(start)), **service.as_("ann")))
    assert refusal.reason == "INVALID_FIELD"
    assert refusal.bad_request.field_violations[0].field == field
    assert list((service.manager.folder / made.workspace.workspace_id).iterdir()) == []


async def test_a_command_that_wants_more_output_than_was_granted(service) -> None:
    made = await service.spawned()
    request = pb.RunCommandRequest(container_id=made.container_id, command=["x"], max_output_bytes=1 << 40)
    refusal = await service.refused(service.containers.RunCommand(request, **service.as_("ann")))
    assert refusal.reason == "POLICY_DENIED"
