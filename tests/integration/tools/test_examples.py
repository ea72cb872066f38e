"""The example tools in C and Go: the core ABI with real compilers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clawbox.wasm.egress import EgressRefusedError, HttpRequest, HttpResponse
from clawbox.wasm.model import Level
from tests.integration.tools.sandbox import Sandbox

Example = Callable[[str], Sandbox]


class Answering:
    """A way out with one answer."""

    def __init__(self, response: HttpResponse | None) -> None:
        self.requests: list[HttpRequest] = []
        self._response = response

    def send(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        if self._response is None:
            raise EgressRefusedError(f"URL blocked by allowlist: {request.url}")
        return self._response


@pytest.mark.parametrize("text", ["null", '{"a": "ü☃"}', '"' + "x" * 200_000 + '"'])
def test_echo(example: Example, text: str) -> None:
    ended = example("echo").run(text, memory=16 << 20)
    assert ended.ok
    assert ended.output == text


def test_hostcall_logs(example: Example) -> None:
    ended = example("hostcall").run({"method": "log", "params": {"level": "warn", "message": "ü"}})
    assert ended.answer == {"ok": None}
    assert ended.logs == [(Level.WARN, "ü")]


@pytest.mark.parametrize(
    ("request_text", "error"),
    [
        ('{"method": "nope"}', "unknown host call method: nope"),
        ('{"method": 5}', "invalid host_call request: missing 'method'"),
        ('{"method": "http_request", "params": {}}', "missing 'url' parameter"),
    ],
)
def test_hostcall_errors(example: Example, request_text: str, error: str) -> None:
    assert example("hostcall").run(request_text).answer == {"error": error}


def test_hostcall_beyond_the_limit_is_refused(example: Example) -> None:
    ended = example("hostcall").run({"method": "log", "params": {"message": "m"}, "times": 6}, max_calls=5)
    assert ended.answer == {"error": "host_call limit exceeded (max 5)"}
    assert len(ended.logs) == 5


def test_reply_that_does_not_fit_is_fetched_whole(example: Example) -> None:
    body = "0123456789ü" * 2000
    egress = Answering(HttpResponse(200, (("k", "v"),), body.encode()))
    ended = example("hostcall").run(
        {"method": "http_request", "params": {"url": "https://h/"}}, egress=egress
    )
    assert ended.answer == {"ok": {"status": 200, "headers": {"k": "v"}, "body": body}}


@pytest.mark.parametrize("size", [10, 300_000])
def test_http_request_in_go(example: Example, size: int) -> None:
    egress = Answering(HttpResponse(201, (("a", "b"),), b"x" * size))
    params = {"url": "https://api.example.com/", "method": "POST", "headers": {"k": "v"}, "body": "hi"}
    ended = example("http_request").run(params, egress=egress)
    assert ended.answer == {"status": 201, "headers": {"a": "b"}, "body": "x" * size}
    assert egress.requests == [HttpRequest("POST", "https://api.example.com/", (("k", "v"),), b"hi")]


def test_http_request_in_go_says_why_it_was_refused(example: Example) -> None:
    ended = example("http_request").run({"url": "https://other.example/"}, egress=Answering(None))
    assert ended.exit_code == 1
    assert b"".join(ended.stderr) == b"URL blocked by allowlist: https://other.example/\n"


def test_github_client(example: Example) -> None:
    body = b'{"full_name": "o/r", "description": null, "stargazers_count": 3, "private": false, "more": 1}'
    egress = Answering(HttpResponse(200, (), body))
    ended = example("github").run({"repository": "o/r"}, egress=egress)
    assert ended.answer["full_name"] == "o/r"
    assert ended.answer["stargazers_count"] == 3
    assert egress.requests[0].url == "https://api.github.com/repos/o/r"
    assert "authorization" not in dict(egress.requests[0].headers)
    ended = example("github").run({"repository": "o/r"}, egress=Answering(HttpResponse(404, (), b"{}")))
    assert ended.exit_code == 1
    assert b"GitHub answered 404" in b"".join(ended.stderr)
