"""Properties 27, 28, 39, 51, 53, 57, 60, 69, 70: what of a message goes on, and what is written anew."""

from __future__ import annotations

import json

import pytest

from clawbox.egress.http.framing import CHUNKED, NO_BODY, UNTIL_CLOSE, BodyKind, Framing
from clawbox.egress.http.head import RequestHead, ResponseHead
from clawbox.egress.http.headers import Headers
from clawbox.egress.http.reader import End
from clawbox.egress.http.writer import (
    CONNECTED,
    CONTINUE,
    BodyWriter,
    request_fields,
    response_fields,
    returned_framing,
    write_refusal,
    write_request,
    write_response,
)
from clawbox.egress.refusal import Denial, Refusal, RefusedError, Side
from clawbox.egress.target import parse_url
from tests.security.egress.messages import read_response

TARGET = parse_url("https://a.example:8443/x?y=1")


def request(*fields: tuple[bytes, bytes], method: str = "GET", version: int = 1) -> RequestHead:
    return RequestHead(method, "https://a.example:8443/x", version, Headers(fields))


def response(*fields: tuple[bytes, bytes], status: int = 200) -> ResponseHead:
    return ResponseHead(status, 1, Headers(fields))


def test_rule_27_host_is_written_from_the_target():
    fields = request_fields(request((b"HOST", b"evil.example"), (b"Accept", b"*/*")))
    written = write_request("GET", TARGET, fields, NO_BODY)
    assert b"GET /x?y=1 HTTP/1.1\r\nHost: a.example:8443\r\nAccept: */*\r\n\r\n" == written


@pytest.mark.parametrize(
    "name",
    [
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
    ],
)
def test_rule_28_hop_by_hop_headers_end_here_both_ways(name):
    kept = (b"X-Kept", b"1")
    assert [kept] == request_fields(request((name.title(), b"x"), kept))
    assert [kept] == response_fields(response((name.upper(), b"x"), kept))
    twin = name.replace(b"-", b"_")
    assert [kept] == request_fields(request((twin, b"x"), kept))


def test_rule_28_what_connection_names_ends_here_both_ways():
    fields = (
        (b"Connection", b"X-Secret, close ,"),
        (b"connection", b"\tX_Other"),
        (b"X-Secret", b"1"),
        (b"x_secret", b"1"),
        (b"X-OTHER", b"1"),
        (b"X-Kept", b"1"),
    )
    assert [(b"X-Kept", b"1")] == request_fields(request(*fields))
    assert [(b"X-Kept", b"1")] == response_fields(response(*fields))


def test_rule_28_connection_cannot_take_away_what_is_written_here():
    head = request((b"Connection", b"host, content-length, transfer-encoding"), method="POST")
    written = write_request("POST", TARGET, request_fields(head), Framing(BodyKind.LENGTH, 3))
    assert b"POST /x?y=1 HTTP/1.1\r\nHost: a.example:8443\r\nContent-Length: 3\r\n\r\n" == written


def test_rule_28_framing_is_written_from_what_was_read():
    fields = [(b"Content-Length", b"7"), (b"Transfer-Encoding", b"chunked"), (b"Content_Length", b"9")]
    assert [] == request_fields(request(*fields))
    assert [] == response_fields(response(*fields))
    written = write_request("POST", TARGET, [], CHUNKED)
    assert written.endswith(b"\r\nTransfer-Encoding: chunked\r\n\r\n")


@pytest.mark.parametrize(
    "name",
    [
        b"X-HTTP-Method",
        b"X-HTTP-Method-Override",
        b"X-Method-Override",
        b"X-Original-URL",
        b"X-Rewrite-URL",
        b"Forwarded",
        b"X-Forwarded-For",
        b"X-Forwarded-Host",
        b"X-Forwarded-Anything",
        b"X_Forwarded_For",
        b"x_http-method_override",
        b"x-original_url",
    ],
)
def test_rule_70_what_changes_the_meaning_of_a_request_is_removed(name):
    assert [] == request_fields(request((name, b"DELETE")))
    assert [] == request_fields(request((name.lower(), b"DELETE")))


@pytest.mark.parametrize(
    ("upgrade", "denial"),
    [
        (b"websocket", Denial.WEBSOCKET),
        (b"WebSocket", Denial.WEBSOCKET),
        (b"foo, websocket", Denial.WEBSOCKET),
        (b"TLS/1.3", Denial.UPGRADE),
        (b"foo", Denial.UPGRADE),
    ],
)
def test_rule_51_an_upgrade_is_refused_and_never_forwarded(upgrade, denial):
    with pytest.raises(RefusedError) as refused:
        request_fields(request((b"Connection", b"Upgrade"), (b"Upgrade", upgrade)))
    assert denial is refused.value.refusal.denial
    assert 403 == refused.value.refusal.status


@pytest.mark.parametrize(
    "name", [b"X-Clawbox-Error", b"x-clawbox-error", b"X_Clawbox_Error", b"X-Clawbox-Other"]
)
def test_rule_57_nobody_else_can_send_the_sidecars_headers(name):
    assert [] == response_fields(response((name, b"host_not_allowed")))
    assert [] == request_fields(request((name, b"x")))


def test_rule_57_in_trailers_neither():
    trailers = Headers(
        [(b"X-Clawbox-Error", b"x"), (b"X-Sum", b"1"), (b"Set-Cookie", b"a=b"), (b"Host", b"x")]
    )
    assert b"0\r\nX-Sum: 1\r\n\r\n" == BodyWriter(CHUNKED).end(trailers)


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("denial", list(Denial))
def test_rule_60_a_refusal_is_a_whole_response_that_names_its_reason(denial, side):
    refusal = Refusal(denial, 'a"\\b', side)
    events = read_response([write_refusal(refusal)])
    head, body, end = events
    assert isinstance(head, ResponseHead)
    assert isinstance(body, bytes)
    assert isinstance(end, End)
    assert head.status in {403, 407, 429, 502, 504}
    assert [refusal.code.encode()] == head.headers.values(b"x-clawbox-error")
    assert {"error": refusal.message, "reason": refusal.code} == json.loads(body)
    assert not head.keep_alive
    assert b"" == write_refusal(refusal, with_body=False).partition(b"\r\n\r\n")[2]


def test_rule_60_codes_are_distinct():
    codes = [Refusal(denial, side=side).code for denial in Denial for side in Side]
    assert sorted(set(codes)) == sorted(codes)


def test_rule_60_what_was_sent_is_escaped_and_cut():
    with pytest.raises(RefusedError) as refused:
        parse_url("https://" + "é\x9b" * 200 + "/")
    detail = refused.value.refusal.detail
    assert (True, True) == (detail.isascii(), detail.isprintable())
    assert 128 > len(detail)


SECRET = b"s3cr3t-s3cr3t-s3cr3t"


@pytest.mark.parametrize(
    "answer",
    [
        SECRET + b"\r\n",
        b"HTTP/1.1 " + SECRET + b"\r\n\r\n",
        b"HTTP/" + SECRET + b" 200 OK\r\n\r\n",
        b"HTTP/9.9 200 " + SECRET + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + SECRET + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + SECRET + b"\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n " + SECRET + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + SECRET + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + SECRET + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + SECRET + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + SECRET + b"\r\n\r\n",
        b"HTTP/1.1 101 " + SECRET + b"\r\nUpgrade: " + SECRET + b"\r\n\r\n",
        b"HTTP/1.1 204 OK\r\n\r\n" + SECRET,
    ],
)
def test_rule_49_a_refusal_of_an_answer_never_quotes_the_answer(answer):
    refusal = read_response([answer])[-1]
    assert isinstance(refusal, Refusal)
    assert SECRET not in write_refusal(refusal)
    assert SECRET.decode() not in refusal.detail


@pytest.mark.parametrize(
    ("received", "version", "expected"),
    [
        (NO_BODY, 1, NO_BODY),
        (NO_BODY, 0, NO_BODY),
        (Framing(BodyKind.LENGTH, 5), 1, Framing(BodyKind.LENGTH, 5)),
        (Framing(BodyKind.LENGTH, 5), 0, Framing(BodyKind.LENGTH, 5)),
        (CHUNKED, 1, CHUNKED),
        (CHUNKED, 0, UNTIL_CLOSE),
        (UNTIL_CLOSE, 1, CHUNKED),
        (UNTIL_CLOSE, 0, UNTIL_CLOSE),
    ],
)
def test_rule_53_a_client_can_always_tell_an_end_from_a_break(received, version, expected):
    assert expected == returned_framing(received, version)


def test_rule_53_a_body_that_is_not_ended_is_a_break():
    head = write_response(response(), [], CHUNKED, keep_alive=True)
    body = BodyWriter(CHUNKED)
    events = read_response([head, body.data(b"hello")])
    assert isinstance(events[-1], Refusal)
    head = write_response(response(), [], Framing(BodyKind.LENGTH, 9), keep_alive=True)
    assert isinstance(read_response([head, b"hello"])[-1], Refusal)


def test_rule_54_a_body_never_has_another_length_than_was_promised():
    writer = BodyWriter(Framing(BodyKind.LENGTH, 3))
    assert b"ab" == writer.data(b"ab")
    with pytest.raises(ValueError, match="fewer"):
        writer.end()
    with pytest.raises(ValueError, match="more"):
        writer.data(b"cd")
    with pytest.raises(ValueError, match="more"):
        BodyWriter(NO_BODY).data(b"x")
    assert b"" == BodyWriter(CHUNKED).data(b"")


@pytest.mark.parametrize(
    ("head", "framing", "keep_alive", "length", "expected"),
    [
        (
            response(),
            Framing(BodyKind.LENGTH, 2),
            True,
            None,
            b"Content-Length: 2\r\nConnection: keep-alive\r\n\r\n",
        ),
        (response(), CHUNKED, False, None, b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"),
        (response(), UNTIL_CLOSE, True, None, b"Connection: close\r\n\r\n"),
        (response(), NO_BODY, True, b"500", b"Content-Length: 500\r\nConnection: keep-alive\r\n\r\n"),
        (response(status=204), Framing(BodyKind.LENGTH, 0), True, None, b"Connection: keep-alive\r\n\r\n"),
        (response(status=103), NO_BODY, True, None, b"\r\n"),
    ],
)
def test_a_responses_framing_is_written_for_the_client(head, framing, keep_alive, length, expected):
    written = write_response(head, [], framing, keep_alive=keep_alive, stated_length=length)
    assert written.startswith(b"HTTP/1.1 %d " % head.status)
    assert expected == written.partition(b"\r\n")[2]


@pytest.mark.parametrize("value", [b"a\r\nX: y", b"a\n", b"a\r", b"\x00", b"a\r\n\r\nGET / HTTP/1.1"])
def test_rule_40_a_value_that_would_end_a_line_is_never_written(value):
    with pytest.raises(ValueError, match="not be accepted"):
        write_request("GET", TARGET, [(b"Authorization", value)], NO_BODY)
    with pytest.raises(ValueError, match="not be accepted"):
        write_request("GET", TARGET, [(b"X\r\nY", b"z")], NO_BODY)
    with pytest.raises(ValueError, match="not be accepted"):
        write_request("GET / HTTP/1.1\r\nX: y\r\n", TARGET, [], NO_BODY)
    with pytest.raises(ValueError, match="not be accepted"):
        write_response(response(), [(b"X-Y", value)], NO_BODY, keep_alive=True)
    with pytest.raises(ValueError, match="not be accepted"):
        BodyWriter(CHUNKED).end(Headers([(b"X-Y", value)]))


def test_rule_49_a_reason_phrase_is_written_anew():
    head = read_response([b"HTTP/1.1 200 " + SECRET + b"\r\nContent-Length: 0\r\n\r\n"])[0]
    assert isinstance(head, ResponseHead)
    assert write_response(head, [], NO_BODY, keep_alive=True).startswith(b"HTTP/1.1 200 OK\r\n")
    assert write_response(response(status=999), [], NO_BODY, keep_alive=True).startswith(b"HTTP/1.1 999 \r\n")


def test_values_are_not_in_the_representation():
    assert "s3cret" not in repr(request((b"Authorization", b"Bearer s3cret")))


@pytest.mark.parametrize("fixed", [CONTINUE, CONNECTED])
def test_fixed_replies_are_good_heads(fixed):
    assert isinstance(read_response([fixed], "HEAD")[0], ResponseHead)
