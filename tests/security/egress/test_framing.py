"""Properties 21 to 25, 29, 30, 32, 53, 54, 71: where messages end, and what is no message."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbox.egress.http.framing import BodyKind
from clawbox.egress.http.head import HeadLimits, RequestHead, ResponseHead
from clawbox.egress.http.headers import Headers
from clawbox.egress.http.reader import MAX_INTERIM, MAX_SURPLUS, End, RequestReader, ResponseReader
from clawbox.egress.refusal import Denial, Refusal, Side
from tests.security.egress.messages import (
    REQUESTS,
    RESPONSES,
    cut,
    merged,
    read_request,
    read_response,
    reason_of,
)

POST = b"POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def corpus(files, *codes):
    found = [file for file in files if file.name.partition("--")[0].removeprefix("upstream_") in codes]
    assert found
    return pytest.mark.parametrize("file", found, ids=[file.stem for file in found])


def check_request(file):
    events = read_request([file.read_bytes()])
    assert file.name.partition("--")[0] == reason_of(events)
    return events


def check_response(file):
    events = read_response([file.read_bytes()])
    assert file.name.partition("--")[0] == reason_of(events)
    return events


@corpus(REQUESTS, "ok")
def test_good_requests_are_read(file):
    head, *_, end = check_request(file)
    assert isinstance(head, RequestHead)
    assert isinstance(end, End)


@corpus(RESPONSES, "ok")
def test_good_responses_are_read(file):
    head, *_, end = check_response(file)
    assert isinstance(head, ResponseHead)
    assert isinstance(end, End)


@corpus(REQUESTS, "conflicting_framing")
def test_rule_21_length_and_transfer_encoding_together_are_refused(file):
    assert 1 == len(check_request(file))


@corpus(RESPONSES, "conflicting_framing")
def test_rule_21_from_the_upstream_too(file):
    assert 1 == len(check_response(file))


@corpus(REQUESTS, "malformed_content_length")
def test_rule_22_content_length_is_one_plain_number(file):
    assert 1 == len(check_request(file))


@corpus(RESPONSES, "malformed_content_length")
def test_rule_22_from_the_upstream_too(file):
    assert 1 == len(check_response(file))


@corpus(REQUESTS, "transfer_encoding_refused")
def test_rule_23_transfer_encoding_is_exactly_one_chunked_on_http_1_1(file):
    assert 1 == len(check_request(file))


@corpus(RESPONSES, "transfer_encoding_refused")
def test_rule_23_from_the_upstream_too(file):
    assert 1 == len(check_response(file))


@corpus(REQUESTS, "control_byte", "folded_header", "malformed_header", "malformed_start_line", "http_version")
def test_rule_24_heads_have_one_grammar(file):
    assert 1 == len(check_request(file))


@corpus(
    RESPONSES, "control_byte", "folded_header", "malformed_header", "malformed_start_line", "http_version"
)
def test_rule_24_from_the_upstream_too(file):
    assert 1 == len(check_response(file))


@pytest.mark.parametrize("byte", [*range(9), *range(0x0A, 0x20), 0x7F])
def test_rule_24_no_control_byte_passes_anywhere_in_a_head(byte):
    good = b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nX: yz\r\n\r\n"
    for at in range(len(good)):
        data = good[:at] + bytes([byte]) + good[at:]
        if b"\r\n\r\n" in data[: at + 1]:
            continue
        assert "ok" != reason_of(read_request([data])), data


@corpus(REQUESTS, "malformed_chunk", "malformed_trailer")
def test_rule_25_chunks_have_one_grammar(file):
    head, *payload, _refusal = check_request(file)
    assert isinstance(head, RequestHead)
    assert payload in ([], [b"hello"], [b"hell"], [b"hell\r"], [b"hell\r\n"[:5]])


@corpus(RESPONSES, "malformed_chunk", "malformed_trailer")
def test_rule_25_from_the_upstream_too(file):
    check_response(file)


@pytest.mark.parametrize(
    "digits", [b"", b"0" * 16, b"f" * 16, b"1" * 100, b"-0", b"0x0", "٥".encode(), b"5L"]
)
def test_rule_25_a_chunk_size_is_at_most_fifteen_hex_digits(digits):
    events = read_request([CHUNKED + digits + b"\r\n"], eof=False)
    assert [Denial.BAD_CHUNK] == [event.denial for event in events[1:] if isinstance(event, Refusal)]


def test_rule_25_a_size_line_that_never_ends_is_refused_at_its_limit():
    reader = RequestReader()
    reader.feed(CHUNKED + b"5;")
    fed = 0
    events: list[object] = []
    while not events and fed < 10_000:
        events = list(reader.feed(b"a" * 100))
        fed += 100
    assert fed <= 1100
    assert isinstance(events[0], Refusal)


@corpus(REQUESTS, "unexpected_body")
def test_rule_7_connect_has_no_body(file):
    check_request(file)


@corpus(REQUESTS, "unexpected_bytes")
def test_rule_29_bytes_between_connect_and_its_reply_are_refused(file):
    head, end, refusal = check_request(file)
    assert isinstance(head, RequestHead)
    assert isinstance(end, End)
    assert isinstance(refusal, Refusal)


def test_rule_29_in_a_later_read_too_and_not_after_the_reply():
    connect = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"
    reader = RequestReader()
    assert 2 == len(reader.feed(connect))
    assert [Refusal(Denial.UNEXPECTED_BYTES, "before the reply to CONNECT")] == reader.feed(b"\x16")
    reader = RequestReader()
    reader.feed(connect)
    reader.take_over()
    assert [] == reader.feed(b"\x16\x03\x01")


@corpus(REQUESTS, "http2_refused")
def test_rule_30_http_2_in_clear_text_is_refused(file):
    assert 1 == len(check_request(file))


@corpus(REQUESTS, "expectation_refused")
def test_expectations_but_100_continue_are_refused(file):
    check_request(file)


@corpus(REQUESTS, "head_too_large", "too_many_headers")
def test_rule_32_heads_have_a_size(file):
    assert 1 == len(check_request(file))


@corpus(RESPONSES, "head_too_large", "too_many_headers", "too_many_interim")
def test_rule_32_from_the_upstream_too(file):
    check_response(file)


@pytest.mark.parametrize("over", [0, 1])
def test_rule_32_the_limit_is_exact_however_the_head_comes(over):
    head = b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"
    limits = HeadLimits(bytes=len(head) - over)
    for pieces in ([head], cut(head, range(1, len(head))), cut(head, [len(head) - 1])):
        reader = RequestReader(limits)
        events = [event for piece in pieces for event in reader.feed(piece)]
        assert bool(over) == isinstance(events[-1], Refusal)


def test_rule_32_a_slow_head_is_one_that_has_begun_and_is_not_complete():
    reader = RequestReader()
    assert (True, False) == (reader.idle, reader.in_head)
    reader.feed(b"G")
    assert (False, True) == (reader.idle, reader.in_head)
    reader.feed(b"ET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert (False, False) == (reader.idle, reader.in_head)


def test_rule_32_what_cannot_become_a_head_is_refused_before_it_ends():
    for start in (
        b"\x16\x03\x01",
        b"GET /\x00",
        b"GET http://a.example/ HTTP/1.1\r\nbad header\r\n",
        b"GET / HTTP/3\r\n",
    ):
        assert isinstance(RequestReader().feed(start)[-1], Refusal)


@corpus(REQUESTS, "truncated")
def test_rule_53_a_request_that_breaks_off_is_no_request(file):
    check_request(file)


@corpus(RESPONSES, "truncated")
def test_rule_53_an_upstream_that_breaks_off_never_looks_like_a_clean_end(file):
    events = check_response(file)
    assert not [event for event in events if isinstance(event, End)]


@corpus(RESPONSES, "ok")
def test_rule_53_every_prefix_of_a_response_is_incomplete(file):
    data = file.read_bytes()
    whole = read_response([data])
    for length in range(len(data)):
        events = read_response([data[:length]])
        framed_by_close = (
            file.stem in {"ok--until_close", "ok--http10"} and data.index(b"\r\n\r\n") + 4 <= length
        )
        assert framed_by_close or isinstance(events[-1], Refusal), data[:length]
        assert framed_by_close or events != whole


def test_rule_52_payload_comes_out_as_soon_as_it_is_in():
    reader = ResponseReader()
    reader.expect("GET")
    reader.feed(OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert [b"data: 1"] == reader.feed(b"10\r\ndata: 1")
    assert [b"\n\n"] == reader.feed(b"\n\n")
    assert [b"data: 2"] == reader.feed(b"data: 2")
    assert [b"data: 3\n\n"] == reader.feed(b"\r\n9\r\ndata: 3\n\n")


def test_rule_53_a_body_until_the_end_needs_a_clean_end():
    response = OK + b"\r\nhello"
    assert isinstance(read_response([response], clean=True)[-1], End)
    last = read_response([response], clean=False)[-1]
    assert isinstance(last, Refusal)
    assert (Denial.TRUNCATED, Side.UPSTREAM, 502) == (last.denial, last.side, last.status)


@settings(deadline=None)
@given(st.binary(max_size=2000), st.lists(st.integers(1, 700), max_size=8), st.booleans())
def test_rule_54_payload_is_byte_exact(payload, sizes, chunked):
    if chunked:
        body, rest = b"", payload
        for size in [*sizes, len(payload) + 1]:
            piece, rest = rest[:size], rest[size:]
            if piece:
                body += b"%X\r\n%s\r\n" % (len(piece), piece)
        message = OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"
    else:
        message = OK + b"Content-Length: %d\r\n\r\n" % len(payload) + payload
    events = read_response(cut(message, {size % len(message) for size in sizes}))
    assert [payload] * bool(payload) == events[1:-1]


@pytest.mark.parametrize(
    ("method", "response", "kind"),
    [
        ("HEAD", OK + b"Content-Length: 5\r\n\r\n", BodyKind.NONE),
        ("HEAD", OK + b"Transfer-Encoding: chunked\r\n\r\n", BodyKind.NONE),
        ("HEAD", OK + b"\r\n", BodyKind.NONE),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", BodyKind.NONE),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", BodyKind.NONE),
        ("GET", OK + b"Content-Length: 0\r\n\r\n", BodyKind.LENGTH),
    ],
)
def test_responses_without_a_body_end_with_their_head(method, response, kind):
    reader = ResponseReader()
    reader.expect(method)
    head, end = reader.feed(response)
    assert isinstance(head, ResponseHead)
    assert isinstance(end, End)
    assert kind is reader.framing.kind
    assert reader.reusable


@pytest.mark.parametrize(
    "response",
    [
        OK + b"Content-Length: 2\r\n\r\nok!",
        OK + b"Content-Length: 2\r\n\r\nok" + OK + b"Content-Length: 0\r\n\r\n",
        OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nok",
        OK + b"Content-Length: 2\r\nConnection: Keep-Alive, CLOSE\r\n\r\nok",
        OK + b"Content-Length: 2\r\n\r\no",
        OK + b"Content-Length: 2\r\n",
        OK + b"\r\nok",
        OK + b"Content-Length: 2, 2\r\n\r\nok",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"",
    ],
)
def test_rule_71_a_connection_with_any_anomaly_is_not_used_again(response):
    reader = ResponseReader()
    reader.expect("GET")
    reader.feed(response)
    assert not reader.reusable


def test_rule_71_a_clean_connection_is_used_again_and_early_bytes_end_it():
    reader = ResponseReader()
    for _ in range(3):
        reader.expect("GET")
        reader.feed(OK + b"Content-Length: 2\r\n\r\nok")
        assert reader.reusable is True
    assert [Refusal(Denial.UNEXPECTED_BYTES, "no response was due", Side.UPSTREAM)] == reader.feed(b"H")
    assert not reader.reusable
    reader = ResponseReader()
    assert reader.reusable
    assert [] == reader.eof()
    assert not reader.reusable


def test_rule_71_bytes_before_the_first_request_are_refused():
    reader = ResponseReader()
    assert isinstance(reader.feed(OK + b"Content-Length: 0\r\n\r\n")[-1], Refusal)
    assert not reader.reusable


@corpus(RESPONSES, "unexpected_bytes", "unexpected_body", "upgrade_refused")
def test_rule_71_what_no_response_has_is_refused(file):
    check_response(file)


def test_rule_71_1xx_responses_are_passed_on_but_counted():
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    final = OK + b"Content-Length: 0\r\n\r\n"
    assert [103] * MAX_INTERIM + [200] == [
        event.status
        for event in read_response([interim * MAX_INTERIM + final])
        if isinstance(event, ResponseHead)
    ]
    assert "upstream_too_many_interim" == reason_of(read_response([interim * (MAX_INTERIM + 1) + final]))


def test_rule_31_requests_on_one_connection_are_read_one_at_a_time():
    first = POST + b"Content-Length: 3\r\n\r\none"
    second = b"GET http://b.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n"
    reader = RequestReader()
    head, payload, end = reader.feed(first + second)
    assert isinstance(head, RequestHead)
    assert (b"one", "POST") == (payload, head.method)
    assert (len(second), False) == (reader.surplus, reader.idle)
    head, end = reader.next()
    assert isinstance(head, RequestHead)
    assert ("http://b.example/", End(Headers())) == (head.target, end)
    assert [] == reader.next()
    assert reader.idle
    assert reader.eof() is None


def test_rule_31_what_is_kept_of_next_requests_is_bounded():
    reader = RequestReader()
    get = b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"
    reader.feed(get)
    kept = 0
    while not (refused := reader.feed(get * 100)):
        kept = reader.surplus
    assert [Denial.UNEXPECTED_BYTES] == [event.denial for event in refused if isinstance(event, Refusal)]
    assert (True, 0) == (kept <= MAX_SURPLUS, reader.surplus)


def test_rule_31_nothing_is_read_after_a_refusal():
    reader = RequestReader()
    refused = reader.feed(POST + b"Content-Length: x\r\n\r\n")
    assert isinstance(refused[-1], Refusal)
    assert [] == reader.feed(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert [] == reader.next()
    assert reader.eof() is None


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        (1, b"", True),
        (1, b"Connection: close\r\n", False),
        (1, b"Connection: CLOSE\r\n", False),
        (1, b"Connection: x, close\r\n", False),
        (1, b"Connection: x\r\nConnection: close\r\n", False),
        (0, b"", False),
        (0, b"Connection: keep-alive\r\n", True),
    ],
)
def test_keep_alive_is_the_versions_default_unless_connection_says_otherwise(version, connection, keeps):
    head, *_ = read_request(
        [b"GET http://a.example/ HTTP/1.%d\r\nHost: a.example\r\n%s\r\n" % (version, connection)]
    )
    assert isinstance(head, RequestHead)
    assert keeps == head.keep_alive


def test_bodies_of_any_size_pass_in_constant_memory():
    block = b"x" * 65536
    chunk = b"%x\r\n%s\r\n" % (len(block), block)
    reader = ResponseReader()
    reader.expect("GET")
    reader.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    tracemalloc.start()
    try:
        passed = 0
        for _ in range(2000):
            passed += sum(len(event) for event in reader.feed(chunk) if isinstance(event, bytes))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2000 * len(block) == passed
    assert peak < 8 * len(block)


@settings(deadline=None)
@given(st.sampled_from([*REQUESTS, *RESPONSES]), st.data())
def test_how_a_message_is_cut_into_reads_does_not_matter(file, data):
    message = file.read_bytes()
    read = read_request if file in REQUESTS else read_response
    whole = read([message])
    positions = data.draw(st.sets(st.integers(0, len(message)), max_size=12))
    assert whole == read(cut(message, positions))


@pytest.mark.parametrize("file", [*REQUESTS, *RESPONSES], ids=lambda file: file.stem)
def test_a_message_is_the_same_cut_at_every_byte(file):
    message = file.read_bytes()
    read = read_request if file in REQUESTS else read_response
    whole = read([message])
    assert whole == merged(read(cut(message, range(1, len(message)))))
    if len(message) < 1500:
        for at in range(1, len(message)):
            assert whole == read([message[:at], message[at:]])
