"""The rules that keep the contract documented and stable do refuse what breaks them."""

import shutil
import subprocess

import pytest
from clawbox_client.v1 import agents_pb2, containers_pb2, sandbox_pb2, system_pb2

METHODS = {
    "Sandbox": "Execute ExecuteStream> ListTools GetTool RegisterTool >UploadTool DeleteTool ReloadTools",
    "Containers": (
        "Spawn Get List Watch> Wait Stop Kill Remove Pause Resume >Exec> RunCommand Logs> Stats> "
        ">WriteFile ReadFile> ListFiles StatFile MakeDirectory RemoveFile ListTemplates"
    ),
    "Agents": "Register Get List Update Start Stop Remove Heartbeat Watch>",
    "System": "GetStatus WatchAudit>",
}
FILES = {"Sandbox": sandbox_pb2, "Containers": containers_pb2, "Agents": agents_pb2, "System": system_pb2}


@pytest.fixture
def workspace(root, tmp_path):
    """A copy of what buf reads, to break."""
    for name in ("protos", "third_party"):
        shutil.copytree(root / name, tmp_path / name)
    shutil.copy(root / "buf.yaml", tmp_path)
    return tmp_path


def run(buf, folder, *arguments):
    return subprocess.run([buf, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def breaking(buf, folder):
    return run(buf, folder, "breaking", "protos", "--against", "protos/release.binpb")


def edit(folder, name, old, new):
    path = folder / "protos/clawbox/v1" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("service", METHODS)
def test_a_service_has_exactly_these_methods(service):
    descriptor = FILES[service].DESCRIPTOR.services_by_name[service]
    found = [
        f"{'>' * method.client_streaming}{method.name}{'>' * method.server_streaming}"
        for method in descriptor.methods
    ]

    assert METHODS[service].split() == found


def test_the_contract_as_it_is_passes(buf, workspace):
    assert run(buf, workspace, "lint").stdout == ""
    assert breaking(buf, workspace).stdout == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("  // The principal that made it.\n", "", "COMMENT_FIELD"),
        ("  CONTAINER_STATE_RUNNING = 2;", "  RUNNING = 2;", "ENUM_VALUE_PREFIX"),
        ("rpc Spawn(SpawnRequest)", "rpc Spawn(FileInfo)", "RPC_REQUEST_STANDARD_NAME"),
    ],
)
def test_lint_refuses(buf, workspace, old, new, rule):
    edit(workspace, "containers.proto", old, new)

    done = run(buf, workspace, "lint", "--error-format=json")

    assert done.returncode != 0
    assert f'"type":"{rule}"' in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("string task = 1;", "string tasks = 1;", "FIELD_SAME_NAME"),
        ("string task = 1;", "bytes task = 1;", "FIELD_SAME_TYPE"),
        ("CONTAINER_STATE_LOST = 9;", "CONTAINER_STATE_GONE = 9;", "ENUM_VALUE_SAME_NAME"),
        ("rpc Wait(ContainersWaitRequest) returns (Container);", "", "RPC_NO_DELETE"),
    ],
)
def test_breaking_refuses(buf, workspace, old, new, rule):
    edit(workspace, "containers.proto", old, new)

    done = run(
        buf, workspace, "breaking", "protos", "--against", "protos/release.binpb", "--error-format=json"
    )

    assert done.returncode != 0
    assert f'"type":"{rule}"' in done.stdout


def test_breaking_allows_what_is_added(buf, workspace):
    edit(workspace, "containers.proto", "message ContainersRemoveResponse {}", "")
    with (workspace / "protos/clawbox/v1/containers.proto").open("a") as file:
        file.write("message ContainersRemoveResponse {\n  // New.\n  bool workspace_deleted = 1;\n}\n")

    done = breaking(buf, workspace)

    assert (done.returncode, done.stdout) == (0, "")
