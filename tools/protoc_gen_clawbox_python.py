"""A protoc plugin that writes the Python stubs: messages, services and their type stubs.

It reads a CodeGeneratorRequest on stdin and answers with a CodeGeneratorResponse, as protoc plugins do.
It exists because every Python generator emits ``from clawbox.v1 import x_pb2``, and the stubs live in
``clawbox_client.v1``: the imports are made relative here.
"""

import re
import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

_PACKAGE = "clawbox/v1/"
_BIN = Path(sys.executable).parent
_ABSOLUTE = re.compile(r"^from clawbox\.v1 import ", re.MULTILINE)
_QUALIFIED_IMPORT = re.compile(r"^import clawbox\.v1\.(\w+)$", re.MULTILINE)


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """Generate the files that the request asks for, with relative imports."""
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    with tempfile.TemporaryDirectory() as folder:
        descriptors = Path(folder, "descriptors.binpb")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        out = Path(folder, "out")
        out.mkdir()
        status = protoc.main(  # type: ignore[no-untyped-call]
            [
                "protoc",
                f"--descriptor_set_in={descriptors}",
                f"--python_out={out}",
                f"--grpc_python_out={out}",
                # Those of this environment, whatever PATH says.
                f"--plugin=protoc-gen-mypy={_BIN / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={_BIN / 'protoc-gen-mypy_grpc'}",
                f"--mypy_out=quiet:{out}",
                f"--mypy_grpc_out=quiet:{out}",
                *request.file_to_generate,
            ]
        )
        if status:
            response.error = f"protoc ended with {status}"
            return response
        names = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
        for name in names:
            if not str(name).startswith(_PACKAGE):
                continue
            text = Path(out, name).read_text()
            text = _ABSOLUTE.sub("from . import ", text)
            text = _QUALIFIED_IMPORT.sub(r"from . import \1", text)
            response.file.add(name=str(name.relative_to(_PACKAGE)), content=text)
    response.file.add(name="__init__.py", content='"""Generated from protos/clawbox/v1; never edited."""\n')
    return response


if __name__ == "__main__":
    sys.stdout.buffer.write(
        generate(plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())).SerializeToString()
    )
