"""The memory that a worker has of its own: how much it may have, and whether it gave back what it took."""

from __future__ import annotations

import os
import resource
from typing import Final

from clawbox.children.linux import read_statm

_BLOAT: Final = 16 << 20
"""A worker that keeps so much more memory than it had when it began is replaced."""


class OwnMemory:
    """What this process has of its own, as the kernel counts it against RLIMIT_DATA.

    Made before the process is confined, for it opens a file.
    """

    def __init__(self) -> None:
        self.descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        """Stays open for as long as the process lives."""
        self._at_start = 0

    def data_bytes(self) -> int:
        """How much it has now."""
        return read_statm(self.descriptor)[1]

    def allow(self, extra: int) -> None:
        """Let it have so many bytes beside what it has now, and never more than the hard limit."""
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (min(self.data_bytes() + extra, hard), hard))

    def settled(self) -> None:
        """What it has now is what it begins with."""
        self._at_start = self.data_bytes()

    def is_bloated(self) -> bool:
        """Whether it keeps far more than it began with."""
        return self.data_bytes() - self._at_start > _BLOAT
