"""What a kind of child is: the seam between how children are made and what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.children.seccomp import Rule

MAX_DESCRIPTORS = 128
MAX_THREADS = 32
DATA_BYTES = 1 << 30


class LoadError(Exception):
    """Something that a kind was told to load cannot be loaded; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How children of a kind are confined, beyond what holds for all (:mod:`clawbox.children.confine`)."""

    filter: Callable[[int], tuple[Rule, ...]]
    """Given the child's process id, the system calls that it may use (:mod:`clawbox.children.filters`)."""
    network: bool = False
    """Whether it is in the server's own network namespace. Others are in an empty one."""
    empty_root: bool = True
    """Whether an empty directory becomes its root."""
    descriptors: int = MAX_DESCRIPTORS
    """Most open descriptors (RLIMIT_NOFILE); fewer where the server itself may not have so many."""
    threads: int = MAX_THREADS
    """Most threads (RLIMIT_NPROC), where each child has a uid of its own."""
    memory_locked: bool = False
    """Whether none of its memory is ever written to swap. Where the server may not lock memory it goes on
    without, and :class:`ForkServerStatus` says so."""
    data_bytes: int = DATA_BYTES
    """Most private memory that it can ever allow itself beside what it inherits (RLIMIT_DATA, hard)."""
    file_bytes: int = 0
    """Longest file that it can make (RLIMIT_FSIZE, hard)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a child works that is somebody's inside a folder, instead of nobody's in an empty one.

    Only where this process may give children any uid and root (CAP_SETUID, CAP_SETGID, CAP_SYS_CHROOT).
    """

    root: int
    """Descriptor of a folder (O_PATH is enough), which becomes the child's root and current folder."""
    uid: int
    gid: int


class Kind(Protocol):
    """An importable object.

    ``preload`` runs in the forkserver, which is trusted, the rest in each child.
    """

    name: str
    """What ``ps`` shows, at most 15 bytes."""
    profile: Profile

    def preload(self) -> None:
        """Import and prepare everything that a child will ever need, for it can open no file. Called once.

        What is opened here is closed in children.
        """

    def open_own(self) -> tuple[int, ...]:
        """Make what the child needs of its own, an event loop for one, and could not make once confined.

        Called in the child just before. Returns descriptors, which stay open.
        """

    def main(self, channel: int, descriptors: int) -> None:
        """Do the child's work; it is confined.

        It speaks over ``channel``, a stream, until that ends; what control hands it comes over
        ``descriptors`` (:mod:`clawbox.children.handing`).
        """


@runtime_checkable
class LoadingKind(Kind, Protocol):
    """A kind whose children can have more than it was imported with. These run in the forkserver."""

    def load(self, key: str, spec: bytes) -> None:
        """Have children forked from now on know something. Raises :class:`LoadError`.

        Descriptors that this opens stay open in children of this kind.
        """

    def loaded(self) -> tuple[str, ...]:
        """The keys of what is loaded now. A kind may have forgotten what was loaded long ago."""


class ForkServerStatus(msgspec.Struct, frozen=True):
    """What a forkserver could give its children: each text is empty, or says why it could not."""

    network_namespace: str
    ipc_namespace: str
    empty_root: str
    memory_lock: str
    """Empty also where no kind asks for it."""
