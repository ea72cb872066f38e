"""What a stream that is searched holds back, and for how long: one rule for bodies and for what tools write.

It depends on public facts alone (docs/security.md, 67): everything since the last line feed, at least
``HOLD`` and at most twice as many bytes of what has none, the same for every secret and text. Holding back
"what could begin a match" told 79 of 80 digits of a secret in 2,325 probes.
"""

from __future__ import annotations

from typing import Final

HOLD: Final = 4096
"""Bytes without a line feed that are held back: at least this many, at most twice as many. No match of a
known secret is longer (``encodings.LONGEST``), so that none goes on in pieces."""


class HoldBack:
    """A window over a stream: some of what went on, for what may stand before a match, then what is held."""

    def __init__(self, context: int) -> None:
        """``context``: how many bytes of what went on are kept."""
        self._context = context
        self._buffer = bytearray()
        self.given = 0
        """Where in the window that begins which is held."""
        self.trimmed = False
        """Whether the window begins in the middle of the stream."""

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, data: bytes) -> int:
        """Put ``data`` at the end; returns up to where in the window the stream may go on."""
        line_end = data.rfind(b"\n") + 1
        self._buffer += data
        size = len(self._buffer)
        cut = size - len(data) + line_end if line_end else self.given
        return size - HOLD if size - cut > 2 * HOLD else cut

    def window(self) -> bytes:
        """Everything that is to be searched."""
        return bytes(self._buffer)

    def go_on(self, to: int) -> None:
        """What is before ``to`` went on."""
        self.given = to
        surplus = max(to - self._context, 0)
        if surplus:
            del self._buffer[:surplus]
            self.given -= surplus
            self.trimmed = True

    def clear(self) -> None:
        """Forget what is held: it never goes on."""
        self._buffer.clear()
