"""One stream of a container's output, without the secrets that its sidecar knows.

Known secrets are replaced in the sidecar, for control has none of them; with ``shapes`` so is what looks like
a credential, and phrases that steer a model are counted, as for the output of tools. On a server without a
way out no secret was given to the container, and the shapes are looked for in this process. Fail closed: once
a stream cannot be cleaned, nothing of it is shown any more. Scanning is a net, not a boundary (77).

What is held back is :mod:`clawbox.egress.hold_back`'s rule, and depends on public facts alone (67).
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from typing import TYPE_CHECKING, Final

from clawbox.containers.output.findings import Counts, counted
from clawbox.egress.cleaning import CleanOutput
from clawbox.egress.leaks import LeakDetector
from clawbox.egress.messages import Found
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.sandbox_door import SandboxDoor
    from clawbox.egress.scanner import StreamScanner

QUIET_SECONDS: Final = 0.1
"""After so long without output a terminal's stream is flushed (67): the same for every text."""
_INLINE_BYTES: Final = 32 << 10  # searched at 200 MB/s: below this, a thread costs more than it saves


class CleanedStream:
    """What one process writes to one stream, piece by piece. Calls are awaited one after the other.

    Each raises REDACTION_UNAVAILABLE when the sidecar does not answer or another one took its place, and so
    does every later one: what was held back is lost with it. A call that is cancelled ends the stream, too.
    """

    def __init__(self, door: SandboxDoor | None, shapes: bool) -> None:  # noqa: FBT001
        self.findings: Counts = Counter()
        """What was replaced or counted so far."""
        self.rests = True
        """Whether nothing is held back: behind a line end, a new stream could go on from here."""
        self._way: _Sidecar | _Here = _Here(shapes=shapes) if door is None else _Sidecar(door, shapes=shapes)
        self._over = False

    async def feed(self, data: bytes) -> bytes:
        """What may be shown now that ``data``, of any size, came."""
        return await self._pass(data)

    async def flush(self) -> bytes:
        """What is held back, while the stream goes on: for terminals, after :data:`QUIET_SECONDS`."""
        return await self._pass(b"", flush=True)

    async def end(self) -> bytes:
        """What is held back, after the last piece."""
        return await self._pass(b"", end=True)

    def close(self) -> None:
        """Nobody wants the rest."""
        if not self._over:
            self._over = True
            self._way.forget()

    async def _pass(self, data: bytes, *, end: bool = False, flush: bool = False) -> bytes:
        if self._over:
            raise _over()
        self._over = True  # unless this goes well
        cleaned = await self._way.clean(data, end=end, flush=flush)
        self._over = end
        self.findings += counted(cleaned.found)
        self.rests = cleaned.rests
        return cleaned.data


class _Sidecar:
    """Where there is a way out."""

    def __init__(self, door: SandboxDoor, *, shapes: bool) -> None:
        self._door = door
        self._shapes = shapes
        self._number = door.new_stream()

    async def clean(self, data: bytes, *, end: bool, flush: bool) -> CleanOutput:
        return await self._door.scan(self._number, data, end=end, flush=flush, shapes=self._shapes)

    def forget(self) -> None:
        self._door.forget_stream(self._number)


class _Here:
    """Where there is none."""

    def __init__(self, *, shapes: bool) -> None:
        self._scanner = _detector().output(shapes=shapes)

    async def clean(self, data: bytes, *, end: bool, flush: bool) -> CleanOutput:
        search = functools.partial(_search, self._scanner, data, _last(self._scanner, end=end, flush=flush))
        if len(data) <= _INLINE_BYTES:
            return search()
        return await asyncio.to_thread(search)

    def forget(self) -> None:
        """What is held is held here alone, and goes with this."""


@functools.cache
def _detector() -> LeakDetector:
    return LeakDetector()


def _last(scanner: StreamScanner, *, end: bool, flush: bool) -> Callable[[], bytes] | None:
    if end:
        return scanner.finish
    return scanner.flush if flush else None


def _search(scanner: StreamScanner, data: bytes, last: Callable[[], bytes] | None) -> CleanOutput:
    cleaned = scanner.feed(data)
    if last is not None:
        cleaned += last()
    found = tuple(
        Found(one.name, one.kind, one.place, one.action, count) for one, count in scanner.found.items()
    )
    scanner.found.clear()
    return CleanOutput(cleaned, found, scanner.rests)


def _over() -> ClawboxError:
    return ClawboxError(
        Reason.REDACTION_UNAVAILABLE,
        "this stream of output broke off where it was cleaned of secrets, and is not shown any further",
        retry_after=1.0,
    )
