"""A Containers service that behaves as the contract says, with this machine's processes in its containers."""

# ruff: noqa: N802 - the names of RPCs

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
from clawbox_client.v1 import containers_pb2 as pb
from clawbox_client.v1 import containers_pb2_grpc, sandbox_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FIRST = "11111111-0000-4000-8000-000000000001"
SECOND = "11111111-2222-4000-8000-000000000002"
THIRD = "33333333-0000-4000-8000-000000000003"

CHUNK = 64 << 10


@dataclass
class Log:
    stream: sandbox_pb2.Stream.ValueType
    data: bytes
    offset: int


@dataclass
class Process:
    """A process of an exec: what it wrote, kept from ``forgotten`` on, and how it ended."""

    start: pb.ExecStart
    child: asyncio.subprocess.Process
    terminal: int | None = None
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    forgotten: int = 0
    stdin_bytes: int = 0
    ended: pb.ExecExited | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    readers: list[asyncio.Task[None]] = field(default_factory=list)


class FakeContainers(containers_pb2_grpc.ContainersServicer):
    """``begin`` is called first in each call: it checks the token, and refuses what a test wants refused."""

    def __init__(self, begin: Callable[[str, Any, Any], Awaitable[None]], refuse: Callable[..., Any]) -> None:
        self._begin = begin
        self._refuse = refuse
        self.all: dict[str, pb.Container] = {}
        self.logs: dict[str, list[Log]] = {}
        self.files: dict[bytes, pb.FileInfo] = {}
        self.contents: dict[bytes, bytes] = {}
        self.listed: dict[bytes, list[pb.FileInfo]] = {}
        """What a liar answers for a folder."""
        self.processes: dict[str, Process] = {}
        self.changed = asyncio.Condition()
        self.break_logs_after: int | None = None
        self.attached = 0
        self.exit_code = 0
        self.spawned_logs: list[tuple[str, bytes]] = []
        self.keep_running = False
        """Whether a spawned program goes on until it is stopped."""

    def add(self, container_id: str, **fields: Any) -> pb.Container:
        made = pb.Container(container_id=container_id, name=f"clawbox-{container_id}", **fields)
        made.create_time.FromSeconds(int(time.time()) - 60)
        self.all[container_id] = made
        self.logs.setdefault(container_id, [])
        return made

    def log(self, container_id: str, stream: str, data: bytes) -> None:
        number = sandbox_pb2.Stream.Value(f"STREAM_{stream.upper()}")
        logs = self.logs[container_id]
        offset = sum(len(one.data) for one in logs if one.stream == number)
        logs.append(Log(number, data, offset))

    def put(self, path: bytes, content: bytes | None, mode: int = 0o644, **more: Any) -> None:
        kind = pb.FILE_TYPE_DIRECTORY if content is None else pb.FILE_TYPE_REGULAR
        self.files[path] = pb.FileInfo(
            **{"path": path, "type": kind, "mode": mode, "size_bytes": len(content or b""), **more}
        )
        if content is not None:
            self.contents[path] = content

    async def _find(self, request: Any, context: Any) -> pb.Container:
        if request.container_id not in self.all:
            await self._refuse(
                grpc.StatusCode.NOT_FOUND, "there is no such container", "CONTAINER_NOT_FOUND"
            ).send(context)
        return self.all[request.container_id]

    async def Spawn(self, request, context):
        await self._begin("Spawn", request, context)
        made = self.add(FIRST, task=request.task, image=request.image, state=pb.CONTAINER_STATE_RUNNING)
        for stream, data in self.spawned_logs:
            self.log(FIRST, stream, data)
        answer = pb.Container()
        answer.CopyFrom(made)
        if not self.keep_running:
            self.end(FIRST, self.exit_code)
        return answer

    def end(self, container_id: str, code: int) -> None:
        one = self.all[container_id]
        one.exit_code = code
        one.state = pb.CONTAINER_STATE_FAILED if code else pb.CONTAINER_STATE_COMPLETED

    async def Get(self, request, context):
        await self._begin("Get", request, context)
        return await self._find(request, context)

    async def List(self, request, context):
        await self._begin("List", request, context)
        active = {pb.CONTAINER_STATE_CREATING, pb.CONTAINER_STATE_RUNNING, pb.CONTAINER_STATE_PAUSED}
        found = [
            one
            for one in self.all.values()
            if request.filter.include_finished or one.state in active
            if request.filter.labels.items() <= one.labels.items()
        ]
        first = int(request.page_token or 0)
        last = first + min(request.page_size or 2, 2)
        return pb.ContainersListResponse(
            containers=found[first:last], next_page_token=str(last) if last < len(found) else ""
        )

    async def Watch(self, request, context):
        await self._begin("Watch", request, context)
        snapshot = pb.ContainersSnapshot(containers=self.all.values(), complete=True)
        yield pb.ContainersWatchResponse(revision="1", snapshot=snapshot)
        for one in self.all.values():
            yield pb.ContainersWatchResponse(revision="2", changed=one)
        yield pb.ContainersWatchResponse(revision="3", removed=pb.ContainerRemoved(container_id=FIRST))

    async def Wait(self, request, context):
        await self._begin("Wait", request, context)
        return await self._find(request, context)

    async def Stop(self, request, context):
        await self._begin("Stop", request, context)
        one = await self._find(request, context)
        one.state, one.exit_code, one.state_reason = pb.CONTAINER_STATE_STOPPED, 143, "stopped"
        self.log(one.container_id, "stdout", b"last words\n")
        async with self.changed:
            self.changed.notify_all()
        return one

    async def Kill(self, request, context):
        await self._begin("Kill", request, context)
        one = await self._find(request, context)
        one.state = pb.CONTAINER_STATE_KILLED
        return pb.ContainersKillResponse(container=one, stdout=b"last words\n")

    async def Remove(self, request, context):
        await self._begin("Remove", request, context)
        await self._find(request, context)
        del self.all[request.container_id]
        return pb.ContainersRemoveResponse()

    async def Pause(self, request, context):
        await self._begin("Pause", request, context)
        one = await self._find(request, context)
        one.state = pb.CONTAINER_STATE_PAUSED
        return one

    async def Resume(self, request, context):
        await self._begin("Resume", request, context)
        one = await self._find(request, context)
        one.state = pb.CONTAINER_STATE_RUNNING
        return one

    async def Logs(self, request, context):
        await self._begin("Logs", request, context)
        one = await self._find(request, context)
        have = {sandbox_pb2.STREAM_STDOUT: 0, sandbox_pb2.STREAM_STDERR: 0}
        if request.HasField("offsets"):
            have = {
                sandbox_pb2.STREAM_STDOUT: request.offsets.stdout,
                sandbox_pb2.STREAM_STDERR: request.offsets.stderr,
            }
        sent = 0
        for log in self.logs[request.container_id]:
            if request.streams and log.stream not in request.streams:
                continue
            if log.offset + len(log.data) <= have[log.stream]:
                continue
            if self.break_logs_after is not None and sent >= self.break_logs_after:
                self.break_logs_after = None
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if log.data == b"<gap>":
                gap = pb.OutputGap(stream=log.stream, offset=log.offset, length=len(log.data))
                yield pb.ContainersLogsResponse(gap=gap)
                continue
            chunk = pb.LogChunk(stream=log.stream, data=log.data, offset=log.offset)
            chunk.time.FromJsonString("2026-01-02T03:04:05Z")
            yield pb.ContainersLogsResponse(chunk=chunk)
            sent += 1
        async with self.changed:
            while request.follow and one.state == pb.CONTAINER_STATE_RUNNING:
                await self.changed.wait()

    async def Stats(self, request, context):
        await self._begin("Stats", request, context)
        for number in range(1 if request.once else 2):
            yield pb.ContainersStatsResponse(cpu_millis=250 * number, memory_bytes=3 << 20, pids=7)

    async def RunCommand(self, request, context):
        await self._begin("RunCommand", request, context)
        child = await asyncio.create_subprocess_exec(
            *request.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await child.communicate(request.stdin)
        return pb.RunCommandResponse(exit_code=_code(child.returncode), stdout=out, stderr=err, duration_ms=1)

    async def ListTemplates(self, request, context):
        await self._begin("ListTemplates", request, context)
        number = int(request.page_token or 0)
        return pb.ListTemplatesResponse(
            templates=[pb.Template(name=f"t{number}", image="i", description="[b]x[/b] \x1b[31m")],
            next_page_token="" if number else "1",
        )

    # Files

    async def WriteFile(self, request_iterator, context):
        await self._begin("WriteFile", None, context)
        start, content = None, bytearray()
        async for message in request_iterator:
            if message.HasField("start"):
                start = message.start
                if start.path.startswith(b"/etc"):
                    await self._refuse(grpc.StatusCode.INVALID_ARGUMENT, "outside", "INVALID_FIELD").send(
                        context
                    )
            else:
                assert len(message.chunk) <= CHUNK
                content += message.chunk
        assert start is not None
        await asyncio.sleep(
            0
        )  # grpc.aio ends the messages of a cancelled call first, then cancels the handler
        if context.cancelled():
            raise asyncio.CancelledError
        if start.HasField("size_bytes") and start.size_bytes != len(content):
            await self._refuse(grpc.StatusCode.INVALID_ARGUMENT, "size", "INVALID_UPLOAD").send(context)
        self.put(start.path, bytes(content), start.mode if start.HasField("mode") else 0o644)
        return self.files[start.path]

    async def _file(self, request: Any, context: Any) -> pb.FileInfo:
        if request.path not in self.files:
            await self._refuse(grpc.StatusCode.NOT_FOUND, "there is no such file", "FILE_NOT_FOUND").send(
                context
            )
        return self.files[request.path]

    async def ReadFile(self, request, context):
        await self._begin("ReadFile", request, context)
        info = await self._file(request, context)
        yield pb.ReadFileResponse(info=info)
        content = self.contents[request.path][request.offset :]
        content = content[: request.length or None]
        for first in range(0, len(content), CHUNK):
            yield pb.ReadFileResponse(chunk=content[first : first + CHUNK])

    async def ListFiles(self, request, context):
        await self._begin("ListFiles", request, context)
        found = self.listed.get(request.path)
        if found is None:
            prefix = request.path.rstrip(b"/") + b"/"
            found = [
                self.files[path]
                for path in sorted(self.files)
                if path.startswith(prefix) and b"/" not in path[len(prefix) :]
            ]
        first = int(request.page_token or 0)
        return pb.ListFilesResponse(
            files=found[first : first + 2], next_page_token=str(first + 2) if first + 2 < len(found) else ""
        )

    async def StatFile(self, request, context):
        await self._begin("StatFile", request, context)
        return await self._file(request, context)

    async def MakeDirectory(self, request, context):
        await self._begin("MakeDirectory", request, context)
        self.put(request.path, None, request.mode)
        return self.files[request.path]

    async def RemoveFile(self, request, context):
        await self._begin("RemoveFile", request, context)
        await self._file(request, context)
        gone = [one for one in self.files if one == request.path or one.startswith(request.path + b"/")]
        for one in gone:
            del self.files[one]
        return pb.RemoveFileResponse(removed=len(gone))

    # Processes

    async def Exec(self, request_iterator, context):
        await self._begin("Exec", None, context)
        first = await anext(request_iterator)
        if first.HasField("start"):
            await self._find(first.start, context)
            attached = first.start.exec_id in self.processes
            if not attached:
                self.processes[first.start.exec_id] = await self._start(first.start)
            process, offsets = self.processes[first.start.exec_id], [0, 0]
        else:
            attached = True
            self.attached += 1
            if first.attach.exec_id not in self.processes:
                await self._refuse(grpc.StatusCode.NOT_FOUND, "there is no such exec", "EXEC_NOT_FOUND").send(
                    context
                )
            process = self.processes[first.attach.exec_id]
            offsets = [first.attach.stdout_offset, first.attach.stderr_offset]
        yield pb.ExecResponse(
            started=pb.ExecStarted(
                exec_id=process.start.exec_id, stdin_offset=process.stdin_bytes, attached=attached
            )
        )
        feeding = asyncio.create_task(self._feed(process, request_iterator))
        try:
            async for message in self._events(process, offsets):
                yield message
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await feeding

    async def _events(self, process: Process, offsets: list[int]):
        while True:
            ended = process.ended
            if offsets[0] < process.forgotten:
                gap = pb.OutputGap(
                    stream=sandbox_pb2.STREAM_STDOUT, offset=offsets[0], length=process.forgotten - offsets[0]
                )
                offsets[0] = process.forgotten
                yield pb.ExecResponse(gap=gap)
            for number, (name, written) in enumerate(
                (("stdout", process.stdout), ("stderr", process.stderr))
            ):
                while offsets[number] < len(written):
                    data = bytes(written[offsets[number] : offsets[number] + CHUNK])
                    chunk = sandbox_pb2.OutputChunk(data=data, offset=offsets[number])
                    offsets[number] += len(data)
                    message = pb.ExecResponse()
                    getattr(message, name).CopyFrom(chunk)
                    yield message
            if ended is not None:
                yield pb.ExecResponse(keepalive=pb.ExecKeepalive())
                yield pb.ExecResponse(exited=ended)
                return
            async with self.changed:
                await self.changed.wait_for(
                    lambda: (
                        process.ended is not None
                        or offsets[0] < len(process.stdout)
                        or offsets[1] < len(process.stderr)
                    )
                )

    async def _start(self, start: pb.ExecStart) -> Process:
        environment = {"PATH": os.environ["PATH"], **start.env}
        if not start.tty:
            child = await asyncio.create_subprocess_exec(
                *start.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=environment,
            )
            process = Process(start, child)
            streams = [(child.stdout, process.stdout), (child.stderr, process.stderr)]
            process.readers = [asyncio.create_task(self._drain(one, into)) for one, into in streams if one]
        else:
            leader, follower = pty.openpty()
            _resize(leader, start.size)
            # The first terminal that a session's leader opens is its own; a fork of ours would break gRPC.
            child = await asyncio.create_subprocess_exec(
                "sh", "-c", 'exec <"$0" >"$0" 2>&1; exec "$@"', os.ttyname(follower), *start.command,
                start_new_session=True, env=environment,
            )  # fmt: skip
            # The child's end must stay open until the child has one, or reading would end at once.
            await asyncio.to_thread(_wait_for_terminal, child.pid, os.ttyname(follower))
            os.close(follower)
            process = Process(start, child, leader, sizes=[(start.size.rows, start.size.columns)])
            process.readers = [asyncio.create_task(self._drain_terminal(leader, process.stdout))]
        process.readers.append(asyncio.create_task(self._reap(process, list(process.readers))))
        return process

    async def _drain(self, stream: asyncio.StreamReader, into: bytearray) -> None:
        while data := await stream.read(CHUNK):
            async with self.changed:
                into += data
                self.changed.notify_all()

    async def _drain_terminal(self, leader: int, into: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := await asyncio.to_thread(os.read, leader, CHUNK):
                async with self.changed:
                    into += data
                    self.changed.notify_all()

    async def _reap(self, process: Process, readers: list[asyncio.Task[None]]) -> None:
        code = await process.child.wait()
        await asyncio.gather(*readers)
        if process.terminal is not None:
            os.close(process.terminal)
            process.terminal = None
        async with self.changed:
            process.ended = pb.ExecExited(exit_code=_code(code), duration_ms=5)
            self.changed.notify_all()

    async def _feed(self, process: Process, messages: Any) -> None:
        async for message in messages:
            match message.WhichOneof("message"):
                case "stdin":
                    assert len(message.stdin) <= CHUNK
                    process.stdin_bytes += len(message.stdin)
                    if process.terminal is not None:
                        os.write(process.terminal, message.stdin)
                    elif process.child.stdin is not None:
                        process.child.stdin.write(message.stdin)
                        with contextlib.suppress(ConnectionError):
                            await process.child.stdin.drain()
                case "close_stdin":
                    if process.child.stdin is not None:
                        process.child.stdin.close()
                case "resize":
                    async with self.changed:
                        process.sizes.append((message.resize.rows, message.resize.columns))
                        self.changed.notify_all()
                    if process.terminal is not None:
                        _resize(process.terminal, message.resize)
                case "signal":
                    process.signals.append(message.signal.name)
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.child.pid, signal.Signals[f"SIG{message.signal.name}"])

    async def close(self) -> None:
        """Ends every process that still runs."""
        for process in self.processes.values():
            if process.child.returncode is None:
                with contextlib.suppress(ProcessLookupError):  # it has ended, which asyncio does not know yet
                    os.killpg(process.child.pid, signal.SIGKILL)
            await asyncio.gather(*process.readers)
            if process.child.stdin is not None:
                process.child.stdin.close()


def _code(returncode: int | None) -> int:
    assert returncode is not None
    return 128 - returncode if returncode < 0 else returncode


def _wait_for_terminal(pid: int, terminal: str) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        while str(Path(f"/proc/{pid}/fd/2").readlink()) != terminal:
            time.sleep(0.001)


def _resize(terminal: int, size: pb.TerminalSize) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


class Relay:
    """A TCP relay in front of a server whose connections a test can cut."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Resets every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(*self._target)
        self._writers |= {writer, to_there}
        try:
            await asyncio.gather(_copy(reader, to_there), _copy(there, writer))
        finally:
            self._writers -= {writer, to_there}
            for one in (writer, to_there):
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()
