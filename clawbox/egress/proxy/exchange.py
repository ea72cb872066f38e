"""One request, from the decision to the last byte of its answer.

The order is the design's: decide, choose the credential, take the client's own authentication out, search the
head, dial, attach, send; then the answer, searched as it passes. The same path serves every way in (9).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from clawbox.egress.attach import Attached, NotAttachableError, attach, strip_client_auth
from clawbox.egress.content_coding import CodingError
from clawbox.egress.findings import Finding, LeakError
from clawbox.egress.http.framing import BodyKind
from clawbox.egress.http.headers import Headers
from clawbox.egress.http.reader import End
from clawbox.egress.http.writer import BodyWriter, request_fields, write_request
from clawbox.egress.proxy.answer import Answer
from clawbox.egress.proxy.bodies import IDENTITY, NOT_WITH_CREDENTIALS, request_scanner, without
from clawbox.egress.proxy.terms import Terms
from clawbox.egress.proxy.upstream import Connection, Key
from clawbox.egress.refusal import Denial, Refusal, RefusedError, Side
from clawbox.egress.rules import decide

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    from clawbox.egress.http.headers import Field
    from clawbox.egress.proxy.bodies import Scanner
    from clawbox.egress.proxy.record import Record
    from clawbox.egress.proxy.state import SandboxState
    from clawbox.egress.proxy.streams import Request, Sink, Source
    from clawbox.egress.proxy.wire import Wire
    from clawbox.network_rules import ShapeAction

_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Idempotent (RFC 9110 9.2.2): sent again where a kept connection turns out to be gone."""


class _StaleError(Exception):
    """A kept connection ended before the answer began."""


def terms_of(request: Request, state: SandboxState, record: Record) -> Terms:
    """Whether a request may go, and how. Raises RefusedError."""
    target = request.target
    decision = decide(state.network, target, request.method, state.grant.on_shape)
    record.rule = decision.rule
    if decision.refusal is not None:
        raise RefusedError.of(decision.refusal)
    if not state.rows.available:
        raise RefusedError(Denial.AUDIT_UNAVAILABLE)
    fields = request_fields(request.head)
    credential = state.credential_for(target, request.method)
    # Also beside a credential's paths, methods and ports: there a session that was begun with it would serve,
    # or an account of somebody else's.
    guarding = state.credentials_of(target.host)
    for one in guarding:
        stripped = strip_client_auth(one, target, fields)
        target, fields = stripped.target, list(stripped.headers)
        record.removed += stripped.removed
    if credential is not None:
        fields = [*without(fields, NOT_WITH_CREDENTIALS), IDENTITY]
    headers = search(record.asked(target), fields, state, record, decision.on_shape)
    if credential is None:
        return Terms(state, record, Attached(target, headers), None, decision.on_shape, guarding)
    wait = state.budgets.admit(credential, state.clock())
    if wait is not None:
        raise RefusedError(Denial.BUDGET_SPENT, f"{credential.name}, for {wait:.0f} s more")
    try:
        outgoing = attach(credential, request.method, target, headers)
    except NotAttachableError as error:
        raise RefusedError(Denial.CREDENTIAL_UNAVAILABLE, credential.name) from error
    record.credential = credential.name
    state.tell_spent(credential.name)
    return Terms(state, record, outgoing, credential, decision.on_shape, guarding)


def search(
    line: str, fields: Iterable[Field], state: SandboxState, record: Record, on_shape: ShapeAction
) -> tuple[Field, ...]:
    """The fields of a head that may leave. ``line`` is all that its first line will say.

    Raises RefusedError where something in it may not.
    """
    verdict = state.detector.outbound_head(line, fields, on_shape)
    record.searched = True
    record.note(verdict.findings, sent=True)
    if verdict.refused:
        raise RefusedError(Denial.LEAK, _named(verdict.findings))
    return verdict.headers


async def exchange(request: Request, terms: Terms, source: Source, sink: Sink, client: Wire) -> None:
    """Carry out a request on its terms. Raises RefusedError; whether the answer had begun, the sink knows.

    ``client`` is the connection on which bytes count as life, too.
    """
    _search_ahead(source.whole(), request, terms)
    target, upstreams = terms.outgoing.target, terms.state.upstreams
    key = Key(request.token, target.scheme, target.host, target.port, terms.record.credential)
    kept = upstreams.take(key)
    if kept is not None:
        try:
            await _Passage(kept, request, terms, source, sink).run(client)
        except _StaleError:
            pass
        else:
            return
    opened = await upstreams.open(key)
    await _Passage(opened, request, terms, source, sink).run(client)


def _search_ahead(body: bytes, request: Request, terms: Terms) -> None:
    """Search a body that is all here before anybody hears of the request. Raises RefusedError."""
    if not body:
        return
    scanner, found = _body_scanner(request, terms)
    try:
        scanner.feed(body)
        scanner.finish()
    except LeakError as error:
        terms.record.note(found or error.findings, sent=True)
        raise RefusedError(Denial.LEAK, str(error)) from None
    except CodingError as error:
        raise RefusedError(Denial.UNREADABLE_CODING, str(error)) from None


def _body_scanner(request: Request, terms: Terms) -> tuple[Scanner, Counter[Finding] | None]:
    return request_scanner(
        terms.state.detector,
        request.head.headers,
        request.framing,
        terms.on_shape,
        credentialed=terms.credential is not None,
    )


class _Passage:
    """A request and its answer over one connection."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        terms: Terms,
        source: Source,
        sink: Sink,
    ) -> None:
        self._connection = connection
        self._request = request
        self._terms = terms
        self._source = source
        self._sink = sink

    async def run(self, client: Wire) -> None:
        """Send and receive; the connection is kept where nothing is wrong with it."""
        connection, terms, request = self._connection, self._terms, self._request
        wire, record = connection.wire, terms.record
        record.address = connection.address
        body: asyncio.Task[bool] | None = None
        sent = False
        try:
            wire.deadline.watch(terms.state.grant.limits.idle_timeout_ms / 1000)
            wire.deadline.pair(client.deadline)
            head = write_request(
                request.method, terms.outgoing.target, terms.outgoing.headers, request.framing
            )
            terms.spend(len(head))
            connection.reader.expect(request.method)
            record.sent_at = terms.state.clock()
            wire.write(head)
            if request.framing.kind is BodyKind.NONE:
                sent = True
            else:
                body = asyncio.create_task(self._send_body())
            await self._receive()
            if body is not None and body.done():
                sent = body.result()
        finally:
            wire.deadline.part()
            if body is not None and not body.done():
                # The answer came before all was sent: what is left is for nobody.
                body.cancel()
                await asyncio.wait([body])
            if sent:
                terms.state.upstreams.keep(connection)
            else:
                wire.abort()

    async def _send_body(self) -> bool:
        """The request's body; whether all of it went. Why not is raised by whoever reads the answer."""
        terms, wire = self._terms, self._connection.wire
        scanner = found = None
        try:
            scanner, found = _body_scanner(self._request, terms)
            writer = BodyWriter(self._request.framing)
            while not isinstance(piece := await self._source.piece(), End):
                terms.count_up(len(piece))
                wire.write(writer.data(scanner.feed(piece)))
                await wire.drain()
            rest = writer.data(scanner.finish())
            wire.write(rest + writer.end(self._clean(piece.trailers)))
        except RefusedError as error:
            wire.fail(error.refusal)
        except LeakError as error:
            wire.fail(Refusal(Denial.LEAK, str(error)))
        except CodingError as error:
            wire.fail(Refusal(Denial.UNREADABLE_CODING, str(error)))
        except Exception:
            wire.fail(Refusal(Denial.INTERNAL))
            raise
        else:
            return True
        finally:
            if found:
                terms.record.note(found, sent=True)
        return False

    def _clean(self, trailers: Headers) -> Headers:
        if not len(trailers):
            return trailers
        terms = self._terms
        for one in terms.guarding:
            # Some servers read trailers as if they were headers (RFC 9110 6.5.2).
            stripped = strip_client_auth(one, self._request.target, trailers)
            terms.record.removed += stripped.removed
            trailers = Headers(stripped.headers)
        verdict = terms.state.detector.outbound_trailers(trailers, terms.on_shape)
        terms.record.note(verdict.findings, sent=True)
        if verdict.refused:
            raise RefusedError(Denial.LEAK, _named(verdict.findings))
        return Headers(verdict.headers)

    async def _receive(self) -> None:
        connection, sink = self._connection, self._sink
        wire, reader = connection.wire, connection.reader
        answer = Answer(self._terms, reader, self._request, sink)
        silent = True
        try:
            while not answer.complete:
                data = await wire.read()
                if data:
                    silent = False
                    events = reader.feed(data)
                elif not silent:
                    events = reader.eof(clean=wire.clean_end)
                elif connection.reused and self._repeatable:
                    raise _StaleError
                else:
                    raise RefusedError(Denial.UPSTREAM_GONE, "", Side.UPSTREAM)
                answer.take(events)
                await sink.flush()
        finally:
            answer.note()

    @property
    def _repeatable(self) -> bool:
        return self._request.framing.kind is BodyKind.NONE and self._request.method in _REPEATABLE


def _named(findings: Iterable[Finding]) -> str:
    return ", ".join(sorted({f"{one.name} in the {one.place.value}" for one in findings}))
