"""The worker's end of ``POST /proxy``: what goes over the wire, and what a hostile sidecar can do."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from clawbox.egress.call_messages import MAX_REQUEST_BYTES
from clawbox.wasm.egress import EgressRefusedError, HttpRequest, HttpResponse, NoEgress, SidecarEgress

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY_BYTE = bytes(range(256))
GET = HttpRequest("GET", "https://a.example/", (), None)
BROKEN = "HTTP error: the connection to the sidecar broke"
MALFORMED = "HTTP error: the sidecar's answer is malformed or too large"


def answer(document: object, status: int = 200, *more: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


OK = answer({"status": 204, "header_list": [], "body_base64": ""})


class Sidecar:
    """The other end, on a thread: answers requests in turn with what it is given, then closes."""

    def __init__(self, *answers: bytes) -> None:
        ours, theirs = socket.socketpair()
        self.requests: list[tuple[str, bytes]] = []
        self.egress = SidecarEgress(theirs.detach(), "t0ken", 1000)
        self._socket = ours
        self._answers = answers
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._socket, self._socket.makefile("rb") as stream:
            for reply in self._answers:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = stream.readline()
                    if not line:
                        return
                    head += line
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((head.decode(), stream.read(size)))
                try:
                    self._socket.sendall(reply)
                except OSError:
                    return

    def close(self) -> None:
        self.egress.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def sidecars() -> Iterator[list[Sidecar]]:
    made: list[Sidecar] = []
    yield made
    for sidecar in made:
        sidecar.close()


@pytest.fixture
def sidecar(sidecars):
    def make(*answers: bytes) -> Sidecar:
        made = Sidecar(*answers)
        sidecars.append(made)
        return made

    return make


def refused(egress, request=GET):
    with pytest.raises(EgressRefusedError) as error:
        egress.send(request)
    return str(error.value)


def test_request_and_answer_are_whole(sidecar):
    headers = [["set-cookie", "a=1, 2"], ["set-cookie", "b"]]
    body = base64.b64encode(EVERY_BYTE).decode()
    made = sidecar(answer({"status": 201, "header_list": headers, "body_base64": body}))
    request = HttpRequest("POST", "https://a.example/ü?b=c", (("X", "1"), ("x", "ü")), EVERY_BYTE)

    response = made.egress.send(request)

    assert response == HttpResponse(201, (("set-cookie", "a=1, 2"), ("set-cookie", "b")), EVERY_BYTE)
    ((head, sent),) = made.requests
    assert head.startswith("POST /proxy HTTP/1.1\r\n")
    assert "\r\nAuthorization: Bearer t0ken\r\n" in head
    assert json.loads(sent) == {
        "url": "https://a.example/ü?b=c",
        "method": "POST",
        "headers": [["X", "1"], ["x", "ü"]],
        "body_base64": body,
        "binary": True,
    }


def test_one_connection_serves_all_requests_of_a_run(sidecar):
    made = sidecar(OK, answer({"error": "no", "reason": "x"}, 403), OK)

    assert made.egress.send(GET).status == 204
    assert refused(made.egress) == "no"
    assert made.egress.send(GET).status == 204


def test_without_a_grant_the_text_is_that_of_an_empty_allowlist():
    assert refused(NoEgress()) == "URL blocked by allowlist: https://a.example/"


def test_a_server_without_a_way_out_says_so_to_whom_it_was_granted():
    assert refused(NoEgress(granted=True)).startswith("HTTP error: this server has no way out")


def test_once_closed_nothing_is_sent_and_the_token_is_gone(sidecar):
    made = sidecar(OK)
    descriptor = made.egress._descriptor
    made.egress.close()
    made.egress.close()

    assert refused(made.egress) == BROKEN
    assert "t0ken" not in vars(made.egress).values()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_a_sidecar_that_is_gone_is_an_error_from_then_on(sidecar):
    made = sidecar(OK)

    assert made.egress.send(GET).status == 204
    assert refused(made.egress) in {BROKEN, MALFORMED}
    assert refused(made.egress) == BROKEN


def test_a_sidecar_that_closes_after_its_answer_is_not_asked_again(sidecar):
    made = sidecar(answer({"error": "no"}, 401, "Connection: close"), OK)

    assert refused(made.egress) == "no"
    assert refused(made.egress) == BROKEN


@pytest.mark.parametrize(
    "reply",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: 5\r\n\r\n{}",
        b"HTTP/1.1 200 x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 100 x\r\n\r\n" * 50,
        answer(b""),
        answer(b"\xff"),
        answer([]),
        answer({"status": 200, "headers": {}, "body": ""}),
        answer({"status": 99_999, "header_list": [], "body_base64": ""}),
        answer({"status": 200, "header_list": [["a"]], "body_base64": ""}),
        answer({"status": 200, "header_list": [], "body_base64": "no base64"}),
        answer(b'{"status": 200, "body_base64": "", "header_list": ' + b"[" * 100_000),
        answer(b"oops", 403),
        OK + OK,
    ],
)
def test_an_answer_that_is_none_is_an_error_for_the_guest(sidecar, reply):
    assert refused(sidecar(reply).egress) == MALFORMED


@pytest.mark.parametrize("length", ["Content-Length: 100000000", "Transfer-Encoding: chunked", "X: closed"])
def test_an_answer_without_end_is_cut_off_at_the_limit(sidecar, length):
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    made = sidecar(f"HTTP/1.1 200 x\r\n{length}\r\n\r\n".encode() + chunk * 100)

    assert refused(made.egress) == MALFORMED
    assert refused(made.egress) == BROKEN


def test_a_request_that_is_too_large_is_not_sent(sidecar):
    made = sidecar(OK)
    request = HttpRequest("POST", "https://a.example/", (), bytes(MAX_REQUEST_BYTES))

    assert (
        refused(made.egress, request)
        == f"HTTP error: the request has more than {MAX_REQUEST_BYTES} bytes as JSON"
    )
    assert made.egress.send(GET).status == 204


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest("GET", "https://a.example/\ud800", (), None),
        HttpRequest("GET", "https://a.example/", (("a", "\udfff"),), None),
    ],
)
def test_what_cannot_be_written_is_not_sent(sidecar, request_):
    made = sidecar(OK)

    assert refused(made.egress, request_).startswith("invalid URL: ")
    assert made.egress.send(GET).status == 204


def test_no_value_of_a_message_is_in_its_repr():
    request = HttpRequest("GET", "https://a.example/", (("a", "hunter2"),), b"hunter2")
    response = HttpResponse(200, (("a", "hunter2"),), b"hunter2")

    assert "hunter2" not in repr(request) + repr(response)
