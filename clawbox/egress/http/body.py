"""Bodies out of reads of any size: payload as it comes, nothing kept but an unfinished line.

A reader is fed what follows the head. It appends payload to a list and says where in the read the body ended,
so that what belongs to the next message is not touched.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from clawbox.egress.http.framing import BodyKind
from clawbox.egress.http.head import HeadLimits, trailer_reader
from clawbox.egress.http.headers import EMPTY, Headers
from clawbox.egress.refusal import Denial, RefusedError

if TYPE_CHECKING:
    from clawbox.egress.http.framing import Framing

MAX_CHUNK_LINE: Final = 1024
"""Bytes of a chunk's size line, its extensions and line end included; extensions are dropped."""
TRAILER_LIMITS: Final = HeadLimits(bytes=16 << 10, fields=64)
# RFC 9112 7.1: sixteen digits could not be counted by everyone, so fifteen. The white space that 7.1.1 allows
# before an extension is "bad", and refused.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:;[\t -~\x80-\xff]*+)?+\r\n")
_CRLF: Final = b"\r\n"


class BodyReader(Protocol):
    """One body."""

    trailers: Headers

    def feed(self, data: bytes, payload: list[bytes]) -> int | None:
        """Append the payload in ``data``; the position after the body, or None while it goes on.

        Raises RefusedError.
        """

    def ends_with_connection(self) -> bool:
        """Whether the end of the connection is the end of the body."""


def body_reader(framing: Framing) -> BodyReader:
    """What reads a body of that framing."""
    if framing.kind is BodyKind.CHUNKED:
        return _ChunkedBody()
    if framing.kind is BodyKind.CLOSE:
        return _CloseBody()
    return _LengthBody(framing.length)


class _LengthBody:
    def __init__(self, length: int) -> None:
        self.trailers: Headers = EMPTY
        self._left = length

    def feed(self, data: bytes, payload: list[bytes]) -> int | None:
        taken = data if len(data) <= self._left else data[: self._left]
        if taken:
            payload.append(taken)
        self._left -= len(taken)
        return None if self._left else len(taken)

    def ends_with_connection(self) -> bool:
        return False


class _CloseBody:
    def __init__(self) -> None:
        self.trailers: Headers = EMPTY

    def feed(self, data: bytes, payload: list[bytes]) -> int | None:
        if data:
            payload.append(data)
        return None

    def ends_with_connection(self) -> bool:
        return True


class _ChunkedBody:
    """RFC 9112 section 7.1."""

    def __init__(self) -> None:
        self.trailers: Headers = EMPTY
        self._left = 0
        """Bytes of the current chunk that are still to come."""
        self._ending = False
        """Whether CRLF after a chunk's data is due."""
        self._pending = b""
        """The beginning of a size line, or the CR of the CRLF that is due."""
        self._tail = trailer_reader(TRAILER_LIMITS)
        self._in_trailers = False

    def feed(self, data: bytes, payload: list[bytes]) -> int | None:
        begun = len(self._pending)
        if begun:
            data = self._pending + data
            self._pending = b""
        at, size = 0, len(data)
        while not self._in_trailers:
            if self._left:
                taken = data[at : at + self._left]
                if not taken:
                    return None
                payload.append(taken)
                at += len(taken)
                self._left -= len(taken)
                if self._left:
                    return None
                self._ending = True
            if self._ending:
                if not _CRLF.startswith(data[at : at + 2]):
                    raise RefusedError(Denial.BAD_CHUNK, "no CRLF after the chunk's data")
                if size - at < 2:
                    self._pending = data[at:]
                    return None
                at += 2
                self._ending = False
            line = _SIZE.match(data, at, at + MAX_CHUNK_LINE)
            if line is None:
                self._check_line(data[at : at + MAX_CHUNK_LINE])
                self._pending = data[at:]
                return None
            at = line.end()
            self._left = int(line[1], 16)
            self._in_trailers = not self._left
        return self._feed_trailers(data, at, begun)

    def ends_with_connection(self) -> bool:
        return False

    def _feed_trailers(self, data: bytes, at: int, begun: int) -> int | None:
        if at == len(data):
            return None
        try:
            found = self._tail.feed(data[at:])
        except RefusedError as error:
            raise RefusedError(Denial.BAD_TRAILER, error.refusal.denial.meaning) from None
        if found is None:
            return None
        self.trailers, rest = found
        return len(data) - len(rest) - begun

    def _check_line(self, line: bytes) -> None:
        """Raise unless ``line``, which has no good end yet, can still become a size line."""
        if len(line) == MAX_CHUNK_LINE or not _SIZE_BEGUN.fullmatch(line):
            raise RefusedError(Denial.BAD_CHUNK, "malformed size line")


_SIZE_BEGUN: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,15}+(?:;[\t -~\x80-\xff]*+)?+\r?+)?+")
