"""The answer to one request: searched and written as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clawbox.egress.content_coding import CodingError
from clawbox.egress.findings import LeakError
from clawbox.egress.http.framing import BodyKind, Framing
from clawbox.egress.http.head import ResponseHead
from clawbox.egress.http.headers import Headers
from clawbox.egress.http.reader import End
from clawbox.egress.http.writer import response_fields, returned_framing
from clawbox.egress.proxy.bodies import OF_THE_BYTES, Scanner, Unread, response_scanner, without
from clawbox.egress.refusal import Denial, Refusal, RefusedError, Side

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from clawbox.egress.findings import Finding
    from clawbox.egress.http.reader import ResponseEvent, ResponseReader
    from clawbox.egress.proxy.streams import Request, Sink
    from clawbox.egress.proxy.terms import Terms


class Answer:
    """Takes the events of one answer."""

    def __init__(self, terms: Terms, reader: ResponseReader, request: Request, sink: Sink) -> None:
        self._terms = terms
        self._reader = reader
        self._request = request
        self._sink = sink
        self._scanner: Scanner = Unread()
        self._found: Counter[Finding] | None = None
        self._whole: bytes | None = None
        self.complete = False
        """Whether all of it was written."""

    def take(self, events: Sequence[ResponseEvent]) -> None:
        """What came in one read. Raises RefusedError."""
        record = self._terms.record
        if record.answered_at is None and events:
            record.answered_at = self._terms.state.clock()
        try:
            for event in events:
                if self.complete:
                    # Surplus: the reader knows, and the connection is not used again (71).
                    break
                match event:
                    case ResponseHead():
                        self._head(event, events)
                    case bytes():
                        self._data(event)
                    case End():
                        self._end(event)
                    case Refusal():
                        raise RefusedError.of(event)
        except LeakError as error:
            raise RefusedError(Denial.LEAK_INBOUND, str(error), Side.UPSTREAM) from None
        except CodingError as error:
            raise RefusedError(Denial.UNREADABLE_CODING, str(error), Side.UPSTREAM) from None

    def note(self) -> None:
        """Put what was found in the body into the record; once, when the answer has ended."""
        if self._found:
            self._terms.record.note(self._found, sent=False)

    def _head(self, head: ResponseHead, events: Sequence[ResponseEvent]) -> None:
        terms = self._terms
        verdict = terms.state.detector.inbound_head(response_fields(head))
        terms.record.note(verdict.findings, sent=False)
        fields = list(verdict.headers)
        if head.interim:
            self._sink.interim(head, fields)
            return
        terms.record.status = head.status
        credentialed = terms.credential is not None
        if credentialed and head.status == 206:
            # No range was asked for: that was taken out of the request (50).
            raise RefusedError(Denial.UNEXPECTED_BODY, "a part of a body, unasked", Side.UPSTREAM)
        received = self._reader.framing
        terms.expect_down(received.length)
        if received.kind is BodyKind.NONE:
            stated = head.headers.values(b"content-length")
            self._sink.head(head, fields, received, stated[0] if stated else None)
            return
        all_here = isinstance(events[-1], End)
        self._scanner, self._found = response_scanner(
            terms.state.detector,
            head.headers,
            keep_length=received.kind is BodyKind.LENGTH and not all_here and not self._sink.resizes,
            credentialed=credentialed,
        )
        if all_here:
            # So that the head can say what is true of a body in which something was replaced.
            body = b"".join([piece for piece in events if isinstance(piece, bytes)])
            self._whole = self._scanner.whole(body)
            if self._found:
                fields = without(fields, OF_THE_BYTES)
            if received.kind is BodyKind.LENGTH:
                received = Framing(BodyKind.LENGTH, len(self._whole))
        framing = returned_framing(received, self._request.head.version)
        self._sink.head(head, fields, framing, None)

    def _data(self, payload: bytes) -> None:
        self._terms.count_down(len(payload))
        if self._whole is None:
            self._sink.data(self._scanner.feed(payload))

    def _end(self, end: End) -> None:
        self._sink.data(self._scanner.finish() if self._whole is None else self._whole)
        trailers = end.trailers
        if len(trailers):
            verdict = self._terms.state.detector.inbound_trailers(trailers)
            self._terms.record.note(verdict.findings, sent=False)
            trailers = Headers(verdict.headers)
        self._sink.end(trailers)
        self.complete = True
