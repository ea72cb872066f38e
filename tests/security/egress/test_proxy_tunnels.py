"""Properties 29, 33, 34 and 37 through real tunnels: what CONNECT named is what is reached."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from clawbox.egress.messages import Limits
from tests.egress_world import Upstream, answers
from tests.egress_world.ca import client_context
from tests.egress_world.client import ask, ca, connect, inner, read_reply, tls, tunnel
from tests.egress_world.sandbox import request, sandbox

TUNNEL = [{"host": host, "tls_mode": "tunnel"} for host in ("api.test", "127.0.0.1")]


def upstream_tls():
    return ca().server_context("api.test", "other.test")


@pytest.mark.parametrize("mode", ["intercept", "tunnel"])
@pytest.mark.parametrize("early", [b"\x16", inner("/", "api.test")], ids=["a byte", "a request"])
async def test_rule_29_bytes_between_connect_and_its_reply_close_the_connection(tmp_path, mode, early):
    rules = [{"host": "api.test", "tls_mode": mode}]
    async with (
        Upstream(default=answers.body(b"reached")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), rules=rules) as box,
    ):
        reply = await ask(box, request("api.test:443", method="CONNECT") + early)
        assert (reply.status, reply.reason) == (403, "unexpected_bytes")
        assert upstream.seen == []
        assert [row.reason for row in box.rows.rows] == ["unexpected_bytes"]


async def test_rule_29_nor_may_they_come_while_the_host_is_dialed(tmp_path):
    async with (
        Upstream() as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), rules=TUNNEL) as box,
    ):
        box.names.gate = asyncio.Event()
        wires = await box.connect()
        await wires.send(request("api.test:443", method="CONNECT"))
        await box.names.asked(1)
        await wires.send(b"\x16\x03\x01")
        probe = await box.connect()  # whoever is answered now came after those bytes
        assert (await probe.ask(request("http://other.test/"))).startswith(b"HTTP/1.1 403")
        probe.close()
        box.names.gate.set()
        reply = await read_reply(wires)
        assert (reply.status, reply.reason) == (403, "unexpected_bytes")
        wires.close()


async def test_rule_33_an_unread_tunnel_goes_to_the_host_that_both_name(tmp_path):
    async with (
        Upstream(default=answers.body(b"reached"), tls=upstream_tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), rules=TUNNEL) as box,
    ):
        # The host's own certificate, not the sandbox's.
        wires = await tls(await connect(box, "api.test:443"), ca().pem, "api.test", alpn=("h2", "http/1.1"))
        await wires.send(inner("/x", "api.test"))
        assert (await read_reply(wires)).body == b"reached"
        wires.close()
        row = await box.rows.written()
        assert (row.way, row.decision, row.host, row.port) == ("tunnel", "allowed", "api.test", 443)
        assert row.bytes_up > 300
        assert row.bytes_down > 300
        assert upstream.seen[0].server_name == "api.test"


@pytest.mark.parametrize(
    ("named", "reason", "alert"),
    [
        ("other.test", "sni_differs", "(?i)unrecognized.name"),
        ("api.test.other.test", "sni_differs", "(?i)unrecognized.name"),
        (None, "sni_missing", "(?i)109|missing.extension"),
    ],
)
async def test_rule_33_another_name_or_none_ends_a_tunnel_before_a_byte_goes_on(
    tmp_path, named, reason, alert
):
    async with (
        Upstream(default=answers.body(b"reached"), tls=upstream_tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), rules=TUNNEL) as box,
    ):
        wires = await connect(box, "api.test:443")
        with pytest.raises(ssl.SSLError, match=alert):
            await tls(wires, ca().pem, named)
        wires.close()
        row = await box.rows.written()
        assert (row.reason, row.decision, row.bytes_up) == (reason, "denied", 0)
        await upstream.until(lambda: upstream.open == 0)
        assert upstream.seen == []


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x16\x02\x00\x00\x05hello",
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
        b"\x80\x2e\x01\x03\x01",
    ],
)
async def test_rule_33_what_is_not_tls_never_goes_through_an_unread_tunnel(tmp_path, first):
    arrived = bytearray()

    async def listen(reader, writer):
        arrived.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    upstream = Upstream()
    upstream.port = server.sockets[0].getsockname()[1]
    async with server, sandbox(tmp_path, {"api.test": upstream}, ca(), rules=TUNNEL) as box:
        wires = await connect(box, "api.test:443")
        await wires.send(first)
        with contextlib.suppress(ConnectionError):
            assert await wires.reader.read() == b""
        wires.close()
        assert (await box.rows.written()).reason == "not_tls"
    assert arrived == b""


async def test_rule_33_a_hello_in_pieces_of_one_byte_is_the_same(tmp_path):
    async with (
        Upstream(default=answers.body(b"reached"), tls=upstream_tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), rules=TUNNEL) as box,
    ):
        wires = await connect(box, "api.test:443")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = client_context(ca().pem).wrap_bio(incoming, outgoing, server_hostname="api.test")
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    await wires.send(bytes([byte]))
                incoming.write(await wires.reader.read(1 << 16))
        assert session.selected_alpn_protocol() == "http/1.1"
        wires.close()


async def test_rule_34_the_name_inside_is_the_name_outside(tmp_path):
    async with (
        Upstream(default=answers.body(b"reached"), tls=upstream_tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "other.test": upstream}, ca()) as box,
    ):
        wires = await connect(box, "api.test:443")
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await tls(wires, box.ca_pem, "other.test")
        wires.close()
        assert (await box.rows.written()).reason == "sni_differs"

        wires = await tunnel(box, "api.test")
        await wires.send(inner("/", "other.test"))
        reply = await read_reply(wires)
        assert (reply.status, reply.reason) == (403, "host_differs")
        wires.close()
        assert box.names.dialed == []

        # No name at all: certificate and host are CONNECT's.
        wires = await tls(await connect(box, "api.test:443"), box.ca_pem, None)
        await wires.send(inner("/", "api.test"))
        assert (await read_reply(wires)).body == b"reached"
        wires.close()


async def test_rule_34_plain_http_inside_connect_is_decided_as_http(tmp_path):
    rules = [{"host": "api.test", "ports": [80], "path_prefixes": ["/open"]}]
    async with (
        Upstream(default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), rules=rules) as box,
    ):
        wires = await connect(box, "api.test:80")
        await wires.send(inner("/open", "api.test"))
        assert (await read_reply(wires)).json()["target"] == "/open"
        await wires.send(inner("/closed", "api.test"))
        reply = await read_reply(wires)
        assert (reply.status, reply.reason) == (403, "path_not_allowed")
        wires.close()
        assert [(row.way, row.scheme, row.port, row.path) for row in box.rows.rows] == [
            ("intercept", "http", 80, "/open"),
            ("intercept", "http", 80, "/closed"),
        ]


@pytest.mark.parametrize("offered", [("h2",), ("h2", "grpc-exp"), ("spdy/1",)])
async def test_rule_37_a_client_of_http_2_alone_is_told_so(tmp_path, offered):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        wires = await connect(box, "api.test:443")
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            await tls(wires, box.ca_pem, "api.test", alpn=offered)
        wires.close()
        row = await box.rows.written()
        assert (row.reason, row.decision) == ("http2_only", "denied")


@pytest.mark.parametrize("offered", [("h2", "http/1.1"), ("http/1.1",), ()])
async def test_rule_37_others_speak_http_1_1(tmp_path, offered):
    async with (
        Upstream(default=answers.body(b"reached"), tls=upstream_tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await tls(await connect(box, "api.test:443"), box.ca_pem, "api.test", alpn=offered)
        chosen = wires.writer.get_extra_info("ssl_object").selected_alpn_protocol()
        assert chosen == ("http/1.1" if offered else None)
        await wires.send(inner("/", "api.test"))
        assert (await read_reply(wires)).body == b"reached"
        wires.close()


async def test_rule_37_http_2_without_asking_is_refused_inside_tls(tmp_path):
    async with sandbox(tmp_path, {}, ca(), rules=["api.test"]) as box:
        wires = await tunnel(box, "api.test")
        await wires.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        reply = await read_reply(wires)
        assert (reply.status, reply.reason) == (403, "http2_refused")
        wires.close()


@pytest.mark.parametrize("wrong", ["expired", "self-signed", "other name"])
async def test_rule_35_a_bad_certificate_upstream_is_a_clear_502(tmp_path, wrong):
    context = {
        "expired": lambda: ca().expired_context("api.test"),
        "self-signed": lambda: ca().self_signed_context("api.test"),
        "other name": lambda: ca().server_context("other.test"),
    }[wrong]()
    async with (
        Upstream(default=answers.body(b"reached"), tls=context) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        reply = await ask(box, request("https://api.test/"))
        assert (reply.status, reply.reason) == (502, "tls_failed")
        assert upstream.seen == []
        assert (await box.rows.written()).decision == "failed"


async def test_rule_35_a_host_that_never_says_hello_is_a_clear_504(tmp_path):
    async with (
        Upstream() as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=Limits(connect_timeout_ms=50)) as box,
    ):
        reply = await ask(box, request("https://api.test/"))
        assert (reply.status, reply.reason) == (504, "connect_timeout")
