"""Properties 9, 20, 43, 60 and 72 through the running proxy: who asks, how, and what they are told."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from clawbox.egress.messages import Limits
from tests.egress_world import Upstream, answers
from tests.egress_world.client import ask, ca, call, get, inner, read_reply, tunnel
from tests.egress_world.sandbox import TOKEN, request, sandbox

RULES = [
    {"host": "api.test", "ports": [443], "methods": ["GET"], "path_prefixes": ["/open"]},
    {"host": "*.wide.test", "ports": [443]},
]


async def absolute(box, method, host, port, path):
    reply = await ask(box, request(f"https://{host}:{port}{path}", method=method))
    return reply.status, reply.reason


async def local(box, method, host, port, path):
    head = request(f"/https://{host}:{port}{path}", method=method, host="localhost")
    reply = await ask(box, head)
    return reply.status, reply.reason


async def called(box, method, host, port, path):
    reply = await call(box, {"url": f"https://{host}:{port}{path}", "method": method})
    answer = reply.json()
    return answer.get("status", 403), answer.get("reason")


async def intercepted(box, method, host, port, path):
    wires = await box.connect()
    try:
        await wires.send(request(f"{host}:{port}", method="CONNECT"))
        head = await wires.reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            code = [line for line in head.decode().split("\r\n") if line.startswith("X-Clawbox-Error")]
            return 403, code[0].split(": ")[1]
    finally:
        wires.close()
    wires = await tunnel(box, host, port)
    await wires.send(inner(path, host, method=method))
    reply = await read_reply(wires, method)
    wires.close()
    return reply.status, reply.reason


ASKED = {
    ("GET", "api.test", 443, "/open/x"): (200, None),
    ("GET", "api.test", 443, "/open/../closed"): (403, "path_not_allowed"),
    ("GET", "api.test", 443, "/open/%2e%2e/closed"): (403, "path_not_allowed"),
    ("GET", "api.test", 443, "/open/..;/closed"): (403, "ambiguous_path"),
    ("GET", "api.test", 443, "/openly"): (403, "path_not_allowed"),
    ("POST", "api.test", 443, "/open/x"): (403, "method_not_allowed"),
    ("TRACE", "api.test", 443, "/open/x"): (403, "method_refused"),
    ("GET", "api.test", 8443, "/open/x"): (403, "port_not_allowed"),
    ("GET", "a.wide.test", 443, "/"): (200, None),
    ("GET", "wide.test", 443, "/"): (403, "host_not_allowed"),
    ("GET", "evilwide.test", 443, "/"): (403, "host_not_allowed"),
}


@pytest.mark.parametrize("way", [absolute, local, called, intercepted])
async def test_rule_9_every_way_in_passes_the_same_decision(tmp_path, way):
    context = ca().server_context("api.test", "*.wide.test")
    async with (
        Upstream(default=answers.body(b"reached"), tls=context) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "a.wide.test": upstream}, ca(), rules=RULES) as box,
    ):
        for asked, expected in ASKED.items():
            assert await way(box, *asked) == expected, asked
            row = box.rows.rows[-1]
            assert row.decision == ("allowed" if expected[0] == 200 else "denied"), asked
            assert row.reason == (expected[1] or ""), asked
        # Who was refused cost no look-up, and what is allowed was asked of the one that was named.
        assert set(box.names.dialed) == {("api.test", 443), ("a.wide.test", 443)}
        assert {seen.target for seen in upstream.seen} == {"/open/x", "/"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_rule_20_redirects_are_passed_back_and_not_followed(tmp_path, status):
    async with (
        Upstream({"/x": answers.redirect("http://other.test/", status)}) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "other.test": upstream}, ca()) as box,
    ):
        reply = await get(box, "http://api.test/x")
        assert (reply.status, reply.header("Location")) == (status, "http://other.test/")
        answer = (await call(box, {"url": "http://api.test/x", "method": "GET"})).json()
        assert (answer["status"], answer["headers"]["location"]) == (status, "http://other.test/")
        assert box.names.dialed == [("api.test", 80)]


BASIC = base64.b64encode(f"any:{TOKEN}".encode()).decode()
GOOD = [
    f"Proxy-Authorization: Bearer {TOKEN}",
    f"Proxy-Authorization: Basic {BASIC}",
    f"PROXY-authorization: bearer  {TOKEN}",
]
BAD = [
    "Proxy-Authorization: Bearer wrong",
    "Proxy-Authorization: Basic !!!",
    f"Proxy-Authorization: Basic {base64.b64encode(TOKEN.encode()).decode()}",
    f"Proxy-Authorization: Digest {TOKEN}",
    f"Proxy-Authorization: Bearer {TOKEN}x",
    "Proxy-Authorization:",
    f"Proxy-Authorization: Bearer {TOKEN}\r\nProxy-Authorization: Bearer {TOKEN}",
]


@pytest.mark.parametrize("line", GOOD)
async def test_rule_43_the_token_is_known_however_it_comes_and_stays_here(tmp_path, line):
    async with (
        Upstream(default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        reply = await ask(box, request("http://api.test/", line, "Proxy_Authorization: x", token=None))
        assert reply.status == 200
        assert "proxy" not in str(reply.json()["headers"]).lower()
        assert TOKEN.encode() not in upstream.seen[0].raw_head


@pytest.mark.parametrize("line", BAD)
@pytest.mark.parametrize("token_needed", [True, False])
async def test_rule_43_a_wrong_token_is_refused_even_where_none_is_needed(tmp_path, line, token_needed):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        for target, method in (("http://api.test/", "GET"), ("api.test:443", "CONNECT")):
            reply = await ask(box, request(target, line, token=None, method=method), token=token_needed)
            assert (reply.status, reply.reason) == (407, "token_invalid")
            assert reply.header("Proxy-Authenticate") == 'Basic realm="clawbox"'
        assert box.names.dialed == []


async def test_rule_43_without_a_token_nobody_learns_what_is_allowed(tmp_path):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        replies = [
            await ask(box, request(f"http://{host}/", token=None)) for host in ("api.test", "other.test")
        ]
        assert [reply.reason for reply in replies] == ["token_missing"] * 2
        assert replies[0].body == replies[1].body
        assert [(row.reason, row.host) for row in box.rows.rows] == [("token_missing", "")] * 2


async def test_rule_43_a_namespaces_own_listener_needs_no_token(tmp_path):
    async with (
        Upstream(default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        # What a program says to the host in Authorization is the host's.
        head = request("http://api.test/", "Authorization: Bearer for-the-host", token=None)
        reply = await ask(box, head, token=False)
        assert ["Authorization", "Bearer for-the-host"] in reply.json()["headers"]
        assert (await ask(box, head)).status == 407


@pytest.mark.parametrize("listener", ["tcp", "unix"])
async def test_rule_43_post_proxy_takes_the_token_in_authorization_and_says_401(tmp_path, listener):
    async with (
        Upstream(default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await (box.connect() if listener == "tcp" else box.connect_unix())
        body = json.dumps({"url": "http://api.test/", "method": "GET"})
        head = f"POST /proxy HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        await wires.send(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n{body}".encode())
        assert (await read_reply(wires)).json()["status"] == 200
        assert TOKEN.encode() not in upstream.seen[0].raw_head
        await wires.send(f"{head}Authorization: Bearer wrong\r\n\r\n{body}".encode())
        reply = await read_reply(wires)
        assert (reply.status, reply.json()) == (401, {"error": "unauthorized", "reason": "token_invalid"})
        wires.close()
        assert (await call(box, {"url": "http://api.test/", "method": "GET"}, token="")).status == 401
        assert len(upstream.seen) == 1


async def test_rule_43_the_token_of_a_request_to_the_sidecar_goes_no_further(tmp_path):
    async with (
        Upstream(default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        for target in ("/http://api.test/", "http://localhost/http://api.test/"):
            head = request(target, f"Authorization: Bearer {TOKEN}", token=None, host="localhost")
            reply = await ask(box, head)
            assert (reply.status, box.rows.rows[-1].way) == (200, "local")
            assert TOKEN not in str(reply.json())
        # With the token where a proxy has it, Authorization is the host's.
        head = request("/http://api.test/", "Authorization: Bearer mine", host="localhost")
        assert ["Authorization", "Bearer mine"] in (await ask(box, head)).json()["headers"]


async def test_rule_43_another_calls_token_is_another_call(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        box.proxy.admit(hashlib.sha256(b"second").digest(), "call-2")
        assert (await get(box, "http://api.test/", token="second")).status == 200
        assert (await get(box, "http://api.test/")).status == 200
        assert [row.call for row in box.rows.rows] == ["call-2", "call-1"]
        box.proxy.revoke(hashlib.sha256(b"second").digest())
        assert (await get(box, "http://api.test/", token="second")).status == 407


async def test_rule_60_refusals_say_why_and_nothing_else_of_the_policy(tmp_path):
    rules = ["api.test", {"host": "secret-plan.test", "path_prefixes": ["/hidden"]}]
    # The clock stands still: what was used of the rate must not come back while this waits for the processor.
    limits = Limits(requests_per_second=99, burst=4)
    async with sandbox(tmp_path, {}, ca(), rules=rules, limits=limits, clock=lambda: 0.0) as box:
        expected = [
            ("http://other.test/", 403, "host_not_allowed"),
            ("http://secret-plan.test/x", 403, "path_not_allowed"),
            ("ftp://api.test/", 403, "scheme_refused"),
            ("http://api.test/", 502, "connect_failed"),
            ("http://api.test/", 429, "rate_limited"),
        ]
        for url, status, reason in expected:
            reply = await get(box, url)
            assert (reply.status, reply.reason) == (status, reason)
            assert reply.header("Content-Type") == "application/json"
            body = reply.json()
            assert set(body) == {"error", "reason"}
            assert body["reason"] == reason
            assert "hidden" not in reply.body.decode()
            assert url == "http://secret-plan.test/x" or "secret-plan" not in reply.body.decode()


async def test_rule_60_head_gets_no_body_and_every_refusal_ends_the_connection(tmp_path):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        wires = await box.connect()
        data = await wires.ask(request("http://other.test/", method="HEAD") * 2)
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403")
        assert b"Connection: close" in head
        assert body == b""
        wires.close()
        assert len(box.rows.rows) == 1


@pytest.mark.parametrize(
    "target",
    [
        "https://other.test/",
        "https://api.test:8443/",
        "http://api.test/",
        "http://api.test:443/",
        "/https://other.test/",
    ],
)
async def test_rule_72_inside_a_tunnel_only_the_tunnels_own_host_is_reached(tmp_path, target):
    context = ca().server_context("api.test", "other.test")
    async with (
        Upstream(default=answers.body(b"reached"), tls=context) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "other.test": upstream}, ca()) as box,
    ):
        wires = await tunnel(box, "api.test")
        await wires.send(inner("https://api.test/ok", "api.test"))
        assert (await read_reply(wires)).status == 200
        host = target.split("//")[1].split("/")[0] if target.startswith("http") else "api.test"
        await wires.send(inner(target, host))
        reply = await read_reply(wires)
        wires.close()
        assert set(box.names.dialed) == {("api.test", 443)}
        if target.startswith("/"):
            # To the host itself a path like any other.
            assert upstream.seen[-1].target == target
        else:
            assert (reply.status, reply.reason) == (403, "tunnel_differs")


async def test_rule_72_no_tunnel_and_no_call_inside_a_tunnel(tmp_path):
    async with (
        Upstream(default=answers.echo, tls=ca().server_context("api.test")) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "other.test": upstream}, ca()) as box,
    ):
        for target in ("other.test:443", "/", "https://api.test/"):
            wires = await tunnel(box, "api.test")
            await wires.send(inner(target, target if ":443" in target else "api.test", method="CONNECT"))
            assert (await read_reply(wires)).status == 403
            wires.close()
        # A path that the sidecar serves outside is the host's inside.
        wires = await tunnel(box, "api.test")
        await wires.send(inner("/proxy", "api.test", "Content-Length: 2", method="POST") + b"{}")
        assert (await read_reply(wires)).json()["target"] == "/proxy"
        wires.close()
        assert box.names.dialed == [("api.test", 443)]


async def test_where_no_token_is_asked_for_authorization_is_the_host_s(tmp_path):
    async with (
        Upstream(default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await box.connect(token=False)
        mine = "Authorization: Bearer of-the-host-0123"
        await wires.send(request("/http://api.test/", mine, token=None, host="localhost"))
        seen = await upstream.arrived()
        assert seen.header("Authorization") == "Bearer of-the-host-0123"
        wires.close()
