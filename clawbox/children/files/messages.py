"""What control asks of a files child, one request each, and what comes back."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

CHUNK_BYTES: Final = 64 << 10
"""Most bytes of a file in one message."""
MAX_REQUEST_BYTES: Final = CHUNK_BYTES + 1024
MAX_REPLY_BYTES: Final = 128 << 10


class Type(enum.Enum):
    """What a name is."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A socket, FIFO or device."""


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a path names."""

    path: bytes
    """Relative to the folder."""
    type: Type
    size: int
    """Bytes; of a symbolic link, its target's length."""
    mode: int
    """Permission bits, at most 0777."""
    modified_ns: int
    """When its content last changed: nanoseconds since 1970."""
    uid: int
    gid: int
    link_target: bytes = b""


class How(enum.Enum):
    """What a write does about a file that is there."""

    REPLACE = "replace"
    CREATE = "create"
    """Refuses it."""
    APPEND = "append"
    """Adds to it in place: what was added before a failure stays."""


class Stat(msgspec.Struct, frozen=True, tag="stat"):
    """Describe a path; a symbolic link itself. Answered with Found."""

    path: bytes


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Read a regular file. Answered with Found, Chunk as often as needed, and Complete."""

    path: bytes
    offset: int
    length: int | None
    """None: to its end."""
    most_bytes: int


class Write(msgspec.Struct, frozen=True, tag="write"):
    """Write a regular file: followed by Chunk as often as needed, and Commit. Answered with Found."""

    path: bytes
    mode: int | None
    """None: that of the file that it replaces, else 0644."""
    size: int | None
    """How many bytes it must become; None: not checked."""
    make_parents: bool
    how: How
    draft: bytes
    """A name that nothing has, for the file while it is written where it cannot be without a name."""
    most_bytes: int


class List(msgspec.Struct, frozen=True, tag="list"):
    """List a folder. Answered with Entries as often as needed, and Listed."""

    path: bytes
    after: bytes
    """Only names after this one, in byte order. Not for a recursive one."""
    limit: int
    recursive: bool
    most_entries: int
    """Entries that are looked at, at most."""


class MakeDirectory(msgspec.Struct, frozen=True, tag="mkdir"):
    """Make a folder. Answered with Found."""

    path: bytes
    mode: int
    make_parents: bool


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    """Remove a file, a link itself or a folder. Answered with Removed."""

    path: bytes
    recursive: bool
    most_entries: int


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """The next bytes of a file."""

    data: bytes


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Every byte was sent: have the file be there."""


Request = Stat | Read | Write | List | MakeDirectory | Remove
Incoming = Request | Chunk | Commit


class Found(msgspec.Struct, frozen=True, tag="found"):
    """What is there, at the beginning of a read, else at the end."""

    info: FileInfo


class Complete(msgspec.Struct, frozen=True, tag="complete"):
    """The file was read as far as was asked."""


class Entries(msgspec.Struct, frozen=True, tag="entries"):
    """Some of what is in a folder."""

    infos: tuple[FileInfo, ...]


class Listed(msgspec.Struct, frozen=True, tag="listed"):
    """All entries were told; ``more`` says whether there are others beyond the limit."""

    more: bool


class Removed(msgspec.Struct, frozen=True, tag="removed"):
    """So many files, links and folders are gone."""

    count: int


class Problem(enum.Enum):
    """Why something was not done."""

    NOT_FOUND = "not_found"
    EXISTS = "exists"
    OUTSIDE = "outside"
    NOT_A_FOLDER = "not_a_folder"
    IS_A_FOLDER = "is_a_folder"
    NOT_REGULAR = "not_regular"
    NOT_EMPTY = "not_empty"
    DENIED = "denied"
    NAME_TOO_LONG = "name_too_long"
    WRONG_SIZE = "wrong_size"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    NO_SPACE = "no_space"
    CHANGED = "changed"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It was not done, for this reason."""

    problem: Problem
    errno: int = 0


Reply = Found | Chunk | Complete | Entries | Listed | Removed | Failed
