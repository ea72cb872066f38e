"""Somebody who calls a live server: a connection of their own, one token, the generated stubs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc
from clawbox_client.v1 import sandbox_pb2 as pb
from clawbox_client.v1 import sandbox_pb2_grpc, system_pb2, system_pb2_grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

UNLIMITED = {"resources": {"timeout_ms": 60_000, "fuel": 100_000_000_000}}
"""Capabilities of a run that goes on until somebody ends it."""


@dataclass(frozen=True)
class Refusal:
    """How a call was refused: what a client sees, taken apart."""

    code: str
    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str, str], ...] = ()
    """(field, rule, description)"""
    retry_after: float | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """Status code and reason."""
        return self.code, self.reason

    @property
    def broken_rules(self) -> list[tuple[str, str]]:
        """Field and rule of each violation."""
        return [(path, rule) for path, rule, _ in self.violations]


def refusal(error: Any) -> Refusal:
    """Read a grpc.RpcError of a call, as google.rpc.Status has it."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status.ParseFromString(value)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return Refusal(
        error.code().name,
        info.reason,
        error.details() or "",
        dict(info.metadata),
        tuple((v.field, v.reason, v.description) for v in bad.field_violations),
        retry_after,
    )


def refused(call: Callable[[], object]) -> Refusal:
    """How ``call`` is refused; fails when it is not."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return refusal(error)
    raise AssertionError(f"the call was not refused: {answer!r}"[:2000])


class Caller:
    """One connection to one server, as one principal. Closing it ends its calls."""

    def __init__(
        self, address: str, token: str | None, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        self.channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self.metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self.sandbox = sandbox_pb2_grpc.SandboxStub(self.channel)
        self.system = system_pb2_grpc.SystemStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def execute(
        self, tool: str, params_json: str | None = "null", *, within: float = 60, **fields: Any
    ) -> pb.ExecuteResponse:
        """Run a tool; raises grpc.RpcError."""
        request = pb.ExecuteRequest(tool=tool, **fields)
        if params_json is not None:
            request.params_json = params_json
        return self.sandbox.Execute(request, metadata=self.metadata, timeout=within)

    def begin(self, tool: str, params_json: str = "null", *, within: float = 60, **fields: Any) -> Any:
        """Begin a run in the background; returns the call, whose ``result()`` waits."""
        request = pb.ExecuteRequest(tool=tool, params_json=params_json, **fields)
        return self.sandbox.Execute.future(request, metadata=self.metadata, timeout=within)

    def stream(self, tool: str, params_json: str = "null", *, within: float = 60, **fields: Any) -> Any:
        """Begin a run whose events are streamed; returns the call, an iterator."""
        request = pb.ExecuteRequest(tool=tool, params_json=params_json, **fields)
        return self.sandbox.ExecuteStream(
            pb.ExecuteStreamRequest(execute=request), metadata=self.metadata, timeout=within
        )

    def upload(
        self, name: str, module: bytes, manifest: dict[str, Any] | None = None, **fields: Any
    ) -> pb.Tool:
        """Upload a tool in pieces of 64 KiB; raises grpc.RpcError."""
        return self.send(upload_messages(name, module, manifest, **fields))

    def send(self, messages: Iterable[pb.UploadToolRequest], within: float = 60) -> pb.Tool:
        """Send the messages of an upload as they are; raises grpc.RpcError."""
        return self.sandbox.UploadTool(iter(messages), metadata=self.metadata, timeout=within)

    def delete(self, name: str) -> None:
        """Delete a tool; raises grpc.RpcError."""
        self.sandbox.DeleteTool(pb.DeleteToolRequest(name=name), metadata=self.metadata, timeout=30)

    def tool(self, name: str) -> pb.Tool:
        """What the server knows of a tool; raises grpc.RpcError."""
        return self.sandbox.GetTool(pb.GetToolRequest(name=name), metadata=self.metadata, timeout=30)

    def tools(self) -> list[str]:
        """Names of the tools that this caller sees."""
        request = pb.ListToolsRequest(page_size=1000)
        reply = self.sandbox.ListTools(request, metadata=self.metadata, timeout=30)
        return [tool.name for tool in reply.tools]

    def status(self) -> system_pb2.GetStatusResponse:
        """What the server says of itself."""
        return self.system.GetStatus(system_pb2.GetStatusRequest(), metadata=self.metadata, timeout=30)

    @contextlib.contextmanager
    def audit(self, after: int | None = None, **fields: Any) -> Iterator[Iterator[system_pb2.AuditRow]]:
        """Audit rows as they come; ``after`` 0: from the first."""
        request = system_pb2.WatchAuditRequest(after_sequence=after, **fields)
        call = self.system.WatchAudit(request, metadata=self.metadata, timeout=60)
        try:
            yield (message.row for message in call)
        finally:
            call.cancel()


def upload_messages(
    name: str,
    module: bytes,
    manifest: dict[str, Any] | None = None,
    *,
    size_bytes: int | None = None,
    **fields: Any,
) -> Iterator[pb.UploadToolRequest]:
    """What a client sends to upload ``module``."""
    start = pb.UploadToolStart(
        name=name, size_bytes=len(module) if size_bytes is None else size_bytes, **fields
    )
    if manifest is not None:
        json_format.ParseDict(manifest, start.manifest)
    yield pb.UploadToolRequest(start=start)
    for at in range(0, len(module), 64 << 10):
        yield pb.UploadToolRequest(chunk=module[at : at + (64 << 10)])
