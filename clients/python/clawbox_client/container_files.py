"""Where the bytes of a file come from that is written into a container, and where those of a read one go."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

from clawbox_client.v1 import containers_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

CHUNK_BYTES = 64 << 10
"""Bytes of a file in one message."""

BlockingFileSource: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Iterable[bytes]"
"""What is written: a local path, the bytes themselves, a binary file, or pieces of any size."""

FileSource: TypeAlias = "BlockingFileSource | AsyncIterator[bytes]"
"""The same for the asyncio client, which takes asynchronous pieces too."""

FileDestination: TypeAlias = "str | os.PathLike[str] | IO[bytes]"
"""Where a file goes: a local path, which it gets when it is complete, or a binary file."""

FileProgress: TypeAlias = "Callable[[int], None]"
"""Told after each chunk how many bytes went; by the blocking client while writing in another thread."""


class Call(Protocol):
    """What an upload needs of the call that carries it."""

    def cancel(self) -> object:
        """Ends the call."""


class FileUpload:
    """The bytes of one file that is written. Raises OSError when a local file cannot be opened."""

    def __init__(self, source: BlockingFileSource, size_bytes: int | None) -> None:
        self.size_bytes = size_bytes
        self.failure: BaseException | None = None
        """What the source, or ``progress``, raised while the messages were made."""
        self._opened: IO[bytes] | None = None
        self._call: Call | None = None
        self._carried = threading.Event()
        self._pieces: Iterable[bytes]
        if isinstance(source, bytes):
            self.size_bytes = len(source)
            self._pieces = (source,)
        elif isinstance(source, str | os.PathLike):
            self._opened = Path(source).open("rb")  # noqa: SIM115 - close() does
            about = os.fstat(self._opened.fileno())
            if stat.S_ISREG(about.st_mode):
                self.size_bytes = about.st_size
            self._pieces = _read(self._opened)
        elif _is_file(source):
            self._pieces = _read(source)
        else:
            self._pieces = source

    def close(self) -> None:
        """Closes what was opened here."""
        if self._opened is not None:
            self._opened.close()

    def carried_by(self, call: Call) -> None:
        """Says which call sends the messages, so that a source that fails can end it."""
        self._call = call
        self._carried.set()

    def messages(
        self, start: containers_pb2.WriteFileStart, progress: FileProgress | None
    ) -> Iterator[containers_pb2.WriteFileRequest]:
        """The messages of the call.

        gRPC asks for them in a thread of its own. A source that fails must not look like one that ended, or
        half a file would take the place of a whole one: the call is cancelled.
        """
        try:
            yield containers_pb2.WriteFileRequest(start=start)
            sent = 0
            for piece in self._pieces:
                for first in range(0, len(piece), CHUNK_BYTES):
                    chunk = piece[first : first + CHUNK_BYTES]
                    yield containers_pb2.WriteFileRequest(chunk=chunk)
                    sent += len(chunk)
                    if progress is not None:
                        progress(sent)
        except Exception as error:  # noqa: BLE001 - whatever the source raises
            self.failure = error
            self._carried.wait()
            if self._call is not None:
                self._call.cancel()


def _is_file(source: object) -> bool:
    return hasattr(source, "read")


def _read(file: object) -> Iterator[bytes]:
    read: Callable[[int], bytes | None] = file.read  # type: ignore[attr-defined]
    while piece := read(CHUNK_BYTES):
        yield piece


def start_message(
    container_id: str,
    path: bytes,
    size_bytes: int | None,
    *,
    mode: int | None,
    make_parents: bool,
    exclusive: bool,
) -> containers_pb2.WriteFileStart:
    """The first message of a file that is written."""
    return containers_pb2.WriteFileStart(
        container_id=container_id,
        path=path,
        mode=mode,
        size_bytes=size_bytes,
        make_parents=make_parents,
        exclusive=exclusive,
    )


class Download:
    """Where the bytes of a read file go: ``write`` each chunk, then ``finish``, and ``close`` in any case.

    A path gets the file when it is complete, by rename; until then, or if it never is, what was there stays.
    """

    def __init__(self, destination: FileDestination) -> None:
        self._temporary: Path | None = None
        if isinstance(destination, str | os.PathLike):
            self._target: Path | None = Path(destination)
            descriptor, name = tempfile.mkstemp(prefix=".clawbox-", dir=self._target.parent)
            self._temporary = Path(name)
            self._file: IO[bytes] = os.fdopen(descriptor, "wb")
        else:
            self._target = None
            self._file = destination

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        view = memoryview(chunk)
        while view:
            # A raw file may take less than it was given.
            view = view[self._file.write(view) :]

    def finish(self, mode: int) -> None:
        """Says that all bytes are there. A path gets them, with the permission bits of the file."""
        self._file.flush()
        if self._temporary is not None and self._target is not None:
            os.fchmod(self._file.fileno(), mode & 0o777)
            self._temporary.replace(self._target)
            self._temporary = None

    def close(self) -> None:
        """Closes what was opened here, and removes what is not complete."""
        if self._target is None:
            return
        self._file.close()
        if self._temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()
            self._temporary = None
