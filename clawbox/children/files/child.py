"""The files child: it is one user inside one folder, does one thing there, and ends."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.children.channel import BlockingChannel, ChannelClosedError, FrameError
from clawbox.children.files.beneath import (
    FileProblem,
    closing,
    describe,
    describe_entry,
    open_above,
    open_beneath,
    open_regular,
)
from clawbox.children.files.folders import list_folder, remove
from clawbox.children.files.messages import (
    CHUNK_BYTES,
    MAX_REQUEST_BYTES,
    Chunk,
    Commit,
    Complete,
    Entries,
    Failed,
    Found,
    Incoming,
    List,
    Listed,
    MakeDirectory,
    Problem,
    Read,
    Remove,
    Removed,
    Stat,
    Write,
)
from clawbox.children.files.names import check_path
from clawbox.children.files.writing import make_directory, write
from clawbox.children.filters import working_on_files
from clawbox.children.kind import Profile

if TYPE_CHECKING:
    from clawbox.children.files.messages import FileInfo, Reply, Request

_DATA_BYTES: Final = 64 << 20
_MOST_FILE_BYTES: Final = 1 << 40
_DESCRIPTORS: Final = 64
_BATCH_BYTES: Final = 64 << 10

_PROBLEMS: Final = {
    errno.ENOENT: Problem.NOT_FOUND,
    errno.EEXIST: Problem.EXISTS,
    errno.EXDEV: Problem.OUTSIDE,
    errno.ELOOP: Problem.OUTSIDE,
    errno.ENOTDIR: Problem.NOT_A_FOLDER,
    errno.EISDIR: Problem.IS_A_FOLDER,
    errno.ENXIO: Problem.NOT_REGULAR,
    errno.ENOTEMPTY: Problem.NOT_EMPTY,
    errno.EACCES: Problem.DENIED,
    errno.EPERM: Problem.DENIED,
    errno.EROFS: Problem.DENIED,
    errno.ENAMETOOLONG: Problem.NAME_TOO_LONG,
    errno.EFBIG: Problem.TOO_LARGE,
    errno.EMLINK: Problem.TOO_MANY,
    errno.ENOSPC: Problem.NO_SPACE,
    errno.EDQUOT: Problem.NO_SPACE,
    errno.ESTALE: Problem.CHANGED,
    errno.EAGAIN: Problem.CHANGED,
    errno.ETXTBSY: Problem.CHANGED,
    errno.EBUSY: Problem.CHANGED,
    errno.ENOSYS: Problem.UNSUPPORTED,
}

Channel = BlockingChannel[Incoming]


class FilesKind:
    """Its root is the folder (:class:`clawbox.children.kind.Place`)."""

    name = "clawbox-files"
    profile = Profile(
        filter=working_on_files,
        descriptors=_DESCRIPTORS,
        threads=1,
        data_bytes=_DATA_BYTES,
        file_bytes=_MOST_FILE_BYTES,
    )

    def __init__(self) -> None:
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(Incoming)

    def preload(self) -> None:
        """Nothing: it is all imported."""

    def open_own(self) -> tuple[int, ...]:
        """Nothing."""
        return ()

    def main(self, channel: int, descriptors: int) -> None:
        """Answer one request; what control closes meanwhile is given up, and undone."""
        os.close(descriptors)
        os.umask(0)  # modes are what was asked for
        frames: Channel = BlockingChannel(channel, self._decoder, max_bytes=MAX_REQUEST_BYTES)
        try:
            request = frames.receive()
            if isinstance(request, Chunk | Commit):
                raise FrameError("a file's bytes without a request")
            frames.send(answer(request, frames))
            while True:
                # Whoever still sends the bytes of a file is to read why they are not wanted.
                frames.receive()
        except ChannelClosedError:
            return


KIND = FilesKind()


def answer(request: Request, frames: Channel) -> Reply:
    """Do what is asked; ``frames`` carry what comes before the last reply, which is returned."""
    try:
        with closing(open_beneath(_CURRENT, b".", os.O_PATH | os.O_DIRECTORY)) as folder:
            return _do(folder, request, frames)
    except FileProblem as problem:
        return Failed(problem.problem)
    except OSError as error:
        number = error.errno or 0
        return Failed(_PROBLEMS.get(number, Problem.FAILED), number)


_CURRENT: Final = -100
"""AT_FDCWD."""


def _do(folder: int, request: Request, frames: Channel) -> Reply:
    match request:
        case Stat(path):
            return Found(_stat(folder, path))
        case Read():
            _read(folder, request, frames)
            return Complete()
        case Write():
            return Found(write(folder, request, lambda: _bytes_or_end(frames)))
        case List():
            batch = _Batch(frames)
            more = list_folder(folder, request, batch.add)
            batch.send()
            return Listed(more)
        case MakeDirectory():
            return Found(make_directory(folder, request))
        case Remove():
            return Removed(remove(folder, request))


def _stat(folder: int, path: bytes) -> FileInfo:
    names = check_path(path, itself=True)
    if not names:
        return describe(path, os.fstat(folder))
    with closing(open_above(folder, names)) as above:
        info = describe_entry(above, names[-1], path)
    if info is None:
        raise FileProblem(Problem.NOT_FOUND)
    return info


def _read(folder: int, request: Read, frames: Channel) -> None:
    check_path(request.path)
    with closing(open_regular(folder, request.path, os.O_RDONLY)) as file:
        frames.send(Found(describe(request.path, os.fstat(file))))
        at, left = request.offset, request.most_bytes
        if request.length is not None:
            left = min(left, request.length)
        while left and (data := os.pread(file, min(CHUNK_BYTES, left), at)):
            frames.send(Chunk(data))
            at += len(data)
            left -= len(data)
        if left == 0 and request.length is None and os.pread(file, 1, at):
            raise FileProblem(Problem.TOO_LARGE)


def _bytes_or_end(frames: Channel) -> Chunk | Commit:
    message = frames.receive()
    if not isinstance(message, Chunk | Commit):
        raise FrameError("a second request")
    return message


class _Batch:
    """Entries go out together, in messages of a bounded size."""

    def __init__(self, frames: Channel) -> None:
        self._frames = frames
        self._infos: list[FileInfo] = []
        self._bytes = 0

    def add(self, info: FileInfo) -> None:
        size = sys.getsizeof(info.path) + sys.getsizeof(info.link_target) + 128
        if self._bytes + size > _BATCH_BYTES:
            self.send()
        self._infos.append(info)
        self._bytes += size

    def send(self) -> None:
        if self._infos:
            self._frames.send(Entries(tuple(self._infos)))
        self._infos, self._bytes = [], 0
