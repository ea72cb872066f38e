"""Blocks of the disk behind the end of a file, which only that file can take (docs/security.md, 99)."""

from __future__ import annotations

import os
import time
from typing import Final

from clawbox.children import linux

ROOM_BYTES: Final = 8 << 20
_RETRY_EVERY_S: Final = 1.0


class Room:
    """Keeps blocks for one file that is appended to; the size of the file stays what was written."""

    def __init__(self) -> None:
        self._kept_to = 0
        self._next_try = 0.0
        self.problem = ""
        """Why there is no room; empty: there is, or nobody asked for any yet."""

    def begin(self) -> None:
        """What follows is about another file, or one that was cut: then its blocks are gone."""
        self._kept_to = 0
        self._next_try = 0.0

    def keep(self, descriptor: int, size: int) -> None:
        """Have room behind ``size``, the file's end; asks the kernel when less than half is left.

        Never raises: on some file systems, and on a disk that is full, there is none.
        """
        if size + ROOM_BYTES // 2 <= self._kept_to:
            return
        if (now := time.monotonic()) < self._next_try:
            return
        try:
            linux.allocate_behind(descriptor, size, ROOM_BYTES)
        except OSError as error:
            self.problem = error.strerror or str(error)
            self._next_try = now + _RETRY_EVERY_S
        else:
            self.problem = ""
            self._kept_to = size + ROOM_BYTES

    @staticmethod
    def give_back(descriptor: int) -> None:
        """Free the blocks of a file to which nothing is appended any more. Raises OSError."""
        os.ftruncate(descriptor, os.fstat(descriptor).st_size)
