"""``host_call``: JSON in, JSON out, and requests that the way out gets as the guest meant them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from clawbox.wasm.egress import EgressRefusedError, HttpRequest, HttpResponse
from clawbox.wasm.host import Session, answer

EVERY_BYTE = bytes(range(256))
URL = "https://a.example/"
RESPONSE = HttpResponse(200, (("x", "1"), ("set-cookie", "a"), ("x", "2")), EVERY_BYTE)


class Recorded:
    """A way out that keeps requests and answers all alike."""

    def __init__(self, response: HttpResponse | None = RESPONSE) -> None:
        self.requests: list[HttpRequest] = []
        self._response = response

    def send(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        if self._response is None:
            raise EgressRefusedError("no")
        return self._response


def session(egress: Recorded) -> Session:
    return Session(max_calls=5, max_log_bytes=0, egress=egress, on_log=lambda level, message: None)


def call(egress: Recorded, **params: object) -> Any:
    request = json.dumps({"method": "http_request", "params": {"url": URL, **params}})
    reply = answer(session(egress), request.encode())
    assert reply is not None
    return json.loads(reply)


def test_request_and_reply_of_the_rust_clawbox() -> None:
    egress = Recorded(HttpResponse(201, (("x", "1"),), "grüße".encode()))

    reply = call(egress, method="POST", headers={"A": "1"}, body="ü")

    assert egress.requests == [HttpRequest("POST", URL, (("A", "1"),), "ü".encode())]
    assert reply == {"ok": {"status": 201, "headers": {"x": "1"}, "body": "grüße"}}


def test_repeated_headers_are_joined_where_the_reply_is_an_object() -> None:
    assert call(Recorded())["ok"]["headers"] == {"x": "1, 2", "set-cookie": "a"}


def test_nothing_is_lost_when_asked_so() -> None:
    egress = Recorded()
    encoded = base64.b64encode(EVERY_BYTE).decode()

    reply = call(egress, headers=[["A", "1"], ["a", "2"]], body_base64=encoded, binary=True)

    assert egress.requests == [HttpRequest("GET", URL, (("A", "1"), ("a", "2")), EVERY_BYTE)]
    assert reply == {
        "ok": {
            "status": 200,
            "header_list": [["x", "1"], ["set-cookie", "a"], ["x", "2"]],
            "body_base64": encoded,
        }
    }


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"url": None}, "missing 'url' parameter"),
        ({"method": 5}, "invalid host_call request: 'method' is not a string"),
        ({"headers": "x"}, "invalid host_call request: 'headers' is not an object"),
        ({"headers": [["a"]]}, "invalid host_call request: 'headers' is not a list of pairs of strings"),
        ({"headers": [["a", 1]]}, "invalid host_call request: 'headers' is not a list of pairs of strings"),
        ({"headers": ["ab"]}, "invalid host_call request: 'headers' is not a list of pairs of strings"),
        ({"body": 5}, "invalid host_call request: 'body' is not a string"),
        ({"body_base64": 5}, "invalid host_call request: 'body_base64' is not base64"),
        ({"body_base64": "?"}, "invalid host_call request: 'body_base64' is not base64"),
        ({"body_base64": "ü"}, "invalid host_call request: 'body_base64' is not base64"),
        ({"body": "a", "body_base64": "YQ=="}, "invalid host_call request: both 'body' and 'body_base64'"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_and_nothing_sent(params: dict[str, object], error: str) -> None:
    egress = Recorded()

    assert call(egress, **params) == {"error": error}
    assert egress.requests == []


def test_a_refusal_is_the_guests_to_read() -> None:
    assert call(Recorded(None)) == {"error": "no"}


def test_requests_are_counted_and_end_with_the_host_calls() -> None:
    egress = Recorded()
    run = session(egress)
    request = json.dumps({"method": "http_request", "params": {"url": URL}}).encode()
    for _ in range(7):
        answer(run, request)

    assert (run.egress_calls, len(egress.requests)) == (5, 5)
