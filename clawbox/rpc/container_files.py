"""Files of containers: WriteFile, ReadFile, ListFiles, StatFile, MakeDirectory, RemoveFile."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from clawbox_client.v1 import containers_pb2

from clawbox.children.files.messages import How, Type
from clawbox.containers.files import ContainerPath
from clawbox.containers.states import Operation
from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.rpc.call import current
from clawbox.rpc.container_methods import ContainerMethods
from clawbox.rpc.paging import page_size, page_start, page_token

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from clawbox.children.files.messages import FileInfo
    from clawbox.containers.files import ContainerFiles, Opened
    from clawbox.rpc.call import Context
    from clawbox.rpc.limits import StreamLimit

MAX_CHUNK_BYTES: Final = 64 << 10
MAX_CALLS: Final = 32
"""Operations on files of one principal at the same time: each has a process of its own."""
PATIENCE_SECONDS: Final = 30.0
"""How long a writer may be waited for …"""
BYTES_PER_SECOND: Final = 64 << 10
"""… beyond the time that its bytes take at this rate."""
STALLED_SECONDS: Final = 60.0
"""How long the reader of a file may leave a full buffer untaken."""
_MAX_BUFFERED: Final = 8
"""Chunks of a file that wait for their reader."""
_MOST: Final = (1 << 63) - 1
_PERMISSIONS: Final = 0o777
_EARLIEST_NS: Final = -62_135_596_800 * 10**9  # year 1
_LATEST_NS: Final = 253_402_300_799 * 10**9  # the end of year 9999

_TYPES: Final = {
    Type.REGULAR: containers_pb2.FILE_TYPE_REGULAR,
    Type.DIRECTORY: containers_pb2.FILE_TYPE_DIRECTORY,
    Type.SYMLINK: containers_pb2.FILE_TYPE_SYMLINK,
    Type.OTHER: containers_pb2.FILE_TYPE_OTHER,
}


class FileMethods(ContainerMethods):
    """Methods that a files child carries out."""

    _files: ContainerFiles
    _file_calls: StreamLimit

    async def WriteFile(  # noqa: N802
        self, request_iterator: AsyncIterator[containers_pb2.WriteFileRequest], context: Context
    ) -> containers_pb2.FileInfo:
        """Receive a file, which is there wholly or not at all."""
        upload = _Upload(request_iterator, context)
        with self._recorded("container_file_write") as record:
            start = await upload.start()
            record.fields |= {"container_id": start.container_id, "path": start.path}
            path = ContainerPath.parse(start.path, itself=False)
            mode = _mode(start)
            async with self._opened(start.container_id, path, Operation.WRITE) as opened:
                writing = opened.folder.write(
                    path.below,
                    mode=mode,
                    size=start.size_bytes if start.HasField("size_bytes") else None,
                    make_parents=start.make_parents,
                    how=How.CREATE if start.exclusive else How.REPLACE,
                )
                async with writing as file:
                    while (chunk := await upload.chunk()) is not None:
                        await file.write(chunk)
                    info = opened.told(await file.finish())
            record.fields["size_bytes"] = info.size
        return _message(info)

    async def ReadFile(  # noqa: N802
        self, request: containers_pb2.ReadFileRequest, _context: Context
    ) -> AsyncGenerator[containers_pb2.ReadFileResponse]:
        """Send a file: what it is, then its bytes."""
        with self._recorded(
            "container_file_read", container_id=request.container_id, path=request.path, sent_bytes=0
        ) as record:
            path = ContainerPath.parse(request.path, itself=False)
            pieces = _Pieces()
            reading = asyncio.create_task(self._read(request, path, pieces))
            reading.add_done_callback(lambda _: pieces.end())
            try:
                async for piece in pieces:
                    # Before it goes: what a reader had when it left is in the row, and perhaps a piece more.
                    record.fields["sent_bytes"] += len(piece.chunk)
                    yield piece
                await reading
            finally:
                # Also when the reader left: the files child ends before the call does.
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await reading

    async def ListFiles(  # noqa: N802
        self, request: containers_pb2.ListFilesRequest, _context: Context
    ) -> containers_pb2.ListFilesResponse:
        """List a folder."""
        path = ContainerPath.parse(request.path, itself=True)
        size = page_size(request.page_size)
        query = hashlib.sha256(request.container_id.encode() + b"\0" + request.path).hexdigest()
        after = _name(page_start(request.page_token, "ListFiles", query))
        async with self._opened(request.container_id, path, Operation.READ) as opened:
            listing = await opened.folder.list(path.below, after=after, limit=size)
        response = containers_pb2.ListFilesResponse(
            files=[_message(info, request.path + b"/" + info.path) for info in listing.infos]
        )
        if listing.more and listing.infos:
            last = base64.urlsafe_b64encode(listing.infos[-1].path).decode()
            response.next_page_token = page_token("ListFiles", query, last)
        return response

    async def StatFile(  # noqa: N802
        self, request: containers_pb2.StatFileRequest, _context: Context
    ) -> containers_pb2.FileInfo:
        """Describe what a path names."""
        path = ContainerPath.parse(request.path, itself=True)
        async with self._opened(request.container_id, path, Operation.READ) as opened:
            return _message(opened.told(await opened.folder.stat(path.below)))

    async def MakeDirectory(  # noqa: N802
        self, request: containers_pb2.MakeDirectoryRequest, _context: Context
    ) -> containers_pb2.FileInfo:
        """Make a folder."""
        with self._recorded("container_directory_make", container_id=request.container_id, path=request.path):
            path = ContainerPath.parse(request.path, itself=False)
            mode = _mode(request)
            async with self._opened(request.container_id, path, Operation.WRITE) as opened:
                made = await opened.folder.make_directory(
                    path.below, mode=0o755 if mode is None else mode, make_parents=request.make_parents
                )
                return _message(opened.told(made))

    async def RemoveFile(  # noqa: N802
        self, request: containers_pb2.RemoveFileRequest, _context: Context
    ) -> containers_pb2.RemoveFileResponse:
        """Remove what a path names."""
        with self._recorded(
            "container_file_remove",
            container_id=request.container_id,
            path=request.path,
            recursive=request.recursive,
        ) as record:
            path = ContainerPath.parse(request.path, itself=False)
            async with self._opened(request.container_id, path, Operation.WRITE) as opened:
                removed = await opened.folder.remove(path.below, recursive=request.recursive)
            record.fields["removed"] = removed
        return containers_pb2.RemoveFileResponse(removed=removed)

    @contextlib.asynccontextmanager
    async def _opened(
        self, container_id: str, path: ContainerPath, operation: Operation
    ) -> AsyncIterator[Opened]:
        container = self._find(container_id)
        principal = current().principal.name
        self._file_calls.acquire(principal, MAX_CALLS)
        try:
            async with self._files.open(container, self._manager.quarters, path, operation) as opened:
                yield opened
        finally:
            self._file_calls.release(principal)

    async def _read(
        self, request: containers_pb2.ReadFileRequest, path: ContainerPath, pieces: _Pieces
    ) -> None:
        """Fill ``pieces``, in a task of its own.

        What ends a read that takes too long cancels its task: not the one that waits for the reader.
        """
        length = min(request.length, _MOST) or None
        async with (
            self._opened(request.container_id, path, Operation.READ) as opened,
            opened.folder.read(path.below, offset=request.offset, length=length) as reading,
        ):
            info = _message(opened.told(reading.info))
            await pieces.put(containers_pb2.ReadFileResponse(info=info))
            async for chunk in reading:
                await pieces.put(containers_pb2.ReadFileResponse(chunk=chunk))


class _Pieces:
    """A file on its way to its reader: few chunks at a time."""

    def __init__(self) -> None:
        self._pieces: deque[containers_pb2.ReadFileResponse] = deque()
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False

    async def put(self, piece: containers_pb2.ReadFileResponse) -> None:
        """Add one; returns when there is room for more. Raises SLOW_READER."""
        self._pieces.append(piece)
        self._changed.set()
        if len(self._pieces) < _MAX_BUFFERED:
            return
        self._taken.clear()
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await self._taken.wait()
        except TimeoutError:
            raise ClawboxError(
                Reason.SLOW_READER, "a message waited {seconds} s to be read", seconds=STALLED_SECONDS
            ) from None

    def end(self) -> None:
        """There are no more."""
        self._ended = True
        self._changed.set()

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> containers_pb2.ReadFileResponse:
        while not self._pieces:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces.popleft()
        self._taken.set()
        return piece


class _Upload:
    """The messages of a WriteFile."""

    def __init__(self, messages: AsyncIterator[containers_pb2.WriteFileRequest], context: Context) -> None:
        self._messages = messages
        self._context = context
        self._patience = PATIENCE_SECONDS

    async def start(self) -> containers_pb2.WriteFileStart:
        """The first message. Raises INVALID_FIELD when that is something else, DEADLINE."""
        first = await self._next()
        if first is None or first.WhichOneof("part") != "start":
            raise invalid_field("part", "must be start in the first message", "order")
        return first.start

    async def chunk(self) -> bytes | None:
        """The next bytes; None: there are no more. Raises INVALID_FIELD, DEADLINE."""
        message = await self._next()
        if message is None:
            # The messages of a call that broke off end like those of a complete one, and grpc.aio cancels the
            # handler only after that. Such a call can send nothing any more: this fails, or is cancelled.
            await self._context.send_initial_metadata(())
            return None
        if message.WhichOneof("part") != "chunk":
            raise invalid_field("part", "must be chunk in every message after the first", "order")
        if len(message.chunk) > MAX_CHUNK_BYTES:
            raise invalid_field("chunk", f"has more than {MAX_CHUNK_BYTES} bytes", "max_length")
        earned = len(message.chunk) / BYTES_PER_SECOND
        self._patience = min(self._patience + earned, PATIENCE_SECONDS)
        return message.chunk

    async def _next(self) -> containers_pb2.WriteFileRequest | None:
        # Only waiting counts: what it takes to write the bytes down is not the caller's doing.
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):
                return await anext(self._messages, None)
        except TimeoutError:
            raise ClawboxError(
                Reason.DEADLINE, "the upload is slower than {bytes} bytes a second", bytes=BYTES_PER_SECOND
            ) from None
        finally:
            self._patience -= time.monotonic() - began


def _mode(request: containers_pb2.WriteFileStart | containers_pb2.MakeDirectoryRequest) -> int | None:
    if not request.HasField("mode"):
        return None
    if request.mode > _PERMISSIONS:
        raise invalid_field("mode", "is more than 0777 (octal)", "maximum")
    return request.mode


def _name(text: str) -> bytes:
    """The name in a page token, which somebody may have made up."""
    try:
        return base64.urlsafe_b64decode(text)
    except (binascii.Error, ValueError):
        return b""


def _message(info: FileInfo, path: bytes | None = None) -> containers_pb2.FileInfo:
    message = containers_pb2.FileInfo(
        path=info.path if path is None else path,
        type=_TYPES[info.type],
        size_bytes=max(info.size, 0),
        mode=info.mode & _PERMISSIONS,
        link_target=info.link_target,
        uid=info.uid,
        gid=info.gid,
    )
    # The file system knows times that a Timestamp cannot say.
    message.modify_time.FromNanoseconds(min(max(info.modified_ns, _EARLIEST_NS), _LATEST_NS))
    return message
