"""Heads of requests and responses: the bytes before the body, parsed strictly or refused.

One regular expression without backtracking takes a good head in one go. Only when it does not match, or the
head is still incomplete, is it looked at line by line to name the first thing that is wrong, so that the
reason does not depend on how the bytes were cut into reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import msgspec

from clawbox.egress.http.headers import Headers
from clawbox.egress.refusal import Denial, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

H = TypeVar("H")
Buffer: TypeAlias = bytes | bytearray

# RFC 9110 5.6.2; RFC 9112 2 to 5. Field values: 5.5, with obs-text, which real servers send.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_FIELDS = rb"((?:%s++:[\t -~\x80-\xff]*+\r\n)*+)\r\n" % _TOKEN
_METHOD = rb"%s{1,32}+" % _TOKEN
# PRI begins an HTTP/2 connection (RFC 9113 3.4) and nothing else.
_REQUEST_LINE = rb"(?!PRI )(%s) ([!-~]++) HTTP/1\.([01])\r\n" % _METHOD
# The space after the status is required, and left out by many servers that have no reason to send.
_STATUS_LINE = rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t -~\x80-\xff]*+)?+\r\n"
_REQUEST = re.compile(_REQUEST_LINE + _FIELDS)
_RESPONSE = re.compile(_STATUS_LINE + _FIELDS)
_REQUEST_FIRST = re.compile(_REQUEST_LINE)
_STATUS_FIRST = re.compile(_STATUS_LINE)
_FIELD = re.compile(rb"(%s++):([\t -~\x80-\xff]*+)\r\n" % _TOKEN)
_TRAILERS = re.compile(_FIELDS)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_VERSION = re.compile(rb"(?:[^ ]+ [^ ]+ )?HTTP/(?!1\.[01][ \r])[0-9.]+(?: .*)?\r\n")


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """How much of a head is read."""

    bytes: int = 64 << 10
    """From the first byte of the start line to the empty line, that included."""
    fields: int = 128
    """Header lines."""


class RequestHead(msgspec.Struct, frozen=True):
    """A request's start line and headers, syntactically good; nothing is decided."""

    method: str
    target: str
    """As it came; only ``clawbox.egress.target`` says what it means."""
    version: int
    """The minor version: 0 or 1."""
    headers: Headers

    @property
    def keep_alive(self) -> bool:
        """Whether the client will send another request on this connection (RFC 9112 9.3)."""
        return _keeps_alive(self.version, self.headers)

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` before it sends its body."""
        return self.version == 1 and b"expect" in self.headers

    @property
    def upgrade(self) -> frozenset[bytes]:
        """The protocols, in lower case, that the client would change to (RFC 9110 7.8)."""
        return self.headers.tokens(b"upgrade")


class ResponseHead(msgspec.Struct, frozen=True):
    """A response's status line and headers, syntactically good."""

    status: int
    """100 to 999. The reason phrase is dropped: it means nothing, and could carry what is not scanned."""
    version: int
    headers: Headers

    @property
    def keep_alive(self) -> bool:
        """Whether the upstream will take another request on this connection (RFC 9112 9.3)."""
        return _keeps_alive(self.version, self.headers)

    @property
    def interim(self) -> bool:
        """Whether the response proper is still to come (1xx)."""
        return self.status < 200


def match_request(data: Buffer, limits: HeadLimits) -> tuple[RequestHead, int] | None:
    """The request head that ``data`` begins with, and its length in bytes; None: none that is good and whole.

    Raises RefusedError when there are more header lines than the limit.
    """
    good = _REQUEST.match(data)
    if good is None or good.end() > limits.bytes:
        return None
    method, target, version, fields = good.groups()
    headers = _headers(fields, limits)
    return RequestHead(method.decode(), target.decode(), version[0] & 1, headers), good.end()


def match_response(data: Buffer, limits: HeadLimits) -> tuple[ResponseHead, int] | None:
    """The response head that ``data`` begins with, as :func:`match_request`."""
    good = _RESPONSE.match(data)
    if good is None or good.end() > limits.bytes:
        return None
    version, status, fields = good.groups()
    headers = _headers(fields, limits)
    return ResponseHead(int(status), version[0] & 1, headers), good.end()


def match_trailers(data: Buffer, limits: HeadLimits) -> tuple[Headers, int] | None:
    """Header lines and the empty line after them (RFC 9112 7.1.2), as :func:`match_request`."""
    good = _TRAILERS.match(data)
    if good is None or good.end() > limits.bytes:
        return None
    return _headers(good[1], limits), good.end()


def well_formed(block: bytes) -> bool:
    """Whether bytes are good header lines, the empty one after them, and nothing else."""
    return _TRAILERS.fullmatch(block) is not None


def _headers(block: bytes, limits: HeadLimits) -> Headers:
    items = [(name, value.strip(b" \t")) for name, value in _FIELD.findall(block)]
    if len(items) > limits.fields:
        raise RefusedError(Denial.TOO_MANY_HEADERS)
    return Headers(items)


class HeadReader(Generic[H]):
    """One head out of reads of any size. Looks at each byte once, however small the reads are."""

    def __init__(
        self,
        match: Callable[[Buffer, HeadLimits], tuple[H, int] | None],
        first_line: Callable[[bytes], None] | None,
        limits: HeadLimits,
    ) -> None:
        self._match = match
        self._first_line = first_line
        self._limits = limits
        self._buffer = bytearray()
        self._line = 0
        """Where the line begins that is not whole yet."""
        self._checked = 0
        """How far there are no control bytes."""
        self._lines = 0 if first_line else 1

    @property
    def begun(self) -> bool:
        """Whether a part of a head is waiting for the rest."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> tuple[H, bytes] | None:
        """The head and what follows it; None: not all there.

        Raises RefusedError for what cannot become a good head, as soon as that is certain.
        """
        buffer = self._buffer
        if not buffer:
            found = self._match(data, self._limits)
            if found is not None:
                return found[0], data[found[1] :]
            buffer += data
        else:
            tail = max(len(buffer) - 3, 0)
            buffer += data
            if self._may_end(tail):
                found = self._match(buffer, self._limits)
                if found is not None:
                    rest = bytes(memoryview(buffer)[found[1] :])
                    self._restart()
                    return found[0], rest
        self._diagnose()
        return None

    def _may_end(self, tail: int) -> bool:
        # Trailers may be the empty line alone.
        return self._buffer.find(b"\r\n\r\n", tail) >= 0 or (
            self._first_line is None and self._buffer.startswith(b"\r\n")
        )

    def _restart(self) -> None:
        self._buffer = bytearray()
        self._line = self._checked = 0
        self._lines = 0 if self._first_line else 1

    def _diagnose(self) -> None:
        """Raise for the first thing that no head begins with; return if it can still become one."""
        buffer, limit = self._buffer, self._limits.bytes
        while True:
            end = buffer.find(b"\r\n", max(self._line, self._checked - 1), limit)
            text_end = end if end >= 0 else min(len(buffer), limit)
            bad = _CONTROL.search(buffer, self._checked, text_end)
            if bad is not None:
                # The CR that ends what has come so far may be half of a line's end.
                if end >= 0 or bad.start() != text_end - 1 or bad[0] != b"\r":
                    raise RefusedError(
                        Denial.CONTROL_BYTE, f"byte {bad[0][0]:#04x} in line {self._lines + 1}"
                    )
                text_end -= 1
            self._checked = text_end
            if end < 0:
                if len(buffer) >= limit:
                    raise RefusedError(Denial.HEAD_TOO_LARGE, f"more than {limit} bytes")
                return
            self._check_line(bytes(buffer[self._line : end + 2]))
            self._line = self._checked = end + 2
            self._lines += 1

    def _check_line(self, line: bytes) -> None:
        if self._lines == 0 and self._first_line is not None:
            self._first_line(line)
        elif self._lines > self._limits.fields:
            raise RefusedError(Denial.TOO_MANY_HEADERS)
        elif line[0] in b" \t":
            raise RefusedError(Denial.FOLDED_HEADER)
        elif not _FIELD.fullmatch(line):
            raise RefusedError(Denial.BAD_HEADER, f"line {self._lines + 1}")


def request_reader(limits: HeadLimits) -> HeadReader[RequestHead]:
    """Reads the heads of requests."""
    return HeadReader(match_request, _request_line, limits)


def response_reader(limits: HeadLimits) -> HeadReader[ResponseHead]:
    """Reads the heads of responses."""
    return HeadReader(match_response, _status_line, limits)


def trailer_reader(limits: HeadLimits) -> HeadReader[Headers]:
    """Reads trailers."""
    return HeadReader(match_trailers, None, limits)


def _request_line(line: bytes) -> None:
    if line.startswith(b"PRI "):
        raise RefusedError(Denial.HTTP2)
    if not _REQUEST_FIRST.fullmatch(line):
        raise RefusedError(Denial.HTTP_VERSION if _VERSION.fullmatch(line) else Denial.BAD_START_LINE)


def _status_line(line: bytes) -> None:
    if not _STATUS_FIRST.fullmatch(line):
        # Never with the line itself: an upstream may reflect a credential in it (property 49).
        raise RefusedError(Denial.HTTP_VERSION if _VERSION.fullmatch(line) else Denial.BAD_START_LINE)


def _keeps_alive(version: int, headers: Headers) -> bool:
    options = headers.tokens(b"connection")
    return b"close" not in options and (version == 1 or b"keep-alive" in options)
