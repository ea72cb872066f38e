"""A real server with scripted servicers of all four arities, and clients for it."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from clawbox_client.v1 import (
    containers_pb2,
    containers_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc

from clawbox.auth import Principal, PrincipalLimits, TokenTable
from clawbox.config import ServerSettings
from clawbox.rpc.server import RpcServer
from clawbox.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from clawbox.rpc.access import Refusal

ADMIN = "admin-token-0123456789"
READER = "reader-token-0123456789"
NARROW = "narrow-token-0123456789"

HANGS_SECONDS = 30.0
"""What takes so long never comes. No limit on how long anything may take: the machine may be busy."""


def metadata(token: str | None = ADMIN, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (*((("authorization", f"Bearer {token}"),) if token else ()), *more)


def token_table() -> TokenTable:
    def row(token: str, principal: Principal) -> tuple[str, Principal]:
        return hashlib.sha256(token.encode()).hexdigest(), principal

    return TokenTable(
        [
            row(ADMIN, Principal("admin", frozenset("*"))),
            row(READER, Principal("reader", frozenset(("sandbox:read",)))),
            row(
                NARROW,
                Principal("narrow", frozenset(("sandbox:execute",)), PrincipalLimits(max_streams=1)),
            ),
        ]
    )


class ScriptedSandbox(sandbox_pb2_grpc.SandboxServicer):
    """Each test says what the handlers do."""

    def __init__(self) -> None:
        self.execute: Callable[[Any], Awaitable[sandbox_pb2.ExecuteResponse]] = self._ok
        self.stream: Callable[[Any], AsyncIterator[sandbox_pb2.ExecuteStreamResponse]] = self._one
        self.upload: Callable[[Any], Awaitable[sandbox_pb2.Tool]] = self._count
        self.decoded = 0

    async def _ok(self, request: Any) -> sandbox_pb2.ExecuteResponse:
        return sandbox_pb2.ExecuteResponse(outcome=sandbox_pb2.OUTCOME_OK, message=request.tool)

    async def _one(self, request: Any) -> AsyncIterator[sandbox_pb2.ExecuteStreamResponse]:
        yield sandbox_pb2.ExecuteStreamResponse(
            result=sandbox_pb2.ExecuteResponse(message=request.execute.tool)
        )

    async def _count(self, requests: Any) -> sandbox_pb2.Tool:
        size = 0
        async for request in requests:
            size += len(request.chunk)
        return sandbox_pb2.Tool(size_bytes=size)

    async def Execute(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        return await self.execute(request)

    async def ExecuteStream(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        async for response in self.stream(request):
            yield response

    async def UploadTool(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        return await self.upload(request_iterator)

    async def ListTools(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        return sandbox_pb2.ListToolsResponse(next_page_token="end")

    async def GetTool(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        return sandbox_pb2.Tool(name=request.name)

    async def RegisterTool(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        return sandbox_pb2.RegisterToolResponse()

    async def DeleteTool(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        return sandbox_pb2.DeleteToolResponse()

    async def ReloadTools(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        return sandbox_pb2.ReloadToolsResponse()


class ScriptedSystem(system_pb2_grpc.SystemServicer):
    async def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        return system_pb2.GetStatusResponse(status="ok")

    async def WatchAudit(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        yield system_pb2.WatchAuditResponse(row=system_pb2.AuditRow(sequence=1))
        await asyncio.Event().wait()


def add_exec_to_server(servicer: ScriptedExec, server: Any) -> None:
    """Only the bidirectional method of Containers, which is all that these tests need of it."""
    server.add_registered_method_handlers(
        "clawbox.v1.Containers",
        {
            "Exec": grpc.stream_stream_rpc_method_handler(
                servicer.Exec,
                request_deserializer=containers_pb2.ExecRequest.FromString,
                response_serializer=containers_pb2.ExecResponse.SerializeToString,
            )
        },
    )


class ScriptedExec:
    def __init__(self) -> None:
        self.exec: Callable[[Any], AsyncIterator[containers_pb2.ExecResponse]] = self._echo

    async def _echo(self, requests: Any) -> AsyncIterator[containers_pb2.ExecResponse]:
        async for _ in requests:
            yield containers_pb2.ExecResponse()

    async def Exec(self, requests: Any, context: Any) -> Any:  # noqa: N802 - the method of the API
        async for response in self.exec(requests):
            yield response


@dataclass
class Serving:
    server: RpcServer
    metrics: Metrics
    stack: AsyncExitStack
    refusals: list[Refusal]
    sandbox: ScriptedSandbox = field(default_factory=ScriptedSandbox)
    containers: ScriptedExec = field(default_factory=ScriptedExec)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def channel(self, *options: tuple[str, Any], address: str | None = None) -> Any:
        """A channel with a connection of its own; not typed, because these tests send raw bytes."""
        return await self.stack.enter_async_context(
            grpc.aio.insecure_channel(
                address or self.address, options=[("grpc.use_local_subchannel_pool", 1), *options]
            )
        )

    async def sandbox_stub(self, *options: tuple[str, Any]) -> Any:
        return sandbox_pb2_grpc.SandboxStub(await self.channel(*options))

    async def containers_stub(self) -> Any:
        return containers_pb2_grpc.ContainersStub(await self.channel())

    async def health_stub(self) -> Any:
        return health_pb2_grpc.HealthStub(await self.channel())

    async def system_stub(self) -> Any:
        return system_pb2_grpc.SystemStub(await self.channel())

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Serving]:
    metrics = Metrics()
    values: dict[str, Any] = {"port": 0, "grace_ms": 2_000, **settings}
    refusals: list[Refusal] = []
    server = RpcServer(ServerSettings(**values), token_table(), metrics, on_refusal=refusals.append)
    async with AsyncExitStack() as stack:
        running = Serving(server, metrics, stack, refusals)
        server.serve(sandbox_pb2_grpc.add_SandboxServicer_to_server, running.sandbox)
        server.serve(system_pb2_grpc.add_SystemServicer_to_server, ScriptedSystem())
        server.serve(add_exec_to_server, running.containers)
        async with server:
            await server.start()
            server.health.set("clawbox.v1.Sandbox", serving=True)
            server.health.set("clawbox.v1.System", serving=True)
            yield running


@pytest.fixture
async def running() -> AsyncIterator[Serving]:
    async with serving() as result:
        yield result


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call, or the iteration over one, ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(_end_of(call), HANGS_SECONDS)
    return caught.value


async def _end_of(call: Any) -> None:
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call


@dataclass(frozen=True)
class Details:
    """What is in ``grpc-status-details-bin``."""

    status: status_pb2.Status
    info: error_details_pb2.ErrorInfo
    retry: error_details_pb2.RetryInfo | None = None
    resource: error_details_pb2.ResourceInfo | None = None
    precondition: error_details_pb2.PreconditionFailure | None = None
    bad_request: error_details_pb2.BadRequest | None = None

    @property
    def reason(self) -> str:
        return self.info.reason


_KINDS = {
    "info": error_details_pb2.ErrorInfo,
    "retry": error_details_pb2.RetryInfo,
    "resource": error_details_pb2.ResourceInfo,
    "precondition": error_details_pb2.PreconditionFailure,
    "bad_request": error_details_pb2.BadRequest,
}


def parse_details(raw: bytes) -> Details:
    status = status_pb2.Status.FromString(raw)
    found: dict[str, Any] = {}
    for packed in status.details:
        for name, kind in _KINDS.items():
            message = kind()
            if packed.Unpack(message):
                found[name] = message
    return Details(status, **found)


def details(error: grpc.aio.AioRpcError) -> Details:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            return parse_details(value)
    raise AssertionError(f"no details in {error!r}")
