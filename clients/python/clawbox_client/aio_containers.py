"""Containers, for the asyncio client."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Unpack

import grpc

from clawbox_client import container_requests as requests
from clawbox_client import containers as values
from clawbox_client.aio_calls import Stream, in_loop, in_thread, unary
from clawbox_client.aio_exec import Exec
from clawbox_client.channel import authorized, open_channel
from clawbox_client.container_files import (
    Download,
    FileDestination,
    FileProgress,
    FileSource,
    FileUpload,
    start_message,
)
from clawbox_client.errors import from_rpc_error, no_file
from clawbox_client.execs import RECONNECT_SECONDS
from clawbox_client.v1 import containers_pb2, containers_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from clawbox_client.connection import Connection
    from clawbox_client.container_requests import ContainerPath, FilterOptions, ProcessOptions, SpawnOptions


class AioContainers:
    """The methods of :class:`Client` for containers."""

    containers: containers_pb2_grpc.ContainersAsyncStub
    _connection: Connection
    _deadline: float | None

    async def spawn(
        self, task: str, *, image: str = "", template: str = "", **options: Unpack[SpawnOptions]
    ) -> values.Container:
        """Makes a container and starts its program; returns when it runs, with its way out ready.

        ``task`` says what it is for. Neither image nor template is the server's default image.
        """
        request = requests.spawn(task, image, template, options)
        deadline = options.get("deadline") or requests.SPAWN_DEADLINE
        return values.container(await unary(self.containers.Spawn, request, deadline))

    async def get_container(self, container_id: str, *, deadline: float | None = None) -> values.Container:
        """One container."""
        request = containers_pb2.ContainersGetRequest(container_id=container_id)
        return values.container(await unary(self.containers.Get, request, self._within(deadline)))

    async def list_containers(
        self, *, page_size: int = 0, deadline: float | None = None, **options: Unpack[FilterOptions]
    ) -> AsyncIterator[values.Container]:
        """Containers, newest first, the active ones unless asked otherwise; fetches pages as needed."""
        request = containers_pb2.ContainersListRequest(
            page_size=page_size, filter=requests.container_filter(options)
        )
        while True:
            page = await unary(self.containers.List, request, self._within(deadline))
            for message in page.containers:
                yield values.container(message)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    def watch_containers(
        self, *, after_revision: str = "", deadline: float | None = None, **options: Unpack[FilterOptions]
    ) -> Stream[values.ContainerEvent]:
        """Containers as they change: a snapshot first. ``after_revision`` goes on after an earlier event."""
        request = containers_pb2.ContainersWatchRequest(
            filter=requests.container_filter(options), after_revision=after_revision
        )
        return Stream(self.containers.Watch(request, timeout=deadline), values.container_event)

    async def wait_container(self, container_id: str, *, deadline: float | None = None) -> values.Container:
        """Waits until a container's program has ended; for ever without a deadline."""
        request = containers_pb2.ContainersWaitRequest(container_id=container_id)
        return values.container(await unary(self.containers.Wait, request, deadline))

    async def stop_container(
        self, container_id: str, *, grace_ms: int | None = None, deadline: float | None = None
    ) -> values.Container:
        """Ends a container's program: its stop signal, and SIGKILL after ``grace_ms`` (absent: 10,000)."""
        request = containers_pb2.ContainersStopRequest(container_id=container_id, grace_ms=grace_ms)
        within = requests.stop_deadline(deadline, grace_ms, self._deadline)
        return values.container(await unary(self.containers.Stop, request, within))

    async def kill_container(self, container_id: str, *, deadline: float | None = None) -> values.KillResult:
        """Kills everything in a container at once, and gives the end of what it wrote."""
        request = containers_pb2.ContainersKillRequest(container_id=container_id)
        return values.kill_result(await unary(self.containers.Kill, request, self._within(deadline)))

    async def remove_container(
        self,
        container_id: str,
        *,
        force: bool = False,
        delete_workspace: bool | None = None,
        deadline: float | None = None,
    ) -> None:
        """Forgets a finished container; with ``force`` an active one is killed first."""
        request = containers_pb2.ContainersRemoveRequest(
            container_id=container_id, force=force, delete_workspace=delete_workspace
        )
        await unary(self.containers.Remove, request, self._within(deadline))

    async def pause_container(self, container_id: str, *, deadline: float | None = None) -> values.Container:
        """Freezes every process of a running container."""
        request = containers_pb2.ContainersPauseRequest(container_id=container_id)
        return values.container(await unary(self.containers.Pause, request, self._within(deadline)))

    async def resume_container(self, container_id: str, *, deadline: float | None = None) -> values.Container:
        """Lets a paused container go on."""
        request = containers_pb2.ContainersResumeRequest(container_id=container_id)
        return values.container(await unary(self.containers.Resume, request, self._within(deadline)))

    def exec(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        tty: bool = False,
        size: tuple[int, int] | None = None,
        exec_id: str = "",
        keep_running: bool = False,
        reconnect: float = RECONNECT_SECONDS,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> Exec:
        """Starts a process inside a container when it is iterated over.

        ``size``: rows and columns of the terminal that ``tty`` gives it. ``reconnect``: seconds for which a
        broken connection is made again; 0 is not at all.
        """
        start = requests.exec_start(
            container_id,
            command,
            options,
            size=size,
            tty=tty,
            exec_id=exec_id or uuid.uuid4().hex,
            keep_running=keep_running,
        )
        return Exec(self.containers.Exec, start, reconnect=reconnect, deadline=deadline)

    def attach_exec(
        self,
        exec_id: str,
        *,
        stdout_offset: int = 0,
        stderr_offset: int = 0,
        reconnect: float = RECONNECT_SECONDS,
        deadline: float | None = None,
    ) -> Exec:
        """Goes on, behind what the caller has, with a process that runs or ended less than a minute ago."""
        attach = containers_pb2.ExecAttach(
            exec_id=exec_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset
        )
        return Exec(self.containers.Exec, attach, reconnect=reconnect, deadline=deadline)

    async def run_command(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        max_output_bytes: int | None = None,
        deadline: float | None = None,
        **options: Unpack[ProcessOptions],
    ) -> values.CommandResult:
        """Runs a process inside a container to its end. How it ends is a result, never an error."""
        request = requests.run_command(container_id, command, stdin, max_output_bytes, options)
        within = requests.command_deadline(deadline, options, self._deadline)
        return values.command_result(await unary(self.containers.RunCommand, request, within))

    def logs(
        self,
        container_id: str,
        *,
        streams: Sequence[str] = (),
        tail: int | None = None,
        since: datetime | None = None,
        offsets: tuple[int, int] | None = None,
        follow: bool = False,
        deadline: float | None = None,
    ) -> Stream[values.LogEvent]:
        """What a container's program wrote, and with ``follow`` what it writes until it ends.

        It begins at the oldest that is kept, or ``tail`` lines before the newest, or at what was written
        since a time (in UTC when it names no zone), or behind ``offsets`` bytes of stdout and of stderr.
        """
        request = requests.logs(container_id, streams, tail=tail, since=since, offsets=offsets, follow=follow)
        return Stream(self.containers.Logs(request, timeout=deadline), values.log_event)

    def stats(
        self,
        container_id: str,
        *,
        interval_ms: int = 0,
        once: bool = False,
        deadline: float | None = None,
    ) -> Stream[values.ContainerStats]:
        """What a container uses, every ``interval_ms`` (0: 1,000) until it ends."""
        request = containers_pb2.ContainersStatsRequest(
            container_id=container_id, interval_ms=interval_ms, once=once
        )
        return Stream(self.containers.Stats(request, timeout=deadline), values.stats)

    async def write_file(
        self,
        container_id: str,
        path: ContainerPath,
        source: FileSource,
        *,
        mode: int | None = None,
        size_bytes: int | None = None,
        make_parents: bool = False,
        exclusive: bool = False,
        progress: FileProgress | None = None,
        deadline: float | None = None,
    ) -> values.FileInfo:
        """Writes a file; it is there wholly, or as it was before.

        ``source``: a local path, bytes, a binary file, or pieces. ``size_bytes`` has the server check how
        many they are. Raises OSError, and whatever the source raises.
        """
        # A blocking channel for this one call, for the reason that Client.upload_tool gives.
        loop = asyncio.get_running_loop()
        pieces = source if not isinstance(source, AsyncIterator) else in_thread(source, loop)
        upload = await asyncio.to_thread(FileUpload, pieces, size_bytes)
        start = start_message(
            container_id,
            requests.path_bytes(path),
            upload.size_bytes,
            mode=mode,
            make_parents=make_parents,
            exclusive=exclusive,
        )
        ended = asyncio.Event()
        try:
            with open_channel(self._connection) as channel:
                stub = containers_pb2_grpc.ContainersStub(authorized(channel, self._connection.token))
                messages = upload.messages(start, None if progress is None else in_loop(progress, loop))
                call = stub.WriteFile.future(messages, timeout=deadline)
                upload.carried_by(call)
                try:
                    call.add_done_callback(in_loop(lambda _: ended.set(), loop))
                    await ended.wait()
                    return values.file_info(call.result())
                except (grpc.RpcError, grpc.FutureCancelledError) as error:
                    if upload.failure is not None:
                        raise upload.failure from None
                    if isinstance(error, grpc.RpcError):
                        raise from_rpc_error(error) from error
                    raise
                finally:
                    call.cancel()  # when this task is cancelled; it does nothing to a call that has ended
        finally:
            upload.close()

    def open_file(
        self,
        container_id: str,
        path: ContainerPath,
        *,
        offset: int = 0,
        length: int = 0,
        deadline: float | None = None,
    ) -> Stream[values.FileInfo | bytes]:
        """A file as it comes: first what it is, then its bytes in pieces. ``length`` 0 is to its end."""
        request = containers_pb2.ReadFileRequest(
            container_id=container_id, path=requests.path_bytes(path), offset=offset, length=length
        )
        return Stream(self.containers.ReadFile(request, timeout=deadline), values.file_part)

    async def read_file(
        self,
        container_id: str,
        path: ContainerPath,
        destination: FileDestination | None = None,
        *,
        offset: int = 0,
        length: int = 0,
        progress: FileProgress | None = None,
        deadline: float | None = None,
    ) -> bytes:
        """Reads a file into memory; or to ``destination``, a local path or binary file, and returns nothing.

        A local path has the whole file or what it had before. Raises OSError.
        """
        kept = io.BytesIO()
        received, mode = 0, None
        download = await asyncio.to_thread(Download, kept if destination is None else destination)
        try:
            parts = self.open_file(container_id, path, offset=offset, length=length, deadline=deadline)
            async with parts:
                async for part in parts:
                    if isinstance(part, values.FileInfo):
                        mode = part.mode
                        continue
                    await asyncio.to_thread(download.write, part)
                    received += len(part)
                    if progress is not None:
                        progress(received)
            if mode is None:
                raise no_file()
            await asyncio.to_thread(download.finish, mode)
        finally:
            download.close()
        return kept.getvalue()

    async def list_files(
        self,
        container_id: str,
        path: ContainerPath,
        *,
        page_size: int = 0,
        deadline: float | None = None,
    ) -> AsyncIterator[values.FileInfo]:
        """What is in a folder, by name in byte order; fetches pages as they are needed."""
        request = containers_pb2.ListFilesRequest(
            container_id=container_id, path=requests.path_bytes(path), page_size=page_size
        )
        while True:
            page = await unary(self.containers.ListFiles, request, self._within(deadline))
            for message in page.files:
                yield values.file_info(message)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    async def stat_file(
        self, container_id: str, path: ContainerPath, *, deadline: float | None = None
    ) -> values.FileInfo:
        """What a path names; a symbolic link is described, not followed."""
        request = containers_pb2.StatFileRequest(container_id=container_id, path=requests.path_bytes(path))
        return values.file_info(await unary(self.containers.StatFile, request, self._within(deadline)))

    async def make_directory(
        self,
        container_id: str,
        path: ContainerPath,
        *,
        mode: int | None = None,
        make_parents: bool = False,
        deadline: float | None = None,
    ) -> values.FileInfo:
        """Makes a folder. ``make_parents`` makes those above it too, and accepts that it is there."""
        request = containers_pb2.MakeDirectoryRequest(
            container_id=container_id, path=requests.path_bytes(path), mode=mode, make_parents=make_parents
        )
        return values.file_info(await unary(self.containers.MakeDirectory, request, self._within(deadline)))

    async def remove_file(
        self,
        container_id: str,
        path: ContainerPath,
        *,
        recursive: bool = False,
        deadline: float | None = None,
    ) -> int:
        """Removes a file, a link itself, or a folder; says how many things were removed."""
        request = containers_pb2.RemoveFileRequest(
            container_id=container_id, path=requests.path_bytes(path), recursive=recursive
        )
        return (await unary(self.containers.RemoveFile, request, self._within(deadline))).removed

    async def list_templates(
        self, *, page_size: int = 0, deadline: float | None = None
    ) -> AsyncIterator[values.Template]:
        """The kinds of container that the operator configured, by name; fetches pages as they are needed."""
        request = containers_pb2.ListTemplatesRequest(page_size=page_size)
        while True:
            page = await unary(self.containers.ListTemplates, request, self._within(deadline))
            for message in page.templates:
                yield values.template(message)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    def _within(self, deadline: float | None) -> float | None:
        return self._deadline if deadline is None else deadline
