"""Requests that are wrong, at the real server: each a typed error, and nothing is made or left."""

from __future__ import annotations

import grpc
import pytest
from clawbox_client import from_rpc_error
from clawbox_client.v1 import capabilities_pb2 as caps
from clawbox_client.v1 import containers_pb2 as pb

from tests.integration.containers_live.world import container, refused

DIGEST = "@sha256:" + "0" * 64
OUTSIDE = "IMAGE_NOT_ALLOWED"
BAD = "INVALID_FIELD"
DENIED = "POLICY_DENIED"


def resources(**fields):
    return {"capabilities": caps.Capabilities(resources=caps.Resources(**fields))}


def network(**fields):
    rule = caps.NetworkRule(**fields)
    return {"capabilities": caps.Capabilities(network=caps.NetworkCapabilities(rules=[rule]))}


def error_of(call):
    """What a call of the stub is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call() if callable(call) else call:
            pass
    return from_rpc_error(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        # Spellings that try to look allowed.
        ({"image": "evil/image"}, OUTSIDE, ""),
        ({"image": "clawbox"}, OUTSIDE, ""),
        ({"image": "clawboxevil/x"}, OUTSIDE, ""),
        ({"image": "clawbox-test"}, OUTSIDE, ""),
        ({"image": "clawbox-testevil/x"}, OUTSIDE, ""),
        ({"image": "evil.example/clawbox-test/x"}, OUTSIDE, ""),
        ({"image": "evil.example:443/clawbox/x" + DIGEST}, OUTSIDE, ""),
        ({"image": "clawbox.evil/clawbox/x"}, OUTSIDE, ""),
        ({"image": "clawbox-test/../evil"}, BAD, "image"),
        ({"image": "clawbox-test//evil"}, BAD, "image"),
        ({"image": "Clawbox-Test/x"}, BAD, "image"),
        ({"image": " clawbox-test/x"}, BAD, "image"),
        ({"image": "clawbox-test/x\n"}, BAD, "image"),
        ({"image": "clawbox-test/x@sha256:12"}, BAD, "image"),
        ({"image": "sha256:" + "0" * 64}, BAD, "image"),
        ({"image": "clawbox-test/nobody-has-this"}, "IMAGE_NOT_FOUND", ""),
        ({"template": "nobody"}, "TEMPLATE_NOT_FOUND", ""),
        ({"template": ""}, BAD, "template"),
        ({"task": " "}, BAD, "task"),
        ({"task": "x" * 1025}, BAD, "task"),
        ({"command": ["a"]}, BAD, "hold"),
        ({"hold": False, "command": ["sh", "a\0b"]}, BAD, "command[1]"),
        ({"hold": False, "command": ["x"] * 1025}, BAD, "command"),
        ({"hold": False, "command": ["sh", "x" * (129 << 10)]}, BAD, "command"),
        *(
            ({"env": {name: "x"}}, BAD, f"env[{name}]")
            for name in (
                *("CLAWBOX_X", "HTTP_PROXY", "https_proxy", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE"),
                *("REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "LD_PRELOAD", "BASH_ENV"),
                *("LD_LIBRARY_PATH", "ENV", "PYTHONSTARTUP", "NODE_OPTIONS", "A=B", "", "1A B"),
            )
        ),
        ({"env": {"A": "x\0"}}, BAD, "env[A]"),
        ({"labels": {"clawbox.owner": "y"}}, BAD, "labels[clawbox.owner]"),
        ({"labels": {"UP": "y"}}, BAD, "labels[UP]"),
        ({"labels": {"a": "x" * 257}}, BAD, "labels[a]"),
        ({"labels": {f"l{number}": "" for number in range(65)}}, BAD, "labels"),
        ({"policy": caps.EXECUTION_POLICY_WASM_ONLY}, BAD, "policy"),
        ({"policy": caps.EXECUTION_POLICY_CONTAINER_DIRECT}, DENIED, ""),
        (network(host="other.test"), DENIED, ""),
        (network(host="example.test", ports=[444]), DENIED, ""),
        (network(host="*.example.test"), DENIED, ""),
        (network(host="*"), BAD, "capabilities.network.rules[0].host"),
        (network(host="example.test", ports=[0]), BAD, "capabilities.network.rules[0].ports[0]"),
        ({"capabilities": caps.Capabilities(credentials=["other"])}, "CREDENTIAL_NOT_ALLOWED", ""),
        (resources(memory_mb=0), BAD, "capabilities.resources.memory_mb"),
        (resources(memory_mb=1 << 40), DENIED, ""),
        (resources(memory_mb=(1 << 64) - 1), DENIED, ""),
        (resources(pids=1), BAD, "capabilities.resources.pids"),
        (resources(pids=1 << 40), DENIED, ""),
        (resources(cpu_shares=1), BAD, "capabilities.resources.cpu_shares"),
        (resources(cpu_millis=1), BAD, "capabilities.resources.cpu_millis"),
        (resources(max_output_bytes=1 << 40), DENIED, ""),
        (resources(fuel=1), BAD, "capabilities.resources.fuel"),
        ({"workspace": pb.WorkspaceSpec(workspace_id="../up")}, BAD, "workspace.workspace_id"),
        ({"workspace": pb.WorkspaceSpec(workspace_id="x" * 65)}, BAD, "workspace.workspace_id"),
        ({"request_id": "with space"}, BAD, "request_id"),
        ({"request_id": "x" * 129}, BAD, "request_id"),
    ],
)
def test_a_spawn_that_is_wrong(world, fields, reason, field):
    before = {one.container_id for one in world.ann.list_containers(include_finished=True)}
    request = pb.SpawnRequest(**{"task": "wrong", "hold": True, **fields})
    with pytest.raises(grpc.RpcError) as caught:
        world.stub.Spawn(request, **world.as_("ann"))
    error = from_rpc_error(caught.value)
    assert error.reason == reason, error
    if field:
        assert field in [violation.field for violation in error.violations]
    assert {one.container_id for one in world.ann.list_containers(include_finished=True)} == before


@pytest.mark.parametrize(
    "path",
    [
        *(b"", b"/", b"workspace/a", b"/workspace/a\0b", b"/workspace/../etc/passwd", b"/workspace/./a"),
        *(b"/workspace//a", b"/workspace/a/", b"/workspacex/a", b"/etc/passwd", b"/proc/self/root/x"),
        *(b"/tmp/..", b"/workspace/" + b"x" * 4_086, b"/workspace/" + b"x/" * 2_043 + b"yz"),
        b"/tmp/" + b"x" * 256,
    ],
)
def test_a_path_that_is_wrong(world, held, path):
    where = {"container_id": held.container_id, "path": path}
    stub, ann = world.stub, world.as_("ann")
    for call in (
        lambda: stub.WriteFile(iter([pb.WriteFileRequest(start=pb.WriteFileStart(**where))]), **ann),
        lambda: stub.ReadFile(pb.ReadFileRequest(**where), **ann),
        lambda: stub.ListFiles(pb.ListFilesRequest(**where), **ann),
        lambda: stub.StatFile(pb.StatFileRequest(**where), **ann),
        lambda: stub.MakeDirectory(pb.MakeDirectoryRequest(**where), **ann),
        lambda: stub.RemoveFile(pb.RemoveFileRequest(**where), **ann),
    ):
        error = error_of(call)
        assert error.reason == BAD
        assert error.violations[0].field == "path"


def start(held, **fields):
    return pb.ExecRequest(
        start=pb.ExecStart(**{"container_id": held.container_id, "command": ["sleep", "9"], **fields})
    )


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (lambda _: [pb.ExecRequest(stdin=b"x")], "message"),
        (lambda held: [start(held), start(held)], "start"),
        (lambda held: [start(held), pb.ExecRequest(resize=pb.TerminalSize(rows=5, columns=5))], "resize"),
        (
            lambda held: [start(held, tty=True), pb.ExecRequest(resize=pb.TerminalSize(rows=5))],
            "resize.columns",
        ),
        (lambda held: [start(held), pb.ExecRequest(signal=pb.ExecSignal(name="SIGTERM"))], "signal.name"),
        (lambda held: [start(held), pb.ExecRequest(signal=pb.ExecSignal(name="BOGUS"))], "signal.name"),
        (lambda held: [start(held), pb.ExecRequest(stdin=b"x" * 65_537)], "stdin"),
        (lambda held: [start(held, command=[])], "command"),
        (lambda held: [start(held, env={"LD_PRELOAD": "x"})], "env[LD_PRELOAD]"),
        (lambda held: [start(held, user="root")], "user"),
        (lambda held: [start(held, working_dir="/proc/1")], "working_dir"),
        (lambda held: [start(held, working_dir="relative")], "working_dir"),
        (lambda held: [start(held, timeout_ms=0)], "timeout_ms"),
        (lambda held: [start(held, exec_id="a b")], "exec_id"),
    ],
)
def test_an_exec_that_is_wrong(world, held, messages, field):
    error = error_of(lambda: world.stub.Exec(iter(messages(held)), **world.as_("ann")))
    assert error.reason == BAD
    assert field in [violation.field for violation in error.violations]


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Get", pb.ContainersGetRequest(), "container_id"),
        ("Stop", pb.ContainersStopRequest(container_id="x", grace_ms=600_001), "grace_ms"),
        ("List", pb.ContainersListRequest(page_size=1001), "page_size"),
        (
            "List",
            pb.ContainersListRequest(filter=pb.ContainerFilter(states=[pb.CONTAINER_STATE_UNSPECIFIED])),
            "filter.states[0]",
        ),
    ],
)
def test_another_request_that_is_wrong(world, method, request_, field):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(world.stub, method)(request_, **world.as_("ann"))
    error = from_rpc_error(caught.value)
    assert (error.reason, error.violations[0].field) == (BAD, field)


def test_root_is_for_templates_alone(world, held):
    error = refused(lambda: world.ann.run_command(held.container_id, ["id"], user="0"))
    assert (error.reason, error.code) == (DENIED, grpc.StatusCode.PERMISSION_DENIED)


def test_a_page_token_that_nobody_gave(world):
    error = error_of(lambda: [world.stub.List(pb.ContainersListRequest(page_token="x"), **world.as_("ann"))])
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason


def test_what_a_command_and_stats_may_not_ask_for(world, held):
    ann = world.ann
    for act, reason, field in (
        (lambda: ann.run_command(held.container_id, []), BAD, "command"),
        (lambda: ann.run_command(held.container_id, ["a"], max_output_bytes=1 << 40), DENIED, ""),
        (lambda: ann.run_command(held.container_id, ["a"], env={"ENV": "x"}), BAD, "env[ENV]"),
        (lambda: list(ann.stats(held.container_id, interval_ms=99)), BAD, "interval_ms"),
        (lambda: ann.write_file(held.container_id, "/workspace/f", b"", mode=0o1777), BAD, "mode"),
    ):
        error = refused(act)
        assert error.reason == reason
        assert not field or error.violations[0].field == field


def test_a_precondition_says_whose_state_it_is(world):
    with container(world.ann, command=["true"]) as made:
        world.ann.wait_container(made.container_id, deadline=30)
        error = refused(lambda: world.ann.run_command(made.container_id, ["true"]))
        assert error.metadata["container_id"] == made.container_id
        assert error.metadata["state"] == "COMPLETED"
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION
