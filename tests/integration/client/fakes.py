"""A real gRPC server whose services answer what a test tells them to."""

# ruff: noqa: N802 - the names of RPCs

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from clawbox_client.v1 import (
    containers_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.client.container_fakes import FakeContainers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TOKEN = "t0ken-for-tests"


class Refusal(Exception):  # noqa: N818 - no error of the program's
    """Makes a fake answer an error, with details as clawbox sends them."""

    def __init__(self, code: grpc.StatusCode, message: str, reason: str = "", **metadata: str) -> None:
        self.code = code
        self.message = message
        self.details: list[Any] = []
        if reason:
            self.details.append(
                error_details_pb2.ErrorInfo(reason=reason, domain="clawbox.dev", metadata=metadata)
            )
        super().__init__(message)

    def with_violation(self, field_path: str, description: str, rule: str) -> Refusal:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=field_path, description=description, reason=rule)
        self.details.append(bad)
        return self

    def with_retry(self, seconds: float) -> Refusal:
        delay = Duration()
        delay.FromMilliseconds(round(seconds * 1000))
        self.details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return self

    async def send(self, context: Any) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        trailers: list[tuple[str, str | bytes]] = [("x-request-id", "req-1")]
        if self.details:
            trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        context.set_trailing_metadata(tuple(trailers))
        await context.abort(self.code, self.message)


@dataclass
class Seen:
    """One call as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    seconds_left: float | None


@dataclass
class Uploaded:
    start: sandbox_pb2.UploadToolStart | None = None
    chunk_sizes: list[int] = field(default_factory=list)
    sha256: str = ""


class FakeServer(
    sandbox_pb2_grpc.SandboxServicer, system_pb2_grpc.SystemServicer, health_pb2_grpc.HealthServicer
):
    """All services. ``refuse`` says which method answers which errors, one for each call."""

    def __init__(self) -> None:
        self.address = ""
        self.seen: list[Seen] = []
        self.refuse: dict[str, list[Refusal]] = {}
        self.tools: dict[str, sandbox_pb2.Tool] = {}
        self.uploaded = Uploaded()
        self.execute: Callable[[sandbox_pb2.ExecuteRequest], sandbox_pb2.ExecuteResponse] = _echo
        self.events: list[sandbox_pb2.ExecuteStreamResponse] = []
        self.go_on = asyncio.Event()
        """Streams wait for this before their last message."""
        self.stream_ended = asyncio.Event()
        self.started = asyncio.Event()
        self.audit_rows: list[system_pb2.AuditRow] = []
        self.containers = FakeContainers(self._begin, Refusal)
        self.health = health_pb2.HealthCheckResponse.SERVING

    def calls(self, method: str) -> list[Seen]:
        return [one for one in self.seen if one.method == method]

    async def _begin(self, method: str, request: Any, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        self.seen.append(Seen(method, request, metadata, context.time_remaining()))
        if refusals := self.refuse.get(method):
            await refusals.pop(0).send(context)
        if method != "Check" and metadata.get("authorization") != f"Bearer {TOKEN}":
            reason = "TOKEN_INVALID" if "authorization" in metadata else "TOKEN_MISSING"
            await Refusal(grpc.StatusCode.UNAUTHENTICATED, "no token that is known here", reason).send(
                context
            )

    async def Execute(self, request, context):
        await self._begin("Execute", request, context)
        self.started.set()
        return self.execute(request)

    async def ExecuteStream(self, request, context):
        await self._begin("ExecuteStream", request, context)
        try:
            for event in self.events[:-1]:
                yield event
            self.started.set()
            await self.go_on.wait()
            for event in self.events[-1:]:
                yield event
        finally:
            self.stream_ended.set()

    async def ListTools(self, request, context):
        await self._begin("ListTools", request, context)
        names = sorted(name for name in self.tools if name.startswith(request.name_prefix))
        first = int(request.page_token or 0)
        last = first + (request.page_size or 2)
        return sandbox_pb2.ListToolsResponse(
            tools=[self.tools[name] for name in names[first:last]],
            next_page_token=str(last) if last < len(names) else "",
        )

    async def GetTool(self, request, context):
        await self._begin("GetTool", request, context)
        if request.name not in self.tools:
            await Refusal(
                grpc.StatusCode.NOT_FOUND,
                f"there is no tool {request.name}",
                "TOOL_NOT_FOUND",
                tool=request.name,
            ).send(context)
        return self.tools[request.name]

    async def RegisterTool(self, request, context):
        await self._begin("RegisterTool", request, context)
        name = request.manifest.tool.name
        tool = sandbox_pb2.Tool(name=name, manifest=request.manifest, published=request.published)
        return sandbox_pb2.RegisterToolResponse(tool=tool, created=name not in self.tools)

    async def UploadTool(self, request_iterator, context):
        await self._begin("UploadTool", None, context)
        digest = hashlib.sha256()
        async for message in request_iterator:
            if message.HasField("start"):
                self.uploaded.start = message.start
                if message.start.name in self.tools and not message.start.replace:
                    await Refusal(grpc.StatusCode.ALREADY_EXISTS, "it exists", "TOOL_EXISTS").send(context)
            else:
                self.uploaded.chunk_sizes.append(len(message.chunk))
                digest.update(message.chunk)
        self.uploaded.sha256 = digest.hexdigest()
        start = self.uploaded.start
        if start is None or sum(self.uploaded.chunk_sizes) != start.size_bytes:
            await Refusal(grpc.StatusCode.INVALID_ARGUMENT, "too few bytes", "INVALID_UPLOAD").send(context)
        assert start is not None
        return sandbox_pb2.Tool(name=start.name, size_bytes=start.size_bytes, manifest=start.manifest)

    async def DeleteTool(self, request, context):
        await self._begin("DeleteTool", request, context)
        self.tools.pop(request.name, None)
        return sandbox_pb2.DeleteToolResponse()

    async def ReloadTools(self, request, context):
        await self._begin("ReloadTools", request, context)
        return sandbox_pb2.ReloadToolsResponse(
            reloaded=2,
            tools=sorted(self.tools),
            failures=[sandbox_pb2.ToolFailure(name="bad", error="no _start", previous_in_service=True)],
        )

    async def GetStatus(self, request, context):
        await self._begin("GetStatus", request, context)
        reply = system_pb2.GetStatusResponse(status="ok", version="9.9", running_executions=3)
        reply.start_time.FromJsonString("2026-01-02T03:04:05Z")
        reply.uptime.FromSeconds(61)
        reply.components.add(name="wasm_engine", state=system_pb2.COMPONENT_STATE_OK, detail="2 workers")
        reply.enforcements.add(
            name="seccomp", in_force=False, detail="no [bold]kernel[/bold] \x1b[31msupport"
        )
        return reply

    async def WatchAudit(self, request, context):
        await self._begin("WatchAudit", request, context)
        for row in self.audit_rows:
            if row.sequence > request.after_sequence:
                yield system_pb2.WatchAuditResponse(row=row)

    async def Check(self, request, context):
        await self._begin("Check", request, context)
        if request.service == "nobody":
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self.health)


def _echo(request: sandbox_pb2.ExecuteRequest) -> sandbox_pb2.ExecuteResponse:
    return sandbox_pb2.ExecuteResponse(
        request_id=request.request_id or "made",
        outcome=sandbox_pb2.OUTCOME_OK,
        output_json=request.params_json,
        metadata=sandbox_pb2.ExecutionMetadata(duration_us=5),
    )


@asynccontextmanager
async def serving(
    credentials: grpc.ServerCredentials | None = None, address: str = "127.0.0.1:0"
) -> AsyncIterator[FakeServer]:
    """A fake server on a free port of loopback, or on a Unix socket."""
    fake = FakeServer()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    sandbox_pb2_grpc.add_SandboxServicer_to_server(fake, server)
    containers_pb2_grpc.add_ContainersServicer_to_server(fake.containers, server)
    system_pb2_grpc.add_SystemServicer_to_server(fake, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    fake.address = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    await server.start()
    try:
        yield fake
    finally:
        fake.go_on.set()
        await fake.containers.close()
        await server.stop(None)


def run_events(
    *written: bytes,
    outcome: sandbox_pb2.Outcome.ValueType = sandbox_pb2.OUTCOME_OK,
    output_json: str | None = "null",
    **more: Any,
):
    """The events of a run that writes these to stdout and then ends."""
    events = [
        sandbox_pb2.ExecuteStreamResponse(
            started=sandbox_pb2.ExecutionStarted(request_id="r", tool_digest="d" * 64)
        )
    ]
    offset = 0
    for data in written:
        events.append(
            sandbox_pb2.ExecuteStreamResponse(stdout=sandbox_pb2.OutputChunk(data=data, offset=offset))
        )
        offset += len(data)
    result = sandbox_pb2.ExecuteResponse(request_id="r", outcome=outcome, **more)
    if output_json is not None:
        result.output_json = output_json
    events.append(sandbox_pb2.ExecuteStreamResponse(result=result))
    return events
