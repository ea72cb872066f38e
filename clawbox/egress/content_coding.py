"""Looking into compressed bodies (47): they are decoded to be searched, and go on as they came.

Nothing inside can be replaced, so a finding ends the message. Encoded bytes go on only when all that they
decode to was searched. What is decoded for a byte received is bounded, so that a small body is not a large
amount of work. Other encodings (zstd) cannot be looked into: where secrets are at stake, they are not offered
and not taken.
"""

from __future__ import annotations

import zlib
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import brotli

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from clawbox.egress.scanner import StreamScanner

CODINGS: Final = frozenset({b"gzip", b"x-gzip", b"deflate", b"br"})
"""What can be looked into (RFC 9110 8.4.1, RFC 7932)."""
MAX_RATIO: Final = 200
"""Bytes decoded for each byte received, once past the allowance. Text reaches 5 to 20; zeros 1,030."""
ALLOWANCE: Final = 1 << 20
"""Bytes that may be decoded whatever the ratio."""
_PIECE: Final = 64 << 10
_MAX_CODINGS: Final = 2


class CodingError(Exception):
    """A body is in an encoding that cannot be looked into, is not what it says, or decodes to too much."""


def codings_of(values: Iterable[bytes]) -> tuple[bytes, ...]:
    """The encodings that Content-Encoding names, in the order in which they were applied; identity is none.

    Raises CodingError for one that cannot be looked into, for more than two, and for Brotli twice: each may
    keep a window of 16 MiB (RFC 7932 9.1).
    """
    listed = [coding.strip().lower() for coding in b",".join(values).split(b",")]
    named = tuple(coding for coding in listed if coding not in (b"", b"identity"))
    if len(named) > _MAX_CODINGS or not CODINGS.issuperset(named) or named.count(b"br") > 1:
        raise CodingError("the body is in an encoding that cannot be looked into")
    return named


class EncodedScanner:
    """Searches one encoded body: bytes in, the same bytes out, once they are known to be clean."""

    def __init__(
        self, codings: tuple[bytes, ...], scanner: StreamScanner, outer: StreamScanner | None = None
    ) -> None:
        """``scanner`` is one made for ``encoded`` bodies.

        ``outer`` searches the bytes as they came: gzip has fields, and Brotli blocks, that decode to nothing
        (RFC 1952 2.3, RFC 7932 9.2).
        """
        self.scanner = scanner
        self._outer = outer
        self._decoders = [_decoder(coding) for coding in reversed(codings)]
        self._held: deque[tuple[int, bytes]] = deque()  # encoded bytes, and where what they decode to ends
        self._received = self._decoded = self._cleared = 0

    def feed(self, data: bytes) -> bytes:
        """What may go on now that ``data`` came. Raises LeakError and CodingError; nothing goes on after."""
        self._received += len(data)
        for piece in self._decode(data, 0):
            self._decoded += len(piece)
            if self._decoded > ALLOWANCE + MAX_RATIO * self._received:
                raise CodingError(f"the body decodes to more than {MAX_RATIO} times its size")
            self._cleared += len(self.scanner.feed(piece))
        self._held.append((self._decoded, data))
        released = self._release()
        return released if self._outer is None else self._outer.feed(released)

    def finish(self) -> bytes:
        """What was held back, at the clean end of the body. Raises LeakError and CodingError."""
        if self._received and not all(decoder.ended for decoder in self._decoders):
            raise CodingError("the encoded body breaks off")
        self._cleared += len(self.scanner.finish())
        released = self._release()
        return released if self._outer is None else self._outer.feed(released) + self._outer.finish()

    def whole(self, data: bytes) -> bytes:
        """What goes on of a body that is all here, in place of feed and finish. Raises as they do."""
        return self.feed(data) + self.finish()

    def _decode(self, data: bytes, level: int) -> Iterator[bytes]:
        if level == len(self._decoders):
            yield data
            return
        for piece in self._decoders[level].feed(data):
            yield from self._decode(piece, level + 1)

    def _release(self) -> bytes:
        clear = []
        while self._held and self._held[0][0] <= self._cleared:
            clear.append(self._held.popleft()[1])
        return b"".join(clear)


class _Decoder(Protocol):
    """One encoded stream."""

    @property
    def ended(self) -> bool:
        """Whether the stream is whole."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """All that ``data`` decodes to, in pieces of bounded size. Raises CodingError."""


def _decoder(coding: bytes) -> _Decoder:
    return _BrotliDecoder() if coding == b"br" else _ZlibDecoder(gzip=coding != b"deflate")


class _BrotliDecoder:
    """One Brotli stream."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    @property
    def ended(self) -> bool:
        ended: bool = self._stream.is_finished()
        return ended

    def feed(self, data: bytes) -> Iterator[bytes]:
        if data and self.ended:
            raise CodingError("bytes follow the encoded body")
        # Until nothing comes: the library's can_accept_more_data() speaks of input alone, and is true while
        # there is output yet. The limit is for a buffer that grows by doubling: a piece is under twice of it.
        piece = data
        while piece and not self.ended:
            try:
                piece = self._stream.process(data, output_buffer_limit=_PIECE)
            except brotli.error:
                raise CodingError("the body is not in the encoding that it states") from None
            data = b""
            if piece:
                yield piece


class _ZlibDecoder:
    """One gzip (of any number of members) or deflate stream, in pieces of bounded size."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._stream: zlib._Decompress | None = None
        self._head = b""

    @property
    def ended(self) -> bool:
        return self._stream is not None and self._stream.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._stream is None or (self._stream.eof and self._gzip):
                data, self._head = self._head + data, b""
                if len(data) == 1:  # two bytes tell zlib's format from raw deflate
                    self._head = data
                    return
                self._stream = zlib.decompressobj(self._window_bits(data))
            elif self._stream.eof:
                raise CodingError("bytes follow the encoded body")
            data = yield from self._decompress(self._stream, data)

    def _decompress(self, stream: zlib._Decompress, data: bytes) -> Generator[bytes, None, bytes]:
        """Yields what ``data`` decodes to, and returns what follows the end of the stream."""
        while True:
            try:
                piece = stream.decompress(data, _PIECE)
            except zlib.error:
                raise CodingError("the body is not in the encoding that it states") from None
            if piece:
                yield piece
            if stream.eof:
                return stream.unused_data
            data = stream.unconsumed_tail
            if not data and len(piece) < _PIECE:
                return b""

    def _window_bits(self, head: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        # RFC 9110 8.4.1.2: "deflate" is zlib's format, but some send the raw one.
        is_zlib = head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(head[:2]) % 31 == 0
        return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
