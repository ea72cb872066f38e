import base64
import json

import msgspec
import pytest

from clawbox.egress.call_messages import BinaryReply, CallRequest, joined, largest_reply
from clawbox.egress.proxy.call import Call

EVERY_BYTE = bytes(range(256))


def test_what_a_worker_writes_is_what_the_sidecar_reads() -> None:
    pairs = [("a", "1"), ("A", "2")]
    request = CallRequest("http://a/", "POST", pairs, EVERY_BYTE, binary=True)

    read = msgspec.json.decode(msgspec.json.encode(request), type=Call)

    assert (read.url, read.method, read.headers, read.binary) == ("http://a/", "POST", pairs, True)
    assert (read.body, read.body_base64) == (None, EVERY_BYTE)


def test_bodies_are_base64() -> None:
    reply = json.loads(msgspec.json.encode(BinaryReply(200, [("a", "b")], EVERY_BYTE)))

    assert reply["body_base64"] == base64.b64encode(EVERY_BYTE).decode()


@pytest.mark.parametrize("status", [-1, 0, 99, 1000, 70_000])
def test_a_status_that_is_none_is_refused(status: int) -> None:
    reply = json.dumps({"status": status, "header_list": [], "body_base64": ""}).encode()

    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(reply, type=BinaryReply)


def test_repeated_headers_become_one_list_but_cookies() -> None:
    pairs = [("x", "1"), ("set-cookie", "a=1, 2"), ("x", "2"), ("set-cookie", "b=3")]

    assert joined(pairs) == {"x": "1, 2", "set-cookie": "a=1, 2\nb=3"}


def test_the_largest_reply_holds_the_largest_head_and_body() -> None:
    pairs = [("x" * 64, "\x7f" * 448)] * 128  # 64 KiB
    reply = msgspec.json.encode(BinaryReply(200, pairs, bytes(1_000_001)))

    assert len(reply) <= largest_reply(1_000_001)


def test_nothing_of_a_message_is_in_its_repr() -> None:
    request = CallRequest("http://hunter2/", "GET", [("a", "hunter2")], b"hunter2", binary=True)

    assert "hunter2" not in repr(request)
    assert "hunter2" not in repr(BinaryReply(200, [("a", "hunter2")], b"hunter2"))
