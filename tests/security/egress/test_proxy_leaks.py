"""Properties 45 to 54 through the running proxy: secrets pass neither way, all else whole."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import random
import urllib.parse
import zlib
from typing import TYPE_CHECKING

import brotli
import pytest

from clawbox.egress.credentials import Credential, Secret
from tests.egress_world import Upstream, answers
from tests.egress_world.client import (
    BrokenOffError,
    ask,
    ca,
    call,
    get,
    inner,
    read_chunk,
    read_head,
    read_reply,
    tunnel,
)
from tests.egress_world.sandbox import SECRET, request, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = Credential("key", Secret(SECRET), ("api.test",))
RAW = SECRET.encode()
SPELLINGS = {
    "raw": SECRET,
    "upper case": SECRET.upper(),
    "percent": "".join(f"%{byte:02x}" for byte in RAW),
    "double percent": "".join(f"%25{byte:02X}" for byte in RAW),
    "hex": RAW.hex(),
    "base64": base64.b64encode(RAW).decode(),
    "base64, one later": base64.b64encode(b"x" + RAW).decode(),
    "base64, two later": base64.b64encode(b"xy" + RAW).decode(),
    "base64url": base64.urlsafe_b64encode(RAW + b"?>").decode(),
    "json": "".join(f"\\u{byte:04x}" for byte in RAW),
    "basic": "Basic " + base64.b64encode(b"me:" + RAW).decode(),
}
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
}
URL = "http://other.test/x"


def tls():
    return ca().server_context("api.test", "other.test")


def chunks(data, size=1):
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
async def test_rule_45_a_secret_leaves_in_no_place_and_spelling(tmp_path, text):
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(tmp_path, {"other.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        quoted = urllib.parse.quote(text, safe="%")
        token = text if " " not in text and "\\" not in text and "%" not in text else None
        asked = [
            request(f"http://other.test/{quoted}"),
            request(f"http://other.test/?q={quoted}"),
            request(URL, f"X-Anything: {text}"),
            request(URL, f"Cookie: a={text}; b=c"),
            request(URL, f"Content-Length: {len(text)}", method="POST") + text.encode(),
            request(URL, "Transfer-Encoding: chunked", method="PUT") + chunks(text.encode()),
            request(URL, "Transfer-Encoding: chunked", method="PUT")
            + b"0\r\nX-Later: "
            + text.encode()
            + b"\r\n\r\n",
        ]
        if token is not None and "=" not in token and "/" not in token:
            asked.append(request(URL, f"{token}: x"))
        for data in asked:
            # Each is refused for itself: the third suspends credentials, which this host needs none of.
            reply = await ask(box, data)
            assert (reply.status, reply.reason) == (403, "leak_detected"), data
            assert SECRET not in reply.body.decode()
            assert "key in the" in reply.json()["error"]
        bodies = b"".join(seen.raw_head + seen.body for seen in upstream.seen)
        assert text.encode() not in bodies
        assert not [seen for seen in upstream.seen if seen.complete]
        for asked_call in (
            {"url": URL, "method": "POST", "body": text},
            {"url": URL, "method": "GET", "headers": {"X": text}},
        ):
            reply = await call(box, asked_call)
            assert (reply.status, reply.json()["error"]) == (
                403,
                "credential leak detected in outbound request",
            )


async def test_rule_45_not_as_a_method_either(tmp_path):
    key = Credential("key", Secret(SECRET[:30]), ("api.test",))
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(tmp_path, {"other.test": upstream}, ca(), credentials=[key]) as box,
    ):
        assert (await get(box, URL, method=SECRET[:30])).reason == "leak_detected"
        assert (await call(box, {"url": URL, "method": SECRET[:30]})).status == 403
        assert upstream.seen == []


async def test_rule_45_no_secret_is_asked_of_dns(tmp_path):
    rules = ["*.wide.test", {"host": "*.unread.test", "tls_mode": "tunnel"}]
    async with sandbox(tmp_path, {}, ca(), rules=rules, credentials=[KEY]) as box:
        for data in (
            request(f"http://{SECRET}.wide.test/"),
            request(f"{SECRET}.unread.test:443", method="CONNECT"),
        ):
            assert (await ask(box, data)).reason == "leak_detected"
        assert box.names.dialed == []


async def test_rule_45_shapes_are_treated_as_the_rule_says(tmp_path):
    rules = [
        {"host": "block.test", "on_shape": "block"},
        {"host": "redact.test", "on_shape": "redact"},
        {"host": "report.test", "on_shape": "report"},
    ]
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA" + "x" * 40 + "\n-----END RSA PRIVATE KEY-----\n"
    async with Upstream(default=answers.echo) as upstream:
        names = {rule["host"]: upstream for rule in rules}
        async with sandbox(tmp_path, names, ca(), rules=rules) as box:
            replies = [await get(box, f"http://{host}/", body=key.encode()) for host in names]
            assert replies[0].reason == "leak_detected"
            assert "MIIE" not in replies[1].json()["body"]
            assert replies[1].json()["length"] == len(key)
            assert len(box.rows.rows) == 3
            assert [bool(row.found) for row in box.rows.rows] == [True] * 3


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
async def test_rule_46_chunks_of_one_byte_hide_nothing_that_comes_back(tmp_path, text):
    body = f"your key is {text}, is it not?\n".encode()
    async with (
        Upstream({"/x": answers.chunked([bytes([byte]) for byte in body])}, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        reply = await get(box, "https://api.test/x")
        assert text.lower() not in reply.body.decode().lower()
        assert b"[REDACTED]" in reply.body
        assert reply.body.startswith(b"your key is ")
        assert reply.body.endswith(b", is it not?\n")


@pytest.mark.parametrize("coding", ENCODERS)
async def test_rule_47_compressed_bodies_are_looked_into_both_ways(tmp_path, coding):
    encode = ENCODERS[coding]
    clean, bad = encode(b"nothing here\n" * 5000), encode(b"x\n" * 5000 + RAW + b"\n" + b"y\n" * 5000)
    lines = [("Content-Encoding", coding)]
    routes = {"/clean": answers.body(clean, lines), "/bad": answers.body(bad, lines), "/up": answers.echo}
    async with (
        Upstream(routes) as upstream,
        sandbox(tmp_path, {"other.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        reply = await get(box, "http://other.test/clean", f"Accept-Encoding: {coding}")
        assert (reply.body, reply.header("Content-Encoding")) == (clean, coding)
        try:
            reply = await get(box, "http://other.test/bad")
        except BrokenOffError:
            pass
        else:
            assert (reply.status, reply.reason) == (502, "upstream_leak_in_answer")
        up = "http://other.test/up"
        assert (await get(box, up, f"Content-Encoding: {coding}", body=clean)).json()["length"] == len(clean)
        assert (await get(box, up, f"Content-Encoding: {coding}", body=bad)).reason == "leak_detected"


async def test_rule_47_what_a_host_with_a_credential_encodes_though_unasked_is_searched_or_refused(tmp_path):
    routes = {
        "/gzip": answers.gzipped(b"clean\n"),
        "/leak": answers.gzipped(b"x\n" + RAW + b"\n"),
        "/zstd": answers.body(b"\x28\xb5\x2f\xfd", [("Content-Encoding", "zstd")]),
        "/bomb": answers.gzipped(b"\0" * (8 << 20)),
    }
    async with (
        Upstream(routes, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        reply = await get(box, "https://api.test/gzip", "Accept-Encoding: gzip")
        assert gzip.decompress(reply.body) == b"clean\n"
        assert upstream.seen[0].values("Accept-Encoding") == ["identity"]
        for path, reason in (
            ("leak", "leak_in_answer"),
            ("zstd", "content_coding_refused"),
            ("bomb", "content_coding_refused"),
        ):
            reply = await get(box, f"https://api.test/{path}")
            assert (reply.status, reply.reason) == (502, f"upstream_{reason}")


def named_gzip(data):
    """With a secret where a file's name stands (RFC 1952 2.3.1)."""
    whole = gzip.compress(data)
    return whole[:3] + b"\x08" + whole[4:10] + RAW + b"\0" + whole[10:]


def metadata_brotli(_):
    """An empty stream, with a secret in a block that decoders skip (RFC 7932 9.2)."""
    return ((3 << 2) | (1 << 5) | (len(RAW) - 1) << 7).to_bytes(2, "little") + RAW + b"\x03"


@pytest.mark.parametrize(("coding", "encode"), [("gzip", named_gzip), ("br", metadata_brotli)])
async def test_rule_47_nor_does_a_secret_pass_in_what_decodes_to_nothing(tmp_path, coding, encode):
    data, line = encode(b"clean\n" * 100), ("Content-Encoding", coding)
    one_by_one = answers.chunked([bytes([byte]) for byte in data], [line])
    async with (
        Upstream({"/bad": one_by_one}, tls=tls(), default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream, "other.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        wires = await tunnel(box, "api.test")
        await wires.send(inner("/bad", "api.test"))
        seen = b""
        with contextlib.suppress(OSError, BrokenOffError):
            while piece := await wires.reader.read(4096):
                seen += piece
        wires.close()
        assert RAW[:8] not in seen.replace(b"\r\n1\r\n", b"")
        assert (await box.rows.written()).reason == "upstream_leak_in_answer"
        up = await get(box, "https://other.test/up", f"Content-Encoding: {coding}", body=data)
        assert up.reason == "leak_detected"
        assert RAW not in upstream.seen[-1].body


async def test_rule_48_nothing_unsearched_goes_on_when_the_upstream_breaks_off(tmp_path):
    """The first half of a secret is all that came: it is held back, and then dropped."""
    data = b"a line\n" + RAW[:20]
    async with (
        Upstream({"/x": answers.truncated(data, missing=50)}, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        wires = await tunnel(box, "api.test")
        await wires.send(inner("/x", "api.test"))
        await read_head(wires)
        assert await wires.reader.readline() == b"a line\n"
        with contextlib.suppress(OSError):
            assert await wires.reader.read() == b""
        wires.close()


async def test_rule_49_what_a_host_reflects_comes_back_nowhere(tmp_path):
    async def error(exchange):
        value = exchange.request.header("Authorization") or ""
        await exchange.answer(
            json.dumps({"error": value}).encode(),
            [
                ("Content-Type", "application/json"),
                ("WWW-Authenticate", value),
                ("Location", f"/?t={value[7:]}"),
                ("ETag", '"x"'),
            ],
            401,
        )

    async with (
        Upstream({"/x": answers.reflects("Authorization"), "/error": error}, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        reply = await get(box, "https://api.test/x")
        assert SECRET not in str(reply)
        assert reply.body == b"you said Bearer [REDACTED], did you not?"
        assert reply.header("X-Reflected") == "Bearer [REDACTED]"
        assert reply.header("Set-Cookie") == "said=Bearer [REDACTED]"
        assert reply.trailers == [("X-Reflected-Later", "Bearer [REDACTED]")]

        reply = await get(box, "https://api.test/error")
        assert reply.status == 401
        assert SECRET not in str(reply)
        assert reply.json() == {"error": "Bearer [REDACTED]"}
        # They spoke of other bytes.
        assert reply.header("ETag") is None
        answer = await call(box, {"url": "https://api.test/error", "method": "GET", "binary": True})
        assert SECRET not in answer.body.decode()
        assert RAW not in base64.b64decode(answer.json()["body_base64"])
        places = {found.place.value for row in box.rows.rows for found in row.found}
        assert places == {"body", "header_value", "trailer"}


@pytest.mark.parametrize("credentialed", [True, False])
async def test_rule_51_websocket_is_refused_with_a_clear_reason_and_never_forwarded(tmp_path, credentialed):
    host = "api.test" if credentialed else "other.test"
    lines = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"]
    async with (
        Upstream(
            default=answers.raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\nblind"), tls=tls()
        ) as upstream,
        sandbox(tmp_path, {host: upstream}, ca(), credentials=[KEY]) as box,
    ):
        wires = await tunnel(box, host)
        await wires.send(inner("/", host, *lines))
        reply = await read_reply(wires)
        assert (reply.status, reply.reason) == (403, "websocket_refused")
        assert "tunnel rule" in reply.json()["error"]
        wires.close()
        assert upstream.seen == []
        # A host that changes the protocol though nobody asked gets nowhere.
        reply = await get(box, f"https://{host}/")
        assert (reply.status, reply.reason) == (502, "upstream_upgrade_refused")
        assert b"blind" not in reply.body


@pytest.mark.parametrize("way", ["plain", "intercept"])
async def test_rule_52_events_come_as_they_are_sent(tmp_path, way):
    events = answers.Events()
    async with (
        Upstream({"/events": events.answer}, tls=tls() if way == "intercept" else None) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        if way == "intercept":
            wires = await tunnel(box, "api.test")
            await wires.send(inner("/events", "api.test"))
        else:
            wires = await box.connect()
            await wires.send(request("http://api.test/events"))
        # The head comes before anything was said.
        assert (await read_head(wires)).status == 200
        for number in range(20):
            events.release(f"event {number}")
            assert await read_chunk(wires) == f"data: event {number}\n\n".encode()
        events.release(f"it is {SECRET}")
        assert await read_chunk(wires) == b"data: it is [REDACTED]\n\n"
        events.end()
        assert await read_chunk(wires) == b""
        wires.close()


async def test_rule_52_a_client_that_leaves_a_stream_frees_the_upstream(tmp_path):
    events = answers.Events()
    async with (
        Upstream({"/events": events.answer}) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        wires = await box.connect()
        await wires.send(request("http://api.test/events"))
        await read_head(wires)
        wires.close()
        await events.gone.wait()
        await upstream.idle()


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 70_000, 2_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_rule_54_bodies_are_byte_exact_both_ways(tmp_path, size, framing):
    data = random.Random(size).randbytes(size)
    pieces = [data[at : at + 30_011] for at in range(0, size, 30_011)]
    handler = {
        "length": answers.body(data, content_type="application/octet-stream"),
        "chunked": answers.chunked(pieces),
        "close": answers.until_close(data),
    }[framing]
    async with (
        Upstream({"/down": handler, "/up": answers.echo}, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        assert (await get(box, "https://api.test/down")).body == data
        head = ["Transfer-Encoding: chunked"] if framing == "chunked" else [f"Content-Length: {size}"]
        body = chunks(data, 30_011) if framing == "chunked" else data
        reply = await ask(box, request("https://api.test/up", *head, method="PUT") + body)
        assert reply.json()["length"] == size
        assert upstream.seen[-1].body == data


async def test_rule_54_a_length_that_was_promised_is_kept_whatever_is_replaced(tmp_path):
    async def handler(exchange):
        data = b"x" * 5000 + b"\n" + RAW + b"\n"
        await exchange.head(200, [("Content-Type", "text/plain"), ("Content-Length", str(len(data)))])
        await exchange.send(data[:5000])
        await exchange.send(data[5000:])

    async with (
        Upstream({"/x": handler}, tls=tls()) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        wires = await tunnel(box, "api.test")
        for _ in range(2):
            await wires.send(inner("/x", "api.test"))
            reply = await read_reply(wires)
            assert reply.body.startswith(b"x" * 5000 + b"\n[REDACTED]")
            assert RAW not in reply.body
        wires.close()


@pytest.mark.parametrize("way", ["absolute", "call"])
async def test_rule_45_a_body_that_came_whole_is_searched_before_anybody_hears_of_it(tmp_path, way):
    async with (
        Upstream(default=answers.echo) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), credentials=[KEY]) as box,
    ):
        body = f"it is {SECRET}"
        if way == "call":
            await call(box, {"url": "http://api.test/", "method": "POST", "body": body})
        else:
            head = request("http://api.test/", f"Content-Length: {len(body)}", method="POST")
            assert (await ask(box, head + body.encode())).reason == "leak_detected"
        row = await box.rows.written()
        assert (row.way, row.decision, row.reason) == (way, "denied", "leak_detected")
        assert box.names.dialed == []
