"""Secrets on their way out are stopped, on their way in are replaced (properties 45 to 49).

Known secrets are looked for in everything, in every spelling of ``clawbox.egress.encodings``; shapes in
everything outbound and in text inbound. Nothing here sends or reads. ``clawbox.egress.scanner`` has what a
body goes through, ``clawbox.egress.content_coding`` what a compressed one does.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import msgspec

from clawbox.egress.encodings import known_secret
from clawbox.egress.findings import (
    Action,
    Finding,
    Judge,
    Place,
    inbound,
    inbound_encoded,
    outbound,
    output,
    unaltered,
)
from clawbox.egress.patterns import PatternSet
from clawbox.egress.scanner import REDACTED, StreamScanner
from clawbox.egress.shapes import CREDENTIAL_SHAPES, GENERIC_SHAPES, INJECTION_PATTERNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from clawbox.egress.http.headers import Field
    from clawbox.network_rules import ShapeAction

_MAX_DECODINGS: Final = 10
"""How often percent-encoding is undone, as in the Rust clawbox 0.1."""
_BASIC: Final = re.compile(rb"(?i)\bbasic[ \t]+([a-z0-9+/=_-]+)")
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_TEXT_TYPES: Final = re.compile(
    rb"(?i)text/|application/(?:[a-z0-9.+-]+\+)?(?:json|xml|yaml|x-yaml|javascript|ecmascript|graphql|ndjson"
    rb"|x-ndjson|jsonl|toml|sql|x-www-form-urlencoded|xhtml|problem|pem-[a-z-]+)|[a-z]+/[a-z0-9.-]+\+(?:json|xml)"
)


class HeadVerdict(msgspec.Struct, frozen=True):
    """What may become of a head, or of trailers."""

    findings: tuple[Finding, ...] = ()
    headers: tuple[Field, ...] = ()
    """Those that may go on, redacted where something was found; none when it is refused."""

    @property
    def refused(self) -> bool:
        """Whether the message must not go on."""
        return any(found.action is Action.REFUSED for found in self.findings)


@functools.cache
def shape_patterns() -> PatternSet:
    """The shapes, compiled once for a process and those that are forked from it."""
    return PatternSet(CREDENTIAL_SHAPES)


@functools.cache
def phrase_patterns() -> PatternSet:
    """What is looked for in output besides the shapes, compiled once likewise."""
    return PatternSet((*GENERIC_SHAPES, *INJECTION_PATTERNS))


def is_text(content_type: bytes) -> bool:
    """Whether shapes are looked for in an inbound body of that type; none stated counts as text."""
    return not content_type.strip() or _TEXT_TYPES.match(content_type.strip()) is not None


class LeakDetector:
    """Knows the secrets of one sandbox; its requests share it."""

    def __init__(self, secrets: Iterable[tuple[str, str]] = ()) -> None:
        """``secrets`` are (credential name, value), its retired values among them (docs/security.md, 76).

        Raises ValueError for a value that is empty or has a line end.
        """
        known = [pattern for name, value in secrets for pattern in known_secret(name, value)]
        # Two searches are faster than one for both: the automaton of many long alternatives has many states.
        self._known = (PatternSet(known),) if known else ()
        self._all = (*self._known, shape_patterns())

    def mentions(self, text: str) -> bool:
        """Whether there is a secret in a text."""
        return self._suspicious([text.encode("utf-8", "surrogatepass")])

    def outbound_head(self, url: str, headers: Iterable[Field], on_shape: ShapeAction) -> HeadVerdict:
        """Whether the head of a request may leave, which headers with it.

        Asked after the client's own authentication was taken out, before a credential is attached. ``url`` is
        the whole of it, host and query too. A shape that is to be redacted is so in a header's value; where
        it stands elsewhere, or in an encoding, the request is refused.
        """
        headers = tuple(headers)
        target = url.encode("utf-8", "surrogatepass")
        if not self._suspicious([target, *(part for header in headers for part in header)]):
            return HeadVerdict(headers=headers)
        judge = outbound(on_shape)
        findings = list(self._look(target, Place.URL, unaltered(judge)))
        kept = []
        for header in headers:
            found, cleaned = self._clean(header, judge)
            if cleaned is None:
                found = [replace(one, action=Action.REFUSED) for one in found]
            else:
                kept.append(cleaned)
            findings += found
        verdict = HeadVerdict(tuple(dict.fromkeys(findings)), tuple(kept))
        return HeadVerdict(verdict.findings) if verdict.refused else verdict

    def inbound_head(self, headers: Iterable[Field]) -> HeadVerdict:
        """What of a response's headers may go on (property 49); one that cannot be cleaned is left out."""
        headers = tuple(headers)
        if not self._suspicious([part for header in headers for part in header]):
            return HeadVerdict(headers=headers)
        findings: list[Finding] = []
        kept = []
        for header in headers:
            found, cleaned = self._clean(header, inbound)
            findings += found
            if cleaned is not None:
                kept.append(cleaned)
        return HeadVerdict(tuple(dict.fromkeys(findings)), tuple(kept))

    def outbound_trailers(self, trailers: Iterable[Field], on_shape: ShapeAction) -> HeadVerdict:
        """As :meth:`outbound_head`, for what follows a request's body."""
        return _as_trailers(self.outbound_head("", trailers, on_shape))

    def inbound_trailers(self, trailers: Iterable[Field]) -> HeadVerdict:
        """As :meth:`inbound_head`, for what follows a response's body."""
        return _as_trailers(self.inbound_head(trailers))

    def outbound_body(
        self, on_shape: ShapeAction, *, keep_length: bool = False, encoded: bool = False
    ) -> StreamScanner:
        """A scanner for a request's body; see StreamScanner for ``keep_length``.

        ``encoded``: what comes is decoded to be looked at alone, so that nothing in it can be replaced.
        """
        judge = outbound(on_shape)
        return StreamScanner(self._all, unaltered(judge) if encoded else judge, keep_length=keep_length)

    def inbound_body(self, *, text: bool, keep_length: bool = False, encoded: bool = False) -> StreamScanner:
        """A scanner for a response's body. ``text``: for shapes, too (see :func:`is_text`).

        In an ``encoded`` body shapes are reported alone.
        """
        return StreamScanner(
            self._all if text else self._known,
            inbound_encoded if encoded else inbound,
            keep_length=keep_length,
        )

    def output(self, *, shapes: bool) -> StreamScanner:
        """A scanner for a stream of what a program writes. ``shapes``: for more than known secrets."""
        patterns = (*self._all, phrase_patterns()) if shapes else self._known
        return StreamScanner(patterns, output, keep_length=False)

    def _suspicious(self, parts: Sequence[bytes]) -> bool:
        """The quick question for a whole head: some 10 µs."""
        block = b"\n".join(parts)
        if b"%" in block or b"asic" in block.lower():
            block = b"\n".join([view for part in parts for view in _views(part)])
        for patterns in self._all:  # noqa: SIM110 - any() would take longer, twice for each request
            if patterns.found_in(block):
                return True
        return False

    def _look(self, data: bytes, place: Place, judge: Judge) -> Iterator[Finding]:
        for view in _views(data):
            for patterns in self._all:
                for match in patterns.find(view):
                    yield Finding(match.pattern.name, match.pattern.kind, place, judge(match, view))

    def _clean(self, header: Field, judge: Judge) -> tuple[list[Finding], Field | None]:
        """What is in a header, and the header as it may go on: None when it cannot be cleaned."""
        name, value = header
        found = list(self._look(name, Place.HEADER_NAME, judge))
        fit = all(one.action is Action.REPORTED for one in found)
        in_value = list(self._look(value, Place.HEADER_VALUE, judge))
        if any(one.action is Action.REDACTED for one in in_value):
            value = self._redacted(value, judge)
            left = self._look(value, Place.HEADER_VALUE, judge)
            fit = fit and all(one.action is not Action.REDACTED for one in left)
        return found + in_value, (name, value) if fit else None

    def _redacted(self, value: bytes, judge: Judge) -> bytes:
        spans = sorted(
            (match.start, match.end)
            for patterns in self._all
            for match in patterns.find(value)
            if judge(match, value) is Action.REDACTED
        )
        parts: list[bytes] = []
        position = 0
        for start, end in spans:
            if start >= position:
                parts += (value[position:start], REDACTED)
            position = max(position, end)
        parts.append(value[position:])
        return b"".join(parts)


def _as_trailers(verdict: HeadVerdict) -> HeadVerdict:
    findings = dict.fromkeys(replace(found, place=Place.TRAILER) for found in verdict.findings)
    return HeadVerdict(tuple(findings), verdict.headers)


def _views(data: bytes) -> Iterator[bytes]:
    """What a part of a head may mean: as it is, with percent-encoding undone, and what Basic carries."""
    yield data
    decoded = data
    for _ in range(_MAX_DECODINGS):
        if b"%" not in decoded:
            break
        again = unquote_to_bytes(decoded)
        if again == decoded:
            break
        decoded = again
        yield decoded
    if b" " in data or b"\t" in data:
        for token in _BASIC.findall(data):
            try:
                yield base64.b64decode(token.translate(_URL_SAFE) + b"=" * (-len(token) % 4))
            except binascii.Error:
                continue
