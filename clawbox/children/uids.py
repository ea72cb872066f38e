"""The range of user ids from which each living child has its own (docs/security.md, 64)."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import struct
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clawbox.children.enforcement import can_have_own_uids

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

CLAIMS: Final = Path("/run/clawbox/uids")
"""Which uids are whose: a file whose bytes are never written, and locked by their position."""
_SERVERS: Final = 8
"""A range has parts for so many servers, if each then has at least so many uids:"""
_FEWEST: Final = 250
_CLAIM: Final = "hhqqi0q"  # struct flock: type, whence, start, length, pid


class UidsExhaustedError(Exception):
    """As many children live as the configured range has ids."""


class UidRange:
    """Hands out each id to one living child at a time; it comes back last in line when the child is dead."""

    def __init__(self, first: int, count: int) -> None:
        self._free = deque(range(first, first + count))
        self._taken: set[int] = set()

    def upper_half(self) -> UidRange:
        """Split off the upper half, for what lives longer than this process; before any id is taken."""
        half = len(self._free) // 2
        other = UidRange(0, 0)
        other._free = deque(self._free.pop() for _ in range(half))
        other._free.reverse()
        return other

    def __contains__(self, uid: int) -> bool:
        return uid in self._taken or uid in self._free

    def reserve(self, uid: int) -> bool:
        """Take a certain id, which something that lives has already; False: it is not free here."""
        if uid not in self._free:
            return False
        self._free.remove(uid)
        self._taken.add(uid)
        return True

    def take(self) -> int:
        """An id that no living child has. Raises :class:`UidsExhaustedError`."""
        if not self._free:
            raise UidsExhaustedError
        uid = self._free.popleft()
        self._taken.add(uid)
        return uid

    def give_back(self, uid: int) -> None:
        """The process that had ``uid`` is dead."""
        self._taken.remove(uid)
        self._free.append(uid)


@contextlib.contextmanager
def claimed(first: int, count: int, claims: Path = CLAIMS) -> Iterator[UidRange]:
    """A part of the range that no other server of this machine has, while entered; for root alone.

    Else two servers' children would share uids, could reach each other, and would count against each other's
    limits (RLIMIT_NPROC). Claims are locks, which end with their process; where they cannot be made (a
    read-only /run), it is the whole range. Raises :class:`UidsExhaustedError` when every part is another's.
    """
    size = max(count // _SERVERS, min(count, _FEWEST))
    try:
        descriptor = _open_claims(claims)
    except OSError as error:
        _log.warning("uids are not claimed: do not run a second server here as root (%s)", error)
        yield UidRange(first, count)
        return
    try:
        for start in range(first, first + count - size + 1, size):
            if _claim(descriptor, start, size):
                yield UidRange(start, size)
                return
        raise UidsExhaustedError(
            f"other servers have all uids from {first} to {first + count - 1}; see children.uid_first"
        )
    finally:
        os.close(descriptor)


def server_uids(first: int, count: int) -> contextlib.AbstractContextManager[UidRange | None]:
    """What :func:`claimed` gives, or None where this process may not give its children uids of their own."""
    return claimed(first, count) if can_have_own_uids() else contextlib.nullcontext()


def _open_claims(path: Path) -> int:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(f"{path} is not this user's")
    return descriptor


def _claim(descriptor: int, start: int, size: int) -> bool:
    """Open file description locks (fcntl(2)): two servers in one process are two."""
    wanted = struct.pack(_CLAIM, fcntl.F_WRLCK, os.SEEK_SET, start, size, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):
        return False
    return True
