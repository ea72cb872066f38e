"""Processes inside containers: Exec and RunCommand."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from clawbox_client.v1 import containers_pb2

from clawbox.containers.execs.events import Exited
from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.rpc import convert_execs
from clawbox.rpc.call import current
from clawbox.rpc.container_methods import ContainerMethods, command_summary, names_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from clawbox.auth import Principal
    from clawbox.containers.execs.calls import ExecCall, RunCall
    from clawbox.containers.execs.events import ExecEvent, RunResult
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.record import Container
    from clawbox.rpc.call import Context
    from clawbox.telemetry import Metrics

MAX_STDIN_BYTES: Final = 64 << 10
"""Of one message."""
START_SECONDS: Final = 30.0
"""How long a caller may take to say what it starts or attaches to."""
KEEPALIVE_SECONDS: Final = 15.0


class Attached(Protocol):
    """One caller's hold on a process: :class:`clawbox.containers.execs.Exec`."""

    @property
    def exec_id(self) -> str:
        """The process's id."""

    def events(self) -> AsyncGenerator[ExecEvent]:
        """What becomes of it: Started first, Exited last."""

    async def write(self, data: bytes) -> None:
        """Give it input; returns when there is room for more, and does nothing once it has ended."""

    async def close_stdin(self) -> None:
        """No more input comes."""

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal another size. Raises INVALID_FIELD, WRONG_STATE where it has none."""

    async def signal(self, name: str) -> None:
        """Send its process group a signal. Raises INVALID_FIELD for one that is not offered."""

    def detach(self) -> None:
        """This caller is gone: unless another attaches in time, or it was to be kept, it is killed."""


class Execs(Protocol):
    """What runs processes in containers: :class:`clawbox.containers.execs.Execs`."""

    async def start(
        self, container: Container, quarters: Quarters, call: ExecCall, principal: Principal
    ) -> Attached:
        """Start one, or attach to the one that this very call started."""

    def attach(self, exec_id: str, principal: Principal, stdout_offset: int, stderr_offset: int) -> Attached:
        """Go on with one that is there."""

    async def run(self, container: Container, quarters: Quarters, call: RunCall) -> RunResult:
        """Run one to its end; cancelled, it is killed."""


class ExecMethods(ContainerMethods):
    """Methods that run processes."""

    _execs: Execs
    _metrics: Metrics
    _reply_bytes: int

    async def Exec(  # noqa: N802
        self, request_iterator: AsyncIterator[containers_pb2.ExecRequest], _context: Context
    ) -> AsyncGenerator[containers_pb2.ExecResponse]:
        """Run a process with its input and output streamed."""
        process = await self._begin(await _first(request_iterator))
        try:
            events = process.events()
            feeding = asyncio.create_task(_feed(process, request_iterator))
            try:
                async for event in _interleaved(events, feeding):
                    yield convert_execs.event(event)
                    if isinstance(event, Exited):
                        self._metrics.exec_ended("Exec", event.duration_ms)
                        return
            finally:
                feeding.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await feeding
                await events.aclose()
        finally:
            # However the stream ended: it waits for its caller to come again, or is over.
            process.detach()

    async def RunCommand(  # noqa: N802
        self, request: containers_pb2.RunCommandRequest, _context: Context
    ) -> containers_pb2.RunCommandResponse:
        """Run a process to its end."""
        with self._recorded(
            "container_run",
            container_id=request.container_id,
            env_names=names_of(request.env),
            user=request.user,
            **command_summary(request.command),
        ) as record:
            container, quarters = self._place(request.container_id)
            most = min(container.identity.grant.limits.max_output_bytes, self._reply_bytes)
            result = await self._execs.run(container, quarters, convert_execs.run_call(request, most))
            record.fields |= {"exit_code": result.ended.exit_code, "timed_out": result.ended.timed_out}
        self._metrics.exec_ended("RunCommand", result.ended.duration_ms)
        return convert_execs.run_response(result)

    async def _begin(self, first: containers_pb2.ExecRequest) -> Attached:
        """The process that the first message of an Exec is about."""
        principal = current().principal
        match first.WhichOneof("message"):
            case "start":
                start = first.start
                with self._recorded(
                    "container_exec",
                    container_id=start.container_id,
                    env_names=names_of(start.env),
                    user=start.user,
                    tty=start.tty,
                    exec_id=start.exec_id,
                    **command_summary(start.command),
                ) as record:
                    container, quarters = self._place(start.container_id)
                    call = convert_execs.exec_call(start)
                    process = await self._execs.start(container, quarters, call, principal)
                    record.fields["exec_id"] = process.exec_id
                    return process
            case "attach":
                attach = first.attach
                with self._recorded("container_attach", exec_id=attach.exec_id):
                    if not attach.exec_id:
                        raise invalid_field("attach.exec_id", "must be set", "required")
                    return self._execs.attach(
                        attach.exec_id, principal, attach.stdout_offset, attach.stderr_offset
                    )
            case _:
                raise invalid_field("message", "must be start or attach in the first message", "order")

    def _place(self, container_id: str) -> tuple[Container, Quarters]:
        container = self._find(container_id)
        return container, self._manager.quarters(container.container_id)


async def _first(messages: AsyncIterator[containers_pb2.ExecRequest]) -> containers_pb2.ExecRequest:
    try:
        async with asyncio.timeout(START_SECONDS):
            first = await anext(messages, None)
    except TimeoutError:
        raise ClawboxError(
            Reason.DEADLINE, "no message came for {seconds} s", seconds=START_SECONDS
        ) from None
    return containers_pb2.ExecRequest() if first is None else first


async def _feed(process: Attached, messages: AsyncIterator[containers_pb2.ExecRequest]) -> None:
    """Do what the messages after the first say, one after the other.

    The next is read when there is room for it. That no more come closes nothing: a caller that lost its
    stream comes again, and its process's input must not have ended meanwhile.
    """
    async for message in messages:
        match message.WhichOneof("message"):
            case "stdin":
                if len(message.stdin) > MAX_STDIN_BYTES:
                    raise invalid_field("stdin", f"has more than {MAX_STDIN_BYTES} bytes", "max_length")
                await process.write(message.stdin)
            case "close_stdin":
                await process.close_stdin()
            case "resize":
                await process.resize(message.resize.rows, message.resize.columns)
            case "signal":
                await process.signal(message.signal.name)
            case "start" | "attach" as which:
                raise invalid_field(which, "is for the first message only", "order")
            case _:
                raise invalid_field("message", "must be set", "required")


async def _interleaved(
    events: AsyncGenerator[ExecEvent], feeding: asyncio.Task[None]
) -> AsyncGenerator[ExecEvent | None]:
    """The events, and None after each 15 s in which none came; what ``feeding`` raises is raised here."""
    following: asyncio.Future[ExecEvent] | None = None
    fed: set[asyncio.Future[None]] = {feeding}
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events))
            waited: set[asyncio.Future[Any]] = {following, *fed}
            done, _ = await asyncio.wait(
                waited, timeout=KEEPALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if feeding in done and fed:
                feeding.result()
                fed.clear()
            if following in done:
                try:
                    event = following.result()
                except StopAsyncIteration:
                    return
                following = None
                yield event
            elif not done:
                yield None
    finally:
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception, StopAsyncIteration):
                await following
