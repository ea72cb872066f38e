"""The Sandbox service: messages in, messages out, and nothing decided here."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from clawbox_client.v1 import sandbox_pb2, sandbox_pb2_grpc

from clawbox.audit import Audit, recorded
from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.rpc import convert, convert_capabilities
from clawbox.rpc.call import Call, current
from clawbox.rpc.paging import page_size, page_start, page_token
from clawbox.wasm.executor import ExecuteCall, Execution, ExecutionEvent, Executor, Started
from clawbox.wasm.model import LogEntry, OutputChunk, OutputStream
from clawbox.wasm.uploads import UploadStart

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from clawbox.policy import ToolCeiling
    from clawbox.rpc.call import Context
    from clawbox.wasm.catalog import Catalog

MAX_CHUNK_BYTES = 64 << 10
"""Of a message of ExecuteStream."""
MAX_UPLOAD_CHUNK_BYTES = 1 << 20
UPLOAD_START_SECONDS = 30.0
"""How long an upload may take to say what it is …"""
UPLOAD_BYTES_PER_SECOND = 64 << 10
"""… and how slow it may be from then on: it holds its tool's name, and a file."""
MAX_BUFFERED_BYTES = 4 << 20
"""Output of a run that waits for its reader; a reader further behind is cut, and its run killed."""
_ENTRY_BYTES = 256  # what an event costs besides its text


class SandboxServicer(sandbox_pb2_grpc.SandboxServicer):
    """Runs tools and keeps them."""

    def __init__(self, executor: Executor, catalog: Catalog, audit: Audit, ceiling: ToolCeiling) -> None:
        self._executor = executor
        self._catalog = catalog
        self._audit = audit
        self._ceiling = ceiling

    async def Execute(  # noqa: N802
        self, request: sandbox_pb2.ExecuteRequest, _context: Context
    ) -> sandbox_pb2.ExecuteResponse:
        """Run a tool once."""
        call = current()
        wanted = await self._execute_call(request, call)
        execution = await self._executor.execute(wanted, call.principal)
        return await _execute_response(request, execution, call, streamed=False)

    async def ExecuteStream(  # noqa: N802
        self, request: sandbox_pb2.ExecuteStreamRequest, _context: Context
    ) -> AsyncGenerator[sandbox_pb2.ExecuteStreamResponse]:
        """Run a tool once, and stream what it writes."""
        call = current()
        wanted = await self._execute_call(request.execute, call)
        events = _Events()
        run = asyncio.create_task(self._executor.execute(wanted, call.principal, events.put))
        run.add_done_callback(lambda _: events.end())
        try:
            async for event in events:
                yield _stream_event(event, call)
            execution = await run
            result = await _execute_response(request.execute, execution, call, streamed=True)
            yield sandbox_pb2.ExecuteStreamResponse(result=result)
        finally:
            # Also when the reader left or was cut: the run ends before the call does.
            run.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await run

    async def ListTools(  # noqa: N802
        self, request: sandbox_pb2.ListToolsRequest, _context: Context
    ) -> sandbox_pb2.ListToolsResponse:
        """List the tools that the caller may run."""
        size = page_size(request.page_size)
        after = page_start(request.page_token, "ListTools", request.name_prefix)
        entries = self._catalog.list(
            current().principal, name_prefix=request.name_prefix, after=after, limit=size + 1
        )
        response = sandbox_pb2.ListToolsResponse()
        for entry in entries[:size]:
            response.tools.append(convert.tool(entry, self._ceiling))
            await asyncio.sleep(0)  # a page of large schemas must not hold up others
        if len(entries) > size:
            response.next_page_token = page_token("ListTools", request.name_prefix, entries[size - 1].name)
        return response

    async def GetTool(  # noqa: N802
        self, request: sandbox_pb2.GetToolRequest, _context: Context
    ) -> sandbox_pb2.Tool:
        """Return one tool."""
        return convert.tool(self._catalog.get(_set("name", request.name), current().principal), self._ceiling)

    async def RegisterTool(  # noqa: N802
        self, request: sandbox_pb2.RegisterToolRequest, _context: Context
    ) -> sandbox_pb2.RegisterToolResponse:
        """Set the manifest of a tool."""
        call = current()
        published = request.published if request.HasField("published") else None
        with self._recorded("tool_register", call, tool=request.manifest.tool.name, published=published):
            manifest = await asyncio.to_thread(
                convert.manifest, request.manifest, any_host=self._ceiling.any_host
            )
            entry, created = await self._catalog.register(manifest, call.principal, published)
        return sandbox_pb2.RegisterToolResponse(tool=convert.tool(entry, self._ceiling), created=created)

    async def UploadTool(  # noqa: N802
        self, request_iterator: AsyncIterator[sandbox_pb2.UploadToolRequest], _context: Context
    ) -> sandbox_pb2.Tool:
        """Receive a module and, with it, its manifest."""
        call = current()
        with self._recorded("tool_upload", call) as record:
            deadline = asyncio.get_running_loop().time() + UPLOAD_START_SECONDS
            start = await self._upload_start(request_iterator, deadline)
            deadline += max(start.size_bytes, 0) / UPLOAD_BYTES_PER_SECOND
            record.fields |= {
                "tool": start.name,
                "size_bytes": start.size_bytes,
                "replace": start.replace,
                "published": start.published,
            }
            entry = await self._catalog.upload(start, _chunks(request_iterator, deadline), call.principal)
            if entry.code is not None:
                record.fields["digest"] = entry.code.digest
        return convert.tool(entry, self._ceiling)

    async def DeleteTool(  # noqa: N802
        self, request: sandbox_pb2.DeleteToolRequest, _context: Context
    ) -> sandbox_pb2.DeleteToolResponse:
        """Delete a tool."""
        call = current()
        with self._recorded("tool_delete", call, tool=request.name):
            await self._catalog.delete(_set("name", request.name), call.principal)
        return sandbox_pb2.DeleteToolResponse()

    async def ReloadTools(  # noqa: N802
        self, _request: sandbox_pb2.ReloadToolsRequest, _context: Context
    ) -> sandbox_pb2.ReloadToolsResponse:
        """Read the tool folder again."""
        call = current()
        with self._recorded("tool_reload", call) as record:
            report = await self._catalog.reload(call.principal)
            record.fields |= {"reloaded": report.reloaded, "failures": len(report.failures)}
        return convert.reload_report(report)

    async def _execute_call(self, request: sandbox_pb2.ExecuteRequest, call: Call) -> ExecuteCall:
        return ExecuteCall(
            request_id=call.adopt_request_id(request.request_id),
            tool=_set("tool", request.tool),
            params=await convert.params(request),
            requested=convert_capabilities.requested(request, any_host=self._ceiling.any_host),
            agent_id=request.agent_id,
        )

    async def _upload_start(
        self, messages: AsyncIterator[sandbox_pb2.UploadToolRequest], deadline: float
    ) -> UploadStart:
        first = await _next_part(messages, deadline)
        if first is None or first.WhichOneof("part") != "start":
            raise ClawboxError(Reason.INVALID_UPLOAD, "the first message must be {part}", part="start")
        start = first.start
        manifest = None
        if start.HasField("manifest"):
            manifest = await asyncio.to_thread(
                convert.manifest, start.manifest, any_host=self._ceiling.any_host
            )
        return UploadStart(
            name=start.name,
            size_bytes=start.size_bytes,
            manifest=manifest,
            sha256=start.sha256,
            replace=start.replace,
            published=start.published if start.HasField("published") else None,
        )

    def _recorded(self, kind: str, call: Call, **fields: object) -> Any:
        return recorded(
            self._audit, kind, principal=call.principal.name, request_id=call.request_id, **fields
        )


def _set(field: str, name: str) -> str:
    """A name that a request must have."""
    if not name:
        raise invalid_field(field, "must be set", "required")
    return name


class _Events:
    """What a run does, kept for its reader: bytes of one stream together, and never more than a limit."""

    def __init__(self) -> None:
        self._events: deque[ExecutionEvent | _Bytes] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._ended = False
        self._overrun = False

    def put(self, event: ExecutionEvent) -> None:
        """Keep an event."""
        if self._overrun:
            return
        if isinstance(event, OutputChunk):
            self._put_bytes(event)
        else:
            self._size += _ENTRY_BYTES + (len(event.message) if isinstance(event, LogEntry) else 0)
            self._events.append(event)
        if self._size > MAX_BUFFERED_BYTES:
            self._overrun = True
            self._events.clear()
        self._news.set()

    def _put_bytes(self, chunk: OutputChunk) -> None:
        last = self._events[-1] if self._events else None
        if not (isinstance(last, _Bytes) and last.stream is chunk.stream):
            last = _Bytes(chunk.stream, chunk.offset)
            self._events.append(last)
            self._size += _ENTRY_BYTES
        last.data += chunk.data
        self._size += len(chunk.data)

    def end(self) -> None:
        """No more events come."""
        self._ended = True
        self._news.set()

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> ExecutionEvent:
        while not self._events:
            if self._overrun:
                raise ClawboxError(
                    Reason.SLOW_READER,
                    "more than {bytes} bytes of output waited to be read; the run was killed",
                    bytes=MAX_BUFFERED_BYTES,
                )
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        first = self._events[0]
        if not isinstance(first, _Bytes):
            self._events.popleft()
            self._size -= _ENTRY_BYTES + (len(first.message) if isinstance(first, LogEntry) else 0)
            return first
        data = bytes(first.data[:MAX_CHUNK_BYTES])
        chunk = OutputChunk(first.stream, data, first.offset)
        del first.data[: len(data)]
        first.offset += len(data)
        self._size -= len(data)
        if not first.data:
            self._events.popleft()
            self._size -= _ENTRY_BYTES
        return chunk


class _Bytes:
    """Bytes of one stream that came one after the other."""

    def __init__(self, stream: OutputStream, offset: int) -> None:
        self.stream = stream
        self.offset = offset
        self.data = bytearray()


async def _execute_response(
    request: sandbox_pb2.ExecuteRequest, execution: Execution, call: Call, *, streamed: bool
) -> sandbox_pb2.ExecuteResponse:
    result = execution.scanned.result
    response = sandbox_pb2.ExecuteResponse(
        request_id=call.request_id,
        outcome=convert.outcome(result.outcome),
        message=result.message,
        metadata=convert.execution_metadata(execution, queued_us=call.queued_us, streamed=streamed),
    )
    as_text = request.WhichOneof("input") == "params_json"
    await convert.set_output(response, result.output, execution.scanned.form, as_text=as_text)
    return response


def _stream_event(event: ExecutionEvent, call: Call) -> sandbox_pb2.ExecuteStreamResponse:
    match event:
        case Started():
            started = sandbox_pb2.ExecutionStarted(request_id=call.request_id, tool_digest=event.tool_digest)
            return sandbox_pb2.ExecuteStreamResponse(started=started)
        case LogEntry():
            return sandbox_pb2.ExecuteStreamResponse(log=convert.log_entry(event))
        case OutputChunk():
            return convert.chunk_event(event)


async def _next_part(
    messages: AsyncIterator[sandbox_pb2.UploadToolRequest], deadline: float
) -> sandbox_pb2.UploadToolRequest | None:
    """The next message of an upload, None at its end; ``deadline`` is by the loop's clock."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(messages, None)
    except TimeoutError:
        raise ClawboxError(
            Reason.DEADLINE,
            "the upload is slower than {bytes} bytes a second",
            bytes=UPLOAD_BYTES_PER_SECOND,
        ) from None


async def _chunks(
    messages: AsyncIterator[sandbox_pb2.UploadToolRequest], deadline: float
) -> AsyncGenerator[bytes]:
    while (message := await _next_part(messages, deadline)) is not None:
        if message.WhichOneof("part") != "chunk":
            raise ClawboxError(
                Reason.INVALID_UPLOAD, "every message after the first must be {part}", part="chunk"
            )
        if len(message.chunk) > MAX_UPLOAD_CHUNK_BYTES:
            raise ClawboxError(
                Reason.INVALID_UPLOAD,
                "a chunk has {size} bytes; the most is {limit}",
                size=len(message.chunk),
                limit=MAX_UPLOAD_CHUNK_BYTES,
            )
        yield message.chunk
