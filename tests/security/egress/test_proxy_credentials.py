"""Properties 38 to 42, 50, 66, 68 to 70 through the running proxy: secrets go where they belong, alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest

from clawbox.egress.credentials import (
    BasicAttachment,
    Credential,
    HeaderAttachment,
    QueryAttachment,
    SandboxSecrets,
    Secret,
)
from tests.egress_world import Upstream, answers
from tests.egress_world.client import ask, ca, call, get, inner, read_reply, tunnel
from tests.egress_world.sandbox import SECRET, TOKEN, request, sandbox

KEY = Credential("key", Secret(SECRET), ("api.test",))
NARROW = Credential("key", Secret(SECRET), ("api.test",), path_prefixes=("/v1",), methods=("GET",))
FRESH = "another-horse-battery-staple-8252"


def tls():
    return ca().server_context("api.test", "other.test")


def sent(upstream, name="Authorization"):
    return upstream.seen[-1].values(name)


@pytest.mark.parametrize("way", ["absolute", "local", "call", "intercept"])
async def test_rule_38_a_credential_is_attached_every_way_in(tmp_path, way):
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        if way == "absolute":
            await get(box, "https://api.test/")
        elif way == "local":
            await ask(box, request("/https://api.test/", host="localhost"))
        elif way == "call":
            await call(box, {"url": "https://api.test/", "method": "GET"})
        else:
            wires = await tunnel(box, "api.test")
            await wires.send(inner("/", "api.test"))
            await read_reply(wires)
            wires.close()
        assert sent(upstream) == [f"Bearer {SECRET}"]
        assert box.rows.rows[-1].credential == "key"


@pytest.mark.parametrize(
    ("method", "url", "attached"),
    [
        ("GET", "https://api.test/v1/x", True),
        ("GET", "https://api.test/v1", True),
        ("GET", "https://api.test/v2/../v1/x", True),
        ("GET", "https://api.test/v1/../v2", False),
        ("GET", "https://api.test/v1/%2e%2e/v2", False),
        ("GET", "https://api.test/v10", False),
        ("GET", "https://api.test/V1/x", False),
        ("POST", "https://api.test/v1/x", False),
        ("GET", "https://api.test:8443/v1/x", False),
        ("GET", "https://other.test/v1/x", False),
        ("GET", "http://api.test/v1/x", False),
        ("GET", "http://api.test:443/v1/x", False),
    ],
)
async def test_rule_38_and_only_where_it_belongs(tmp_path, method, url, attached):
    rules = [{"host": host, "ports": [80, 443, 8443]} for host in ("api.test", "other.test")]
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls() if url.startswith("https") else None) as upstream,
        sandbox(
            tmp_path,
            {"api.test": upstream, "other.test": upstream},
            ca(),
            rules=rules,
            credentials=[NARROW],
        ) as box,
    ):
        assert (await get(box, url, method=method)).status == 200
        assert sent(upstream) == ([f"Bearer {SECRET}"] if attached else [])


async def test_rule_38_never_in_plain_http_through_connect(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        wires = await box.connect()
        await wires.send(request("api.test:443", method="CONNECT"))
        await read_reply_head(wires)
        await wires.send(inner("/", "api.test:443"))
        assert (await read_reply(wires)).status == 200
        wires.close()
        assert sent(upstream) == []


async def read_reply_head(wires):
    await wires.reader.readuntil(b"\r\n\r\n")


ATTACHED = [
    (HeaderAttachment("X-Api-Key", ""), {"X-Api-Key": [SECRET]}, "/"),
    (
        BasicAttachment("me"),
        {"Authorization": ["Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()]},
        "/",
    ),
    (QueryAttachment("api_key"), {}, f"/?api_key={SECRET}"),
]


@pytest.mark.parametrize(("attachment", "headers", "target"), ATTACHED)
async def test_rule_39_the_guests_own_are_replaced_twins_included(tmp_path, attachment, headers, target):
    key = Credential("key", Secret(SECRET), ("api.test",), attachment)
    lines = ["X-Api-Key: a", "x_api_key: b", "X-API-KEY: c", "Authorization: Bearer d", "AUTHORIZATION: e"]
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[key]) as box,
    ):
        url = "https://api.test/?api_key=a&API%5FKEY=b&api-key=c" if "?" in target else "https://api.test/"
        await get(box, url, *lines)
        seen = upstream.seen[-1]
        for name in ("X-Api-Key", "X_Api_Key", "Authorization"):
            assert seen.values(name) == headers.get(name, [])
        assert seen.target == target
        assert len(box.rows.rows[-1].removed) >= 5


async def test_rule_41_what_is_decided_is_what_is_sent(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[NARROW]) as box,
    ):
        await get(box, "https://API.test.:443/v2/%2e%2e/%76%31/./x%5fy?a=%2e%2e/")
        seen = upstream.seen[-1]
        assert seen.target == "/v1/x_y?a=%2e%2e/"
        assert seen.header("Host") == "api.test"
        assert sent(upstream) == [f"Bearer {SECRET}"]


async def test_rule_42_a_credential_that_cannot_be_read_fails_what_it_may_be_for(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls()) as upstream,
        sandbox(
            tmp_path,
            {"api.test": upstream, "other.test": upstream},
            ca(),
            credentials=[KEY],
            broken={"torn": "its entry cannot be read"},
        ) as box,
    ):
        reply = await get(box, "https://other.test/", "Authorization: Bearer placeholder")
        assert (reply.status, reply.reason) == (502, "credential_unavailable")
        assert (await get(box, "https://api.test/")).status == 200
        assert [seen.header("Host") for seen in upstream.seen] == ["api.test"]


async def test_rule_42_one_that_is_granted_and_not_there_fails_too(tmp_path):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"], granted=["key"]) as box:
        assert (await get(box, "https://api.test/")).reason == "credential_unavailable"
        assert box.names.dialed == []


async def test_rule_50_no_range_is_asked_for_and_no_part_taken(tmp_path):
    data = f"before {SECRET} after\n".encode()
    routes = {"/ranges": answers.ranges(data), "/part": answers.body(b"part\n", status=206)}
    async with (
        Upstream(routes, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        for start in range(0, len(data), 9):
            reply = await get(
                box, "https://api.test/ranges", f"Range: bytes={start}-{start + 8}", 'If-Range: "x"'
            )
            assert reply.status == 200
            assert reply.body == b"before [REDACTED] after\n"
        assert sent(upstream, "Range") == sent(upstream, "If-Range") == []
        assert sent(upstream, "Accept-Encoding") == ["identity"]
        reply = await get(box, "https://api.test/part")
        assert (reply.status, reply.reason) == (502, "upstream_unexpected_body")


async def test_rule_50_other_hosts_may_serve_parts(tmp_path):
    async with (
        Upstream({"/x": answers.ranges(b"0123456789")}) as upstream,
        sandbox(tmp_path, {"other.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        reply = await get(box, "http://other.test/x", "Range: bytes=2-4")
        assert (reply.status, reply.body) == (206, b"234")


async def test_rule_66_connections_are_shared_only_where_everything_is_the_same(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "other.test": upstream}, ca(), credentials=[NARROW]) as box,
    ):
        box.proxy.admit(hashlib.sha256(b"second").digest(), "call-2")

        async def connection(url, **words):
            assert (await get(box, url, **words)).status == 200
            return upstream.seen[-1].connection

        first = await connection("https://api.test/v1")
        assert await connection("https://api.test/v1/again") == first
        others = [
            await connection("https://api.test/v2"),
            await connection("https://other.test/v1"),
            await connection("https://api.test/v1", token="second"),
        ]
        assert len({first, *others}) == 4
        assert await connection("https://api.test/v2/again") == others[0]


async def test_rule_66_nothing_that_is_kept_outlives_its_token(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        await get(box, "https://api.test/")
        box.proxy.revoke(hashlib.sha256(TOKEN.encode()).digest())
        await upstream.idle()


async def test_rule_66_nothing_that_is_kept_outlives_its_secret(tmp_path):
    gate = asyncio.Event()
    routes = {"/slow": answers.gated(gate, answers.body(b"ok")), "/": answers.body(b"ok")}
    async with (
        Upstream(routes, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        slow = asyncio.create_task(get(box, "https://api.test/slow"))
        await upstream.arrived()
        await get(box, "https://api.test/")
        fresh = Credential("key", Secret(FRESH), ("api.test",))
        box.proxy.replace_secrets(SandboxSecrets({"key": fresh}, {}, (("key", SECRET),)))
        gate.set()
        assert (await slow).status == 200
        await upstream.idle()
        assert sent(upstream) == [f"Bearer {SECRET}"]
        await get(box, "https://api.test/")
        assert sent(upstream) == [f"Bearer {FRESH}"]


async def test_rule_76_a_replaced_secret_stays_known_on_both_ways(tmp_path):
    async with (
        Upstream(default=answers.body(f"{SECRET} {FRESH}\n".encode()), tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        fresh = Credential("key", Secret(FRESH), ("api.test",))
        box.proxy.replace_secrets(SandboxSecrets({"key": fresh}, {}, (("key", SECRET),)))
        assert (await get(box, "https://api.test/")).body == b"[REDACTED] [REDACTED]\n"
        assert (await get(box, f"https://api.test/?{SECRET}")).reason == "leak_detected"


async def test_rule_68_a_few_known_secrets_suspend_credentials_and_say_so(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "other.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        assert (await get(box, f"https://other.test/?{SECRET}")).reason == "leak_detected"
        assert (await get(box, "https://other.test/", f"X: {SECRET}")).reason == "leak_detected"
        assert box.rows.suspensions == 0
        assert (await get(box, "https://api.test/")).status == 200
        assert (await get(box, "https://other.test/", body=SECRET.encode())).reason == "leak_detected"
        await box.rows.written(4)
        assert box.rows.suspensions == 1

        reply = await get(box, "https://api.test/")
        assert (reply.status, reply.reason) == (403, "credentials_suspended")
        assert (await get(box, "https://other.test/")).status == 200
        # A new value of the secret does not forgive.
        box.proxy.replace_secrets(SandboxSecrets({"key": KEY}, {}))
        assert (await get(box, "https://api.test/")).reason == "credentials_suspended"
        assert box.rows.suspensions == 1


async def test_rule_68_what_a_host_reflects_suspends_nobody(tmp_path):
    async with (
        Upstream({"/x": answers.reflects("Authorization")}, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        for _ in range(5):
            assert (await get(box, "https://api.test/x")).status == 200
        assert box.rows.suspensions == 0


ACCOUNTS = [
    "Cookie: session=attacker",
    "X-Auth-Token: attacker",
    "Private-Token: attacker",
    "X_Api_Key: attacker",
    "Api-Key: attacker",
]


async def test_rule_69_no_other_account_goes_where_a_credential_goes(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok"), tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "other.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        await get(box, "https://api.test/?access_token=attacker&page=2", *ACCOUNTS)
        assert b"attacker" not in upstream.seen[-1].raw_head
        assert upstream.seen[-1].target == "/?page=2"
        await get(box, "https://other.test/?access_token=attacker", *ACCOUNTS)
        assert upstream.seen[-1].raw_head.count(b"attacker") == 6


async def test_rule_69_nor_beside_what_the_credential_is_for(tmp_path):
    """A session begun with the credential, or another account, would serve on every other path."""
    async with (
        Upstream({"/v1": answers.sets_cookies("session=minted")}, tls=tls(), default=answers.echo) as up,
        sandbox(tmp_path, {"api.test": up}, ca(), credentials=[NARROW]) as box,
    ):
        assert (await get(box, "https://api.test/v1")).header("Set-Cookie") == "session=minted"
        own = ["Cookie: session=minted", "Authorization: Bearer attacker"]
        await get(box, "https://api.test/admin?api_key=attacker", *own)
        assert (sent(up), sent(up, "Cookie")) == ([], [])
        assert up.seen[-1].target == "/admin?"
        await get(box, "https://api.test/v1", *own, method="DELETE")
        assert (sent(up), sent(up, "Cookie")) == ([], [])
        assert set(box.rows.rows[-1].removed) == {"Cookie", "Authorization"}
        head = request("https://api.test/admin", "Transfer-Encoding: chunked", method="POST")
        reply = await ask(box, head + b"2\r\nx\n\r\n0\r\nX-Api-Key: attacker\r\nX-Sum: 1\r\n\r\n")
        assert reply.json()["trailers"] == [["X-Sum", "1"]]


async def test_rule_69_not_in_trailers_either(tmp_path):
    async with (
        Upstream(default=answers.echo, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        head = request("https://api.test/", "Transfer-Encoding: chunked", method="POST")
        trailers = b"".join(line.encode() + b"\r\n" for line in [*ACCOUNTS, "X-Sum: 1"])
        reply = await ask(box, head + b"2\r\nx\n\r\n0\r\n" + trailers + b"\r\n")
        assert reply.json()["trailers"] == [["X-Sum", "1"]]
        assert "X_Api_Key" in box.rows.rows[-1].removed


async def test_rule_70_nothing_changes_what_was_decided(tmp_path):
    lines = [
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X_Method_Override: DELETE",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
        "Forwarded: for=10.0.0.1",
        "X-Forwarded-Host: other.test",
        "X_Forwarded_For: 10.0.0.1",
    ]
    async with (
        Upstream(default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        reply = await get(box, "http://api.test/", *lines, "X-Kept: 1")
        assert [name for name, _ in reply.json()["headers"]] == ["Host", "X-Kept"]
        answer = await call(
            box,
            {"url": "http://api.test/", "method": "GET", "headers": dict(line.split(": ") for line in lines)},
        )
        assert '"Host"' in answer.json()["body"]
        assert "admin" not in answer.json()["body"]
        for method in ("TRACE", "TRACK"):
            assert (await get(box, "http://api.test/", method=method)).reason == "method_refused"
