"""What a kind of child is: the seam between how children are made and what they do."""

from __future__ import annotations

from typing import Protocol

import msgspec


class LoadError(Exception):
    """Something that a kind was told to load cannot be loaded; the text says why."""


class Kind(Protocol):
    """An importable object.

    ``preload`` and ``load`` run in the forkserver, which is trusted, the rest in each child.
    """

    name: str
    """What ``ps`` shows, at most 15 bytes."""

    def preload(self) -> None:
        """Import and prepare everything that a child will ever need, for it can open no file. Called once."""

    def load(self, key: str, spec: bytes) -> None:
        """Have children forked from now on know something. Raises :class:`LoadError`."""

    def loaded(self) -> tuple[str, ...]:
        """The keys of what is loaded now. A kind may have forgotten what was loaded long ago."""

    def open_own(self) -> tuple[int, ...]:
        """Open what the child needs of its own; called in the child just before it is confined.

        Returns descriptors, which stay open.
        """

    def main(self, channel: int) -> None:
        """Do the child's work: speak over the descriptor ``channel`` until it ends. It is confined."""


class ForkServerStatus(msgspec.Struct, frozen=True):
    """What a forkserver could give its children: each text is empty, or says why it could not."""

    network_namespace: str
    ipc_namespace: str
    empty_root: str
