"""Parsers of hostile bytes: an event or a refusal, never an exception, the same however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbox.egress.http.head import RequestHead, ResponseHead
from clawbox.egress.http.reader import RequestReader, ResponseReader
from clawbox.egress.http.writer import request_fields, write_request
from clawbox.egress.refusal import Refusal, RefusedError
from clawbox.egress.target import Target, check_host, parse_request_target
from tests.security.egress.messages import (
    REQUESTS,
    RESPONSES,
    cut,
    read_request,
    read_response,
)

_SMALL_REQUESTS = [data for file in REQUESTS if len(data := file.read_bytes()) < 4096]
_SMALL_RESPONSES = [data for file in RESPONSES if len(data := file.read_bytes()) < 4096]
_SPLICES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\x00",
    b":",
    b"0\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b.example\r\n",
    b"Connection: close\r\n",
    b"Upgrade: h2c\r\n",
    b"\xff",
    b";",
    b"-",
    b"GET / HTTP/1.1\r\n",
]


@st.composite
def mutated(draw, samples):
    """A corpus message with some bytes taken out, doubled or spliced in."""
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        splice = draw(st.sampled_from(_SPLICES) | st.binary(max_size=4))
        data = data[:at] + splice + data[at + length :]
    return data


@settings(max_examples=500, deadline=None)
@given(mutated(_SMALL_REQUESTS) | st.binary(max_size=300), st.sets(st.integers(0, 500), max_size=8))
def test_mutated_requests_are_read_or_refused_the_same_for_every_cut(data, positions):
    whole = read_request([data])
    assert whole == read_request(cut(data, {at for at in positions if at <= len(data)}))
    assert whole == read_request(cut(data, range(1, len(data))))


@settings(max_examples=500, deadline=None)
@given(
    mutated(_SMALL_RESPONSES) | st.binary(max_size=300),
    st.sets(st.integers(0, 500), max_size=8),
    st.sampled_from(["GET", "HEAD"]),
    st.booleans(),
)
def test_mutated_responses_are_read_or_refused_the_same_for_every_cut(data, positions, method, clean):
    whole = read_response([data], method, clean=clean)
    assert whole == read_response(cut(data, {at for at in positions if at <= len(data)}), method, clean=clean)
    assert whole == read_response(cut(data, range(1, len(data))), method, clean=clean)


@settings(max_examples=500, deadline=None)
@given(mutated(_SMALL_REQUESTS))
def test_what_is_written_is_read_back_as_what_was_decided(data):
    reader = RequestReader()
    events = reader.feed(data)
    if not events or not isinstance(events[0], RequestHead):
        return
    head = events[0]
    try:
        target = parse_request_target(head.method, head.target)
        check_host([value.decode("latin-1") for value in head.headers.values(b"host")], target)
        fields = request_fields(head)
    except RefusedError:
        return
    if not isinstance(target, Target) or head.method == "CONNECT":
        return
    written = write_request(head.method, target, fields, reader.framing)
    again = RequestReader().feed(written)
    assert isinstance(again[0], RequestHead)
    assert (head.method, target.request_target) == (again[0].method, again[0].target)
    assert [target.authority.encode()] == again[0].headers.values(b"host")
    assert fields == request_fields(again[0])


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=4))
def test_no_field_that_is_written_can_end_a_line_or_a_head(fields):
    target = parse_request_target("GET", "https://a.example/")
    assert isinstance(target, Target)
    try:
        written = write_request("GET", target, fields, RequestReader().framing)
    except ValueError:
        return
    head, _end = read_request([written])
    assert isinstance(head, RequestHead)
    assert [name for name, _ in fields] == [name for name, _ in head.headers][1:]


@pytest.mark.parametrize("data", _SMALL_REQUESTS)
def test_a_refusal_is_the_last_event(data):
    reader = RequestReader()
    events = reader.feed(data)
    assert not [event for event in events[:-1] if isinstance(event, Refusal)]
    if events and isinstance(events[-1], Refusal):
        assert [] == reader.feed(data)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_bytes_nobody_asked_for_are_never_a_response(data):
    events = ResponseReader().feed(data)
    assert not [event for event in events if isinstance(event, ResponseHead)]
