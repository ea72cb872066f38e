"""Control's side: one sandbox's folder, and the operations in it, each by a child of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from clawbox.children import linux
from clawbox.children.channel import HEADER_BYTES, UNDECODABLE, described, encode_frame
from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.files.messages import (
    CHUNK_BYTES,
    MAX_REPLY_BYTES,
    Chunk,
    Commit,
    Complete,
    Entries,
    Failed,
    FileInfo,
    Found,
    How,
    List,
    Listed,
    MakeDirectory,
    Problem,
    Read,
    Remove,
    Removed,
    Reply,
    Stat,
    Write,
)
from clawbox.children.files.names import PathError, check_path
from clawbox.children.files.problems import problem_error
from clawbox.children.launcher import ChildrenUnavailableError
from clawbox.errors import ClawboxError, Reason, invalid_field

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from clawbox.children.child import Child
    from clawbox.children.files.messages import Incoming, Request
    from clawbox.children.kind import Place

_log = logging.getLogger(__name__)

KIND: Final = "files"
"""What a launcher calls this kind: ``Launcher({KIND: KIND_OBJECT}, …)``."""
KIND_OBJECT: Final = "clawbox.children.files.child:KIND"

_GRACE_SECONDS: Final = 1.0
"""How long a child may take to undo what it began, once its channel is closed, before it is killed."""
_PERMISSIONS: Final = 0o777


class Forker(Protocol):
    """What makes children: :class:`clawbox.children.launcher.Launcher`."""

    async def fork(
        self, kind: str, *, data_bytes: int | None = None, place: Place | None = None
    ) -> tuple[Child, socket.socket, socket.socket]:
        """A new child, control's end of its channel, and of the socket over which it is handed descriptors.

        Raises :class:`~clawbox.children.launcher.ChildrenUnavailableError`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """The most that one operation may do."""

    file_bytes: int = 16 << 30
    """Bytes of a file that is written, and that one read returns."""
    entries: int = 1_000_000
    """Entries of folders that a listing or a removal looks at."""
    listed: int = 10_000
    """Entries that one listing returns."""
    seconds: float = 600.0
    """For everything, the time that the caller takes included."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Some of what is in a folder, by name in byte order."""

    infos: tuple[FileInfo, ...]
    more: bool
    """Whether there are others after the last."""


class Folder:
    """One folder of a sandbox, and the user that owns it there.

    Paths are bytes, relative to the folder; ``b"."`` is the folder itself. Every method raises
    :class:`~clawbox.errors.ClawboxError`: INVALID_FIELD for a path that is refused or leads outside,
    FILE_NOT_FOUND, FILE_EXISTS, FILE_DENIED, FILE_LIMIT, WRONG_STATE, DEADLINE, SANDBOX_UNAVAILABLE. One that
    is cancelled is undone: a file is as it was before, and nothing else is left of it.
    """

    def __init__(
        self,
        forker: Forker,
        place: Place,
        limits: FileLimits,
        *,
        shown: Callable[[bytes], bytes] = lambda path: path,
    ) -> None:
        """``place.root`` is the caller's to close, after the last operation.

        ``shown`` is how errors name one of its paths to whoever asked.
        """
        self._forker = forker
        self._place = place
        self._limits = limits
        self._shown = shown

    async def stat(self, path: bytes) -> FileInfo:
        """What a path names; a symbolic link itself."""
        _check(path, itself=True)
        async with self._asking(path, Stat(path)) as asking:
            return _found(await asking.reply())

    async def list(
        self, path: bytes, *, after: bytes = b"", limit: int = 1000, recursive: bool = False
    ) -> Listing:
        """What is in a folder, of names after ``after``; with all that is below, where recursive.

        A recursive listing has paths relative to the folder that is listed.
        """
        _check(path, itself=True)
        if not 0 < limit <= self._limits.listed:
            raise invalid_field("limit", f"is not between 1 and {self._limits.listed}", "range")
        if after and recursive:
            raise invalid_field("after", "is not for a recursive listing", "exclusive")
        request = List(path, after, limit, recursive, self._limits.entries)
        infos: list[FileInfo] = []
        async with self._asking(path, request) as asking:
            while isinstance(reply := await asking.reply(), Entries):
                infos += reply.infos
                if len(infos) > limit:
                    raise _broken("more entries than were asked for")
            if not isinstance(reply, Listed):
                raise _unexpected(reply)
            return Listing(tuple(infos), reply.more)

    async def make_directory(self, path: bytes, *, mode: int = 0o755, make_parents: bool = False) -> FileInfo:
        """Make a folder; with ``make_parents`` those above it, too, and it may be there already."""
        _check(path)
        _check_mode(mode)
        async with self._asking(path, MakeDirectory(path, mode, make_parents)) as asking:
            return _found(await asking.reply())

    async def remove(self, path: bytes, *, recursive: bool = False) -> int:
        """Remove a file, a link itself or a folder; returns how many names are gone.

        A recursive removal that ends early has removed some of them.
        """
        _check(path)
        async with self._asking(path, Remove(path, recursive, self._limits.entries)) as asking:
            reply = await asking.reply()
            if not isinstance(reply, Removed):
                raise _unexpected(reply)
            return reply.count

    @contextlib.asynccontextmanager
    async def read(
        self, path: bytes, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[Reading]:
        """Read a regular file: ``async for chunk in`` what this gives, at most 64 KiB each.

        It is complete when the iteration ends; what fails on the way is raised there.
        """
        _check(path)
        if offset < 0 or (length is not None and length < 0):
            raise invalid_field("offset", "is negative", "range")
        request = Read(path, min(offset, _MOST), length, self._limits.file_bytes)
        async with self._asking(path, request) as asking:
            yield Reading(_found(await asking.reply()), asking)

    @contextlib.asynccontextmanager
    async def write(
        self,
        path: bytes,
        *,
        mode: int | None = None,
        size: int | None = None,
        make_parents: bool = False,
        how: How = How.REPLACE,
    ) -> AsyncIterator[Writing]:
        """Write a regular file: :meth:`Writing.write` as often as needed, and :meth:`Writing.finish`.

        Left without ``finish``, nothing was done but that folders above it were made, and that what was
        appended stays.
        """
        _check(path)
        if mode is not None:
            _check_mode(mode)
        if size is not None and size > self._limits.file_bytes:
            raise problem_error(self._shown(path), Failed(Problem.TOO_LARGE))
        draft = b".clawbox-" + secrets.token_hex(16).encode()
        request = Write(path, mode, size, make_parents, how, draft, self._limits.file_bytes)
        async with self._asking(path, request) as asking:
            # It answers only at the end, unless something is wrong.
            answer = asyncio.ensure_future(asking.reply())
            try:
                yield Writing(asking, answer)
            finally:
                answer.cancel()
                await asyncio.wait([answer])
                if not answer.cancelled():
                    answer.exception()  # whoever waited for it has had it

    @contextlib.asynccontextmanager
    async def _asking(self, path: bytes, request: Request) -> AsyncIterator[_Asking]:
        """A child that has ``request``; in the end it is dead, and what it began is done or undone."""
        if not can_have_own_uids() or not linux.has_capability(linux.CAP_SYS_CHROOT):
            raise ClawboxError(
                Reason.SANDBOX_UNAVAILABLE, "files of sandboxes need a server that is root and may chroot"
            )
        limit = asyncio.timeout(self._limits.seconds)
        try:
            async with limit, self._child() as (reader, writer):
                asking = _Asking(self._shown(path), reader, writer)
                await asking.send(request)
                yield asking
        except TimeoutError:
            if not limit.expired():
                raise  # the caller's own
            raise ClawboxError(
                Reason.DEADLINE, "not done within {seconds} s", seconds=self._limits.seconds
            ) from None

    @contextlib.asynccontextmanager
    async def _child(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            child, channel, descriptors = await self._forker.fork(KIND, place=self._place)
        except ChildrenUnavailableError as error:
            raise ClawboxError(
                Reason.SANDBOX_UNAVAILABLE, "{why}", why=error, retry_after=error.retry_after
            ) from error
        try:
            with channel, descriptors:
                reader, writer = await asyncio.open_unix_connection(sock=channel, limit=MAX_REPLY_BYTES)
                try:
                    yield reader, writer
                finally:
                    writer.transport.abort()
        finally:
            await _end(child)


async def _end(child: Child) -> None:
    """Its channel is closed: it ends by itself, when it has undone what it began; else it is killed.

    Whoever is cancelled here waits no less, or something would be left.
    """
    ending = asyncio.ensure_future(asyncio.wait_for(child.dead(), _GRACE_SECONDS))
    cancelled = None
    while not ending.done():
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError as error:
            cancelled = error
    if ending.exception() is not None:
        child.kill()
    if cancelled is not None:
        raise cancelled
    await child.dead()


class _Asking:
    """One request to one child."""

    def __init__(self, path: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer

    async def send(self, message: Incoming) -> None:
        """Returns when there is room for more."""
        try:
            self._writer.write(encode_frame(message))
            await self._writer.drain()
        except ConnectionError as error:
            raise _broken("it ended") from error

    async def reply(self) -> Reply:
        """The next one. Raises ClawboxError for Failed, and for a child that breaks the protocol."""
        try:
            size = int.from_bytes(await self._reader.readexactly(HEADER_BYTES), "big")
            if size > MAX_REPLY_BYTES:
                raise _broken(f"a frame of {size} bytes")
            reply = _decoder.decode(await self._reader.readexactly(size))
        except UNDECODABLE as error:
            raise _broken(described(error)) from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _broken("it ended") from error
        if isinstance(reply, Failed):
            raise problem_error(self._path, reply)
        return reply


class Reading:
    """The bytes of a file, once."""

    def __init__(self, info: FileInfo, asking: _Asking) -> None:
        self.info = info
        """What the file was when it was opened."""
        self._asking = asking

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(reply := await self._asking.reply(), Chunk):
            yield reply.data
        if not isinstance(reply, Complete):
            raise _unexpected(reply)


class Writing:
    """A file that is being written."""

    def __init__(self, asking: _Asking, answer: asyncio.Future[Reply]) -> None:
        self._asking = asking
        self._answer = answer

    async def write(self, data: bytes) -> None:
        """Add bytes; returns when there is room for more."""
        for at in range(0, len(data), CHUNK_BYTES):
            if self._answer.done():
                raise _unexpected(self._answer.result())
            await self._asking.send(Chunk(data[at : at + CHUNK_BYTES]))

    async def finish(self) -> FileInfo:
        """Have the file be there; what it is then."""
        if not self._answer.done():
            await self._asking.send(Commit())
        return _found(await self._answer)


_decoder: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)
_MOST: Final = (1 << 63) - 1 - CHUNK_BYTES


def _check(path: bytes, *, itself: bool = False) -> None:
    try:
        check_path(path, itself=itself)
    except PathError as error:
        raise invalid_field("path", str(error), "path") from error


def _check_mode(mode: int) -> None:
    if not 0 <= mode <= _PERMISSIONS:
        raise invalid_field("mode", "is not between 0 and 0777 (octal)", "range")


def _found(reply: Reply) -> FileInfo:
    if not isinstance(reply, Found):
        raise _unexpected(reply)
    return reply.info


def _unexpected(reply: Reply) -> ClawboxError:
    return _broken(f"{type(reply).__name__}, where something else was expected")


def _broken(why: str) -> ClawboxError:
    _log.warning("a process that works on a sandbox's files did not answer as it should: %s", why)
    return ClawboxError(Reason.SANDBOX_UNAVAILABLE, "the process that works on files ended without an answer")
