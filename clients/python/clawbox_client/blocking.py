"""The blocking client: the same methods as the asyncio one, for threads and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2

from clawbox_client import requests, results, system, tools
from clawbox_client.blocking_calls import SyncStream, unary
from clawbox_client.blocking_containers import SyncContainers
from clawbox_client.channel import authorized, open_channel
from clawbox_client.connection import (
    DEFAULT_ADDRESS,
    DEFAULT_DEADLINE,
    DEFAULT_MAX_MESSAGE_BYTES,
    Connection,
    Tls,
    TokenSource,
)
from clawbox_client.errors import DeadlineExceeded, NotFound, Unavailable, from_rpc_error
from clawbox_client.v1 import (
    containers_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from clawbox_client.requests import RunOptions


class SyncClient(SyncContainers):
    """A connection to one server that any number of threads may share.

    ``address``: ``host:port``, ``[IPv6]:port`` or ``unix:/path``. ``token``: the bearer token, or a function
    that gives it for each call; ``token_file``: a file that holds it. ``tls``: how TLS is done.
    ``insecure``: plaintext to another machine, which shows the token to everybody on the way.
    ``deadline``: seconds that a call may take when the call says nothing else; None is for ever.
    What goes on until it ends (``watch_audit``, ``watch_containers``, ``wait_container``, ``exec``, ``logs``,
    ``stats``, files) has no deadline unless the call names one.

    Raises ValueError and OSError for arguments that cannot be used; nothing connects before the first call.
    Every method that calls the server raises a ClawboxError.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | TokenSource | None = None,
        token_file: str | os.PathLike[str] | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
        deadline: float | None = DEFAULT_DEADLINE,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        connection = Connection.make(
            address,
            token=token,
            token_file=token_file,
            tls=tls,
            insecure=insecure,
            max_message_bytes=max_message_bytes,
        )
        self.address = address
        self._deadline = deadline
        self._channel = open_channel(connection)
        channel = authorized(self._channel, connection.token)
        self.sandbox = sandbox_pb2_grpc.SandboxStub(channel)
        """The generated stub, token included, for what has no method here. It raises grpc's own errors."""
        self.containers = containers_pb2_grpc.ContainersStub(channel)
        """The generated stub, token included."""
        self.system = system_pb2_grpc.SystemStub(channel)
        """The generated stub, token included."""
        self._check_health: grpc.UnaryUnaryMultiCallable[
            health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        ] = (
            # The published stubs of grpc_health leave the method out. It needs no token and gets none.
            self._channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and every call on it."""
        self._channel.close()

    def execute(
        self,
        tool: str,
        params: results.Json = None,
        *,
        params_json: str | None = None,
        **options: Unpack[RunOptions],
    ) -> results.ExecutionResult:
        """Runs a tool once. What the tool does is in the result; errors are for runs that could not begin.

        ``params`` is any JSON value, ``params_json`` is JSON text that is sent as it is.
        """
        request = requests.execute(tool, params, params_json, options)
        deadline = requests.run_deadline(options, self._deadline)
        return results.execution_result(unary(self.sandbox.Execute, request, deadline))

    def execute_stream(
        self,
        tool: str,
        params: results.Json = None,
        *,
        params_json: str | None = None,
        **options: Unpack[RunOptions],
    ) -> SyncStream[results.ExecutionEvent]:
        """Runs a tool once and gives what it writes as it writes it; the last event is the result."""
        request = requests.execute(tool, params, params_json, options)
        call = self.sandbox.ExecuteStream(
            sandbox_pb2.ExecuteStreamRequest(execute=request),
            timeout=requests.run_deadline(options, self._deadline),
        )
        return SyncStream(call, results.execution_event)

    def run_python(
        self,
        code: str,
        input: results.Json = None,  # noqa: A002 - what the snippet sees it as
        *,
        tool: str = "python",
        **options: Unpack[RunOptions],
    ) -> results.CodeResult:
        """Runs Python code in a fresh interpreter.

        The code finds ``input`` as a variable, and what it assigns to ``result`` returns.
        """
        return self._run_code(tool, code, input, options)

    def run_javascript(
        self,
        code: str,
        input: results.Json = None,  # noqa: A002 - what the snippet sees it as
        *,
        tool: str = "javascript",
        **options: Unpack[RunOptions],
    ) -> results.CodeResult:
        """Runs JavaScript in a fresh engine.

        The code finds ``input`` as a variable, and what it assigns to ``result`` returns.
        """
        return self._run_code(tool, code, input, options)

    def list_tools(
        self, *, name_prefix: str = "", page_size: int = 0, deadline: float | None = None
    ) -> Iterator[tools.Tool]:
        """Every tool that the caller may run, by name; fetches pages as they are needed."""
        page_token = ""
        while True:
            page = unary(
                self.sandbox.ListTools,
                requests.list_tools(name_prefix, page_size, page_token),
                self._within(deadline),
            )
            for message in page.tools:
                yield tools.tool(message)
            page_token = page.next_page_token
            if not page_token:
                return

    def get_tool(self, name: str, *, deadline: float | None = None) -> tools.Tool:
        """One tool."""
        request = sandbox_pb2.GetToolRequest(name=name)
        return tools.tool(unary(self.sandbox.GetTool, request, self._within(deadline)))

    def register_tool(
        self, manifest: tools.Manifest, *, published: bool | None = None, deadline: float | None = None
    ) -> tools.Registration:
        """Gives a manifest to a tool whose module is there. Raises ValueError for what is no manifest."""
        request = requests.register_tool(manifest, published=published)
        reply = unary(self.sandbox.RegisterTool, request, self._within(deadline))
        return tools.Registration(tools.tool(reply.tool), reply.created)

    def upload_tool(
        self,
        name: str,
        source: tools.BlockingSource,
        *,
        manifest: tools.Manifest | None = None,
        size_bytes: int | None = None,
        replace: bool = False,
        published: bool | None = None,
        progress: tools.Progress | None = None,
        deadline: float = requests.UPLOAD_DEADLINE,
    ) -> tools.Tool:
        """Uploads a module or component; the server compiles it before it answers.

        ``size_bytes`` is needed when ``source`` is neither a path nor bytes. ``published``: whether other
        principals see it (only an administrator may say).
        Raises OSError, and ValueError for what is no manifest.
        """
        upload = tools.Upload(source, size_bytes)
        start = requests.upload_start(name, upload, manifest, replace=replace, published=published)
        call = self.sandbox.UploadTool.future(upload.messages(start, progress), timeout=deadline)
        try:
            reply = call.result()
        except grpc.RpcError as error:
            raise upload.failure or from_rpc_error(error) from error
        finally:
            call.cancel()  # when interrupted; it does nothing to a call that has ended
        if upload.failure is not None:
            raise upload.failure
        return tools.tool(reply)

    def delete_tool(self, name: str, *, deadline: float | None = None) -> None:
        """Deletes a tool; calls that run it finish."""
        unary(self.sandbox.DeleteTool, sandbox_pb2.DeleteToolRequest(name=name), self._within(deadline))

    def reload_tools(self, *, deadline: float = requests.UPLOAD_DEADLINE) -> tools.ReloadReport:
        """Has the server read its tool folder again."""
        request = sandbox_pb2.ReloadToolsRequest()
        return tools.reload_report(unary(self.sandbox.ReloadTools, request, deadline))

    def status(self, *, deadline: float | None = None) -> system.Status:
        """What the server is and how its parts do."""
        request = system_pb2.GetStatusRequest()
        return system.status(unary(self.system.GetStatus, request, self._within(deadline)))

    def health(
        self, service: str = "", *, wait: bool = False, deadline: float | None = None
    ) -> system.Health:
        """Whether the server, or one service of it (``clawbox.v1.Sandbox``), serves. Needs no token.

        ``wait`` waits, until the deadline, for a server that does not listen yet.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = unary(self._check_health, request, self._within(deadline), wait=wait)
        except NotFound:
            return system.Health.SERVICE_UNKNOWN
        return system.Health(reply.status)

    def is_serving(self, service: str = "", *, deadline: float | None = None) -> bool:
        """Whether the server can be reached and says that it serves. Raises nothing of the network's."""
        try:
            return self.health(service, deadline=deadline) is system.Health.SERVING
        except (Unavailable, DeadlineExceeded):
            return False

    def watch_audit(
        self, *, after_sequence: int | None = None, kinds: Sequence[str] = (), deadline: float | None = None
    ) -> SyncStream[system.AuditRow]:
        """Audit rows as they are written; with ``after_sequence``, first those kept with a higher number."""
        call = self.system.WatchAudit(requests.watch_audit(after_sequence, kinds), timeout=deadline)
        return SyncStream(call, lambda message: system.audit_row(message.row))

    def _run_code(
        self, tool: str, code: str, input_value: results.Json, options: RunOptions
    ) -> results.CodeResult:
        request = requests.run_code(tool, code, input_value, options)
        deadline = requests.run_deadline(options, self._deadline)
        reply = unary(self.sandbox.Execute, request, deadline)
        return results.code_result(results.execution_result(reply))
