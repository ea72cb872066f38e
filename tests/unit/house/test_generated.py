"""The stubs come from the protos through our own plugin, and drift is seen."""

import subprocess
import sys

import pytest
from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tools.check_generated import STUBS, contents, drift


@pytest.fixture(scope="module")
def descriptors(root, buf):
    done = subprocess.run([buf, "build", "protos", "-o", "-"], cwd=root, capture_output=True, check=True)
    return FileDescriptorSet.FromString(done.stdout)


@pytest.fixture(scope="module")
def answer(root, descriptors):
    """What the plugin, run as buf runs it, answers for all protos."""
    request = plugin_pb2.CodeGeneratorRequest(proto_file=descriptors.file)
    request.file_to_generate.extend(
        file.name for file in descriptors.file if file.name.startswith("clawbox/")
    )
    done = subprocess.run(
        [sys.executable, root / "tools/protoc_gen_clawbox_python.py"],
        input=request.SerializeToString(),
        capture_output=True,
        check=True,
    )
    return plugin_pb2.CodeGeneratorResponse.FromString(done.stdout)


def test_the_plugin_writes_messages_services_and_types_of_every_proto(answer):
    names = {"agents", "capabilities", "containers", "sandbox", "system"}

    assert answer.error == ""
    assert {"__init__.py"} | {
        f"{name}_{kind}" for name in names for kind in ("pb2.py", "pb2.pyi", "pb2_grpc.py", "pb2_grpc.pyi")
    } == {file.name for file in answer.file}


def test_no_stub_imports_by_the_path_of_the_protos(answer):
    for file in answer.file:
        assert "from clawbox.v1" not in file.content
        assert "import clawbox.v1" not in file.content


def test_the_plugin_says_what_protoc_refuses(root):
    request = plugin_pb2.CodeGeneratorRequest(file_to_generate=["clawbox/v1/missing.proto"])

    done = subprocess.run(
        [sys.executable, root / "tools/protoc_gen_clawbox_python.py"],
        input=request.SerializeToString(),
        capture_output=True,
        check=True,
    )

    assert plugin_pb2.CodeGeneratorResponse.FromString(done.stdout).error == "protoc ended with 1"


def test_the_committed_stubs_are_what_the_plugin_writes(root, answer):
    generated = {file.name: file.content.encode() for file in answer.file}

    assert drift(contents(root / STUBS), generated) == []


def test_drift_names_each_file_that_differs():
    found = drift({"same": b"1", "edited": b"1", "left": b"1"}, {"same": b"1", "edited": b"2", "new": b"1"})

    assert found == [
        "edited is not what its proto makes",
        "left is there, but no proto makes it",
        "new is missing",
    ]


def test_contents_leaves_out_caches(tmp_path):
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.pyc").write_bytes(b"")
    (tmp_path / "a.py").write_bytes(b"1")

    assert contents(tmp_path) == {"a.py": b"1"}
