"""gRPC reflection, v1 and v1alpha: what ``grpcurl`` and ``ghz`` ask a server for.

grpcio-reflection has v1alpha alone. The two differ in the package's name and nothing else, so one servicer
answers both, and v1's descriptors are made from v1alpha's by renaming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from clawbox.rpc.methods import REFLECTION_SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor import FileDescriptor

_ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"


class DescriptorSource:
    """Where reflection looks things up: the process's descriptors, and the file of reflection v1.

    The part of a ``DescriptorPool`` that the reflection servicer uses. A *method's* name finds its file too,
    which Python's pool does not do and ghz depends on.
    """

    def __init__(self) -> None:
        self._default = descriptor_pool.Default()
        self._v1 = descriptor_pool.DescriptorPool()
        self._v1.AddSerializedFile(_v1_file().SerializeToString())
        # What the default pool is asked for by name and number, as it is.
        self.FindMessageTypeByName = self._default.FindMessageTypeByName
        self.FindExtensionByNumber = self._default.FindExtensionByNumber
        self.FindAllExtensions = self._default.FindAllExtensions

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802 - the pool's name
        """The file of that name; raises :class:`KeyError`."""
        try:
            return self._default.FindFileByName(name)
        except KeyError:
            return self._v1.FindFileByName(name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - the pool's name
        """The file that defines a message, enum, service, field or method; raises :class:`KeyError`."""
        for pool in (self._default, self._v1):
            try:
                return pool.FindFileContainingSymbol(symbol)
            except KeyError:
                pass
            try:
                return pool.FindMethodByName(symbol).containing_service.file
            except KeyError:
                pass
        raise KeyError(symbol)


def reflection_handlers(services: Iterable[str]) -> dict[str, dict[str, grpc.RpcMethodHandler]]:  # type: ignore[type-arg]
    """The handlers of both versions by service and method; ``services`` are the full names to be listed."""
    servicer = reflection.aio.ReflectionServicer(
        [*services, *REFLECTION_SERVICES],
        pool=DescriptorSource(),
    )
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {service: {"ServerReflectionInfo": handler} for service in REFLECTION_SERVICES}


def _v1_file() -> descriptor_pb2.FileDescriptorProto:
    """The file of ``grpc.reflection.v1``, made from that of v1alpha."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = _V1
    old, new = f".{_ALPHA}.", f".{_V1}."
    for message in file.message_type:
        for field in message.field:
            if not field.HasField("type_name"):
                continue  # a scalar's must stay unset, not become empty
            field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    return file
