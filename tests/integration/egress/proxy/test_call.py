"""``POST /proxy``: the JSON of the Rust clawbox 0.1, its statuses and texts, and the binary form."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from clawbox.egress.messages import Limits
from tests.egress_world import Upstream, answers
from tests.egress_world.client import ask, ca, call, read_head, read_reply
from tests.egress_world.sandbox import TOKEN, request, sandbox

URL = "http://api.test/x"


def head(size, *lines):
    return request(
        "/proxy",
        f"Authorization: Bearer {TOKEN}",
        f"Content-Length: {size}",
        *lines,
        method="POST",
        token=None,
        host="localhost",
    )


async def test_a_call_is_sent_and_its_answer_comes_as_json(tmp_path):
    async with (
        Upstream({"/x": answers.echo}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        asked = {"url": URL, "method": "PUT", "headers": {"X-One": "1"}, "body": "sn\u00f6w"}
        reply = await call(box, asked)
        assert (reply.status, reply.header("Content-Type")) == (200, "application/json")
        answer = reply.json()
        assert set(answer) == {"status", "headers", "body"}
        assert answer["status"] == 200
        assert answer["headers"]["content-type"] == "application/json"
        arrived = json.loads(answer["body"])
        assert (arrived["method"], arrived["body"]) == ("PUT", "sn\u00f6w")
        assert ["X-One", "1"] in arrived["headers"]
        assert upstream.seen[0].header("Content-Length") == "5"


async def test_names_are_in_lower_case_and_repeats_are_joined(tmp_path):
    lines = [("X-Two", "1"), ("x-two", "2"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    async with (
        Upstream({"/x": answers.body(b"\xff\xfe", lines, status=404)}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        answer = (await call(box, {"url": URL, "method": "GET"})).json()
        assert answer["status"] == 404
        assert answer["headers"]["x-two"] == "1, 2"
        assert [part.strip() for part in answer["headers"]["set-cookie"].replace("\n", ",").split(",")] == [
            "a=1",
            "b=2",
        ]
        assert answer["body"] == "\ufffd\ufffd"


async def test_the_binary_form_loses_nothing(tmp_path):
    body = bytes(range(256))
    lines = [("X-Two", "1"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    async with (
        Upstream({"/x": answers.echo, "/y": answers.body(body, lines)}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        asked = {
            "url": URL,
            "method": "POST",
            "headers": [["X-A", "1"], ["X-A", "2"]],
            "body_base64": base64.b64encode(body).decode(),
        }
        arrived = json.loads((await call(box, asked)).json()["body"])
        assert arrived["length"] == 256
        assert [pair for pair in arrived["headers"] if pair[0] == "X-A"] == [["X-A", "1"], ["X-A", "2"]]
        answer = (await call(box, {"url": "http://api.test/y", "method": "GET", "binary": True})).json()
        assert set(answer) == {"status", "header_list", "body_base64"}
        assert base64.b64decode(answer["body_base64"]) == body
        assert [pair for pair in answer["header_list"] if pair[0] != "content-type"] == [
            ["x-two", "1"],
            ["set-cookie", "a=1"],
            ["set-cookie", "b=2"],
        ]


async def test_only_headers_that_none_can_have_are_left_out(tmp_path):
    headers = {"X-Good": "1", "Bad Name": "2", "X-Bad": "a\nb", "": "3", "X-Nul": "\0", "Host": "other.test"}
    async with (
        Upstream({"/x": answers.echo}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        reply = await call(box, {"url": URL, "method": "GET", "headers": headers})
        assert json.loads(reply.json()["body"])["headers"] == [["Host", "api.test"], ["X-Good", "1"]]


REFUSED = [
    ({"url": "http://other.test/", "method": "GET"}, 403, "URL blocked by allowlist: http://other.test/"),
    (
        {"url": "http://api.test:99/", "method": "GET"},
        403,
        "URL blocked by allowlist: http://api.test:99/ (The grant names the host, but not this port.)",
    ),
    ({"url": "ftp://api.test/", "method": "GET"}, 403, "invalid URL: "),
    ({"url": "http://me@api.test/", "method": "GET"}, 403, "invalid URL: "),
    ({"url": "", "method": "GET"}, 403, "invalid URL: "),
    ({"url": "http://api.test/%zz", "method": "GET"}, 403, "invalid URL: "),
    ({"url": "http://gone.test/", "method": "GET"}, 403, "HTTP error: "),
    ({"url": "http://api.test/closes", "method": "GET"}, 403, "HTTP error: "),
    ({"url": "http://api.test/cut", "method": "GET"}, 403, "HTTP error: "),
    ({"url": "http://api.test/much", "method": "GET"}, 403, "HTTP error: "),
    ({"url": "http://api.test/never", "method": "GET"}, 403, "HTTP error: "),
    ({"url": URL, "method": "TRACE"}, 403, "HTTP error: "),
    ({"url": URL, "method": "CONNECT"}, 403, "HTTP error: "),
    ({"url": URL, "method": "GET", "headers": {"Upgrade": "websocket"}}, 403, "HTTP error: "),
    ({"url": URL, "method": "a b"}, 400, "The body of POST /proxy"),
    ({"url": URL}, 400, "The body of POST /proxy"),
    ({"method": "GET"}, 400, "The body of POST /proxy"),
    ({"url": 7, "method": "GET"}, 400, "The body of POST /proxy"),
    ({"url": URL, "method": "GET", "body": "x", "body_base64": "eA=="}, 400, "The body of POST /proxy"),
    ({"url": URL, "method": "GET", "body_base64": "!"}, 400, "The body of POST /proxy"),
    (b"", 400, "The body of POST /proxy"),
    (b"not json", 400, "The body of POST /proxy"),
    (b"\xff\xfe", 400, "The body of POST /proxy"),
    (b'{"url": ' * 20_000, 400, "The body of POST /proxy"),
]


async def test_each_refusal_has_the_status_and_text_that_programs_know(tmp_path):
    routes = {
        "/x": answers.echo,
        "/closes": answers.closes_early,
        "/cut": answers.truncated(b"x\n"),
        "/much": answers.body(b"x" * 3000),
        "/never": answers.never,
    }
    limits = Limits(call_max_response_bytes=2000, call_timeout_ms=1000)
    async with (
        Upstream(routes) as upstream,
        sandbox(
            tmp_path, {"api.test": upstream}, ca(), rules=["api.test", "gone.test"], limits=limits
        ) as box,
    ):
        wires = await box.connect()
        for asked, status, text in REFUSED:
            # All on one connection: a call that is refused does not end it.
            data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
            await wires.send(head(len(data)) + data)
            reply = await read_reply(wires)
            answer = reply.json()
            assert (reply.status, set(answer)) == (status, {"error", "reason"}), asked
            assert answer["error"] == text if text.startswith("URL") else answer["error"].startswith(text), (
                asked
            )
        data = json.dumps({"url": URL, "method": "GET"}).encode()
        await wires.send(head(len(data)) + data)
        assert (await read_reply(wires)).json()["status"] == 200
        wires.close()
        assert len(box.rows.rows) == len(REFUSED) + 1


async def test_a_client_that_waits_for_continue_is_told_to_go_on(tmp_path):
    async with (
        Upstream({"/x": answers.echo}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        data = json.dumps({"url": URL, "method": "GET"}).encode()
        wires = await box.connect()
        await wires.send(head(len(data), "Expect: 100-continue"))
        assert (await read_head(wires)).status == 100
        await wires.send(data)
        assert (await read_reply(wires)).json()["status"] == 200
        wires.close()


async def test_a_call_of_more_than_ten_mebibytes_is_refused(tmp_path):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        wires = await box.connect()
        size = (10 << 20) + 1
        send = asyncio.create_task(wires.send(head(size) + b" " * size))
        reply = await read_reply(wires)
        assert (reply.status, reply.json()["reason"]) == (403, "body_too_large")
        wires.close()
        await asyncio.wait([send])


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({f"x-{number}": "" for number in range(129)}, "malformed_call"),
        ([["x", ""]] * 129, "malformed_call"),
        ({"x": "y" * (64 << 10)}, "head_too_large"),
    ],
    ids=["an object", "a list", "a value"],
)
async def test_headers_of_a_call_are_bounded_as_those_of_any_request(tmp_path, headers, reason):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        reply = await call(box, {"url": "https://api.test/", "method": "GET", "headers": headers})
        assert reply.json()["reason"] == reason


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/proxy"), ("POST", "/"), ("POST", "/proxy/x"), ("GET", "/health")]
)
async def test_the_sidecar_serves_nothing_else(tmp_path, method, target):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        reply = await ask(box, request(target, method=method, host="localhost"))
        assert (reply.status, reply.reason) == (403, "unknown_route")


@pytest.mark.parametrize("target", ["/http://api.test/x?y", "http://localhost/http://api.test/x?y"])
async def test_a_url_behind_the_sidecars_own_address_is_forwarded_as_it_is(tmp_path, target):
    async with (
        Upstream({"/x": answers.chunked([b"a", b"b"])}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        reply = await ask(box, request(target, host="localhost"))
        assert (reply.status, reply.body) == (200, b"ab")
        assert (upstream.seen[0].target, upstream.seen[0].header("Host")) == ("/x?y", "api.test")
        assert (await ask(box, request(target, host="api.test"))).reason == "host_differs"
