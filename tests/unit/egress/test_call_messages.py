import base64
import json

import msgspec
import pytest

from clawbox.egress.call_messages import (
    BinaryReply,
    CallRequest,
    largest_reply,
    read_request,
    reply_to,
)
from clawbox.egress.refusal import Denial, RefusedError

EVERY_BYTE = bytes(range(256))


def read(**members: object) -> CallRequest:
    return read_request(json.dumps({"url": "http://a/", "method": "GET", **members}).encode())


def test_request_of_the_rust_clawbox() -> None:
    request = read(headers={"A": "1", "b": "2"}, body="grüße", timeout=3)

    assert request.header_list == [("A", "1"), ("b", "2")]
    assert request.content == "grüße".encode()
    assert not request.binary


@pytest.mark.parametrize("members", [{}, {"headers": None, "body": None}])
def test_headers_and_body_may_be_left_out(members: dict[str, object]) -> None:
    request = read(**members)

    assert request.header_list == []
    assert request.content is None


def test_pairs_keep_repeated_headers_and_base64_keeps_every_byte() -> None:
    pairs = [["a", "1"], ["A", "2"]]
    request = read(headers=pairs, body_base64=base64.b64encode(EVERY_BYTE).decode())

    assert [list(pair) for pair in request.header_list] == pairs
    assert request.content == EVERY_BYTE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"url": "http://a/"}',
        b'{"url": 1, "method": "GET"}',
        b'{"url": "http://a/", "method": "GET", "headers": [["a"]]}',
        b'{"url": "http://a/", "method": "GET", "headers": {"a": 1}}',
        b'{"url": "http://a/", "method": "GET", "body": "x", "body_base64": "eA=="}',
        b'{"url": "http://a/", "method": "GET", "body_base64": "no base64"}',
        b'{"url": "http://a/", "method": "GET", "body": "\\ud800"}',
        b'{"url": "http://a/", "method": "GET", "x": ' + b"[" * 100_000,
    ],
)
def test_anything_else_is_refused_as_malformed(data: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        read_request(data)

    assert refused.value.refusal.denial is Denial.MALFORMED_CALL
    assert refused.value.refusal.detail.isascii()
    assert len(refused.value.refusal.detail) < 300


def test_what_is_wrong_is_named_without_any_value() -> None:
    with pytest.raises(RefusedError) as refused:
        read_request(b'{"url": "http://a/", "method": "GET", "headers": {"a": 4711}}')

    assert "headers" in refused.value.refusal.detail
    assert "4711" not in refused.value.refusal.detail


def test_text_reply_is_that_of_the_rust_clawbox() -> None:
    fields = [(b"X-A", b"1"), (b"x-a", b"2"), (b"B", b"gr\xc3\xbc\xc3\x9fe")]
    reply = msgspec.json.encode(reply_to(read(), 200, fields, b"\xff!"))

    assert json.loads(reply) == {"status": 200, "headers": {"x-a": "1, 2", "b": "grüße"}, "body": "\ufffd!"}


def test_binary_reply_loses_nothing() -> None:
    fields = [(b"Set-Cookie", b"a=1, 2"), (b"Set-Cookie", b"b"), (b"X", b"\xe9")]
    reply = msgspec.json.encode(reply_to(read(binary=True), 200, fields, EVERY_BYTE))

    assert json.loads(reply) == {
        "status": 200,
        "header_list": [["set-cookie", "a=1, 2"], ["set-cookie", "b"], ["x", "é"]],
        "body_base64": base64.b64encode(EVERY_BYTE).decode(),
    }
    assert msgspec.json.decode(reply, type=BinaryReply).body_base64 == EVERY_BYTE


def test_the_largest_reply_holds_the_largest_head_and_body() -> None:
    pairs = [("x" * 64, "\x7f" * 448)] * 128  # 64 KiB
    reply = msgspec.json.encode(BinaryReply(200, pairs, bytes(1_000_001)))

    assert len(reply) <= largest_reply(1_000_001)


def test_nothing_of_a_message_is_in_its_repr() -> None:
    request = read(headers={"a": "hunter2"}, body="hunter2")

    assert "hunter2" not in repr(request)
    for binary in (False, True):
        assert "hunter2" not in repr(reply_to(read(binary=binary), 200, [(b"a", b"hunter2")], b"hunter2"))
