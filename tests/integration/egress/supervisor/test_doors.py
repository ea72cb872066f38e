"""A sandbox's way out from its opening to its end, through real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from clawbox.egress.keeper.files import read_store
from clawbox.egress.messages import Grant
from clawbox.errors import ClawboxError, Reason
from clawbox.network_rules import NetworkRule
from tests.egress_world import answers
from tests.egress_world.supervised import (
    SECRET,
    TOKEN,
    digest,
    get,
    get_at,
    is_self,
    processes,
    reply,
    request,
    running,
    suspend,
)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_request_goes_through_and_is_written_down(world):
    async with world.supervisor.sandbox(world.grant()) as door:
        answer = await get(door, world.url + "/x?key=value", call="call-1")
    assert (answer.status, answer.body) == (200, b"hello")
    (row,) = world.rows()
    assert (row["principal"], row["request_id"], row["decision"]) == ("ann", "call-1", "allowed")
    assert (row["sandbox"], row["host"], row["status"]) == ("sandbox-1", "127.0.0.1", 200)
    assert row["address"].startswith("127.0.0.1")
    assert "value" not in row["path"]
    assert (
        'clawbox_egress_requests_total{decision="allowed",reason=""} 1.0'
        in generate_latest(world.metrics.registry).decode()
    )


async def test_who_gave_up_waiting_for_the_first_start_starts_nothing_twice(world, monkeypatch):
    reading = asyncio.Event()

    def slowly(path):
        loop.call_soon_threadsafe(reading.set)
        return read_store(path)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr("clawbox.egress.keeper.control.read_store", slowly)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(world.supervisor.sandbox(world.grant()).__aenter__())
        await reading.wait()
        first.cancel()
    async with world.supervisor.sandbox(world.grant()) as door:
        assert (await get(door, world.url)).status == 200
        assert len(processes("clawbox-fork")) == 1


async def test_a_request_that_is_under_way_when_a_sandbox_ends_has_its_row(world):
    world.upstream.route("/never", answers.never)
    async with world.supervisor.sandbox(world.grant()) as door:
        asking = asyncio.create_task(get(door, world.url + "/never"))
        await world.upstream.arrived()

    with contextlib.suppress(ConnectionError):
        await asking
    (row,) = world.rows()
    assert (row["path"], row["decision"], row["reason"]) == ("/never", "failed", "ended")
    assert world.rows("egress_gap") == []


async def test_a_sidecar_that_does_not_end_is_killed_and_leaves_a_gap(world, monkeypatch):
    monkeypatch.setattr("clawbox.egress.sidecar_supervisor.FINISH_SECONDS", 0.1)
    async with world.supervisor.sandbox(world.grant()):
        (pid,) = processes("clawbox-egress")
        await suspend(pid)

    assert processes("clawbox-egress") == []
    (gap,) = world.rows("egress_gap")
    assert gap["reason"] == "sidecar did not end when it was told to"


async def test_nothing_runs_before_it_is_needed(world):
    assert processes("clawbox-egress") == processes("clawbox-keeper") == processes("clawbox-dialer") == []
    assert not world.supervisor.status().started
    async with world.supervisor.sandbox(world.grant()):
        await world.until(lambda: world.supervisor.status().dialer)
        status = world.supervisor.status()
        assert (status.keeper, status.dialer, status.sidecars, status.down) == (True, True, 1, 0)
        assert len(processes("clawbox-egress")) == 1


async def test_nothing_is_left(tmp_path):
    await asyncio.sleep(0)
    before = descriptors()
    async with running(tmp_path / "home") as world:
        async with world.supervisor.sandbox(world.grant()) as door:
            path = tmp_path / "run" / "s" / "proxy.sock"
            door.listen_unix(path, is_self)
            await get(door, world.url)
        assert processes("clawbox-egress") == []
        assert not path.exists()
        uids = world.uids
    assert processes("clawbox-keeper") == processes("clawbox-dialer") == []
    assert uids is None or not uids._taken
    async with asyncio.timeout(20):
        while descriptors() > before:  # noqa: ASYNC110 - transports, and who watches files, end by themselves
            await asyncio.sleep(0.005)


async def test_the_unix_socket_asks_for_the_token(world, tmp_path):
    path = tmp_path / "run" / "s" / "proxy.sock"
    async with world.supervisor.sandbox(world.grant()) as door:
        door.listen_unix(path, is_self)
        door.admit(digest())
        assert (await get_at(path, world.url)).status == 200
        refused = await get_at(path, world.url, token=None)
        assert (refused.status, refused.reason) == (407, "token_missing")
        refused = await get_at(path, world.url, token="another")
        assert (refused.status, refused.reason) == (407, "token_invalid")
        door.revoke(digest())
        assert (await get_at(path, world.url)).status == 407


async def test_tcp_listeners_that_were_handed_over(world):
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_server(("127.0.0.1", 0)) as inside:
        async with world.supervisor.sandbox(world.grant()) as door:
            door.listen_tcp(plain.dup())
            door.listen_namespace(inside.dup())
            for listener, expected in ((plain, 407), (inside, 200)):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                writer.write(request(world.url, None))
                assert (await reply(reader)).status == expected
                writer.close()


async def test_a_credential_is_attached_and_follows_the_file(world):
    seen = world.upstream.seen
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        await get(door, world.url)
        assert seen[-1].header("Authorization") == f"Bearer {SECRET}"
        world.keep("api", "sk-test-rotated-0123456789abc")
        await world.until(lambda: len(world.rows("hand_out")) == 2)
        await get(door, world.url)
        assert seen[-1].header("Authorization") == "Bearer sk-test-rotated-0123456789abc"
        # The value that was is still a secret of this sandbox (76).
        assert await door.clean(1, f"old {SECRET}!\n".encode(), end=True, shapes=False) == (
            b"old [REDACTED]!\n"
        )
    rows = world.rows("hand_out")
    assert [row["credentials"] for row in rows] == [["api"], ["api"]]
    assert SECRET not in (world.home / "audit" / "audit.jsonl").read_text()


async def test_output_is_cleaned_in_pieces_and_held_back(world):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        first = await door.clean(7, b"line\nand " + SECRET[:10].encode(), end=False, shapes=False)
        other = await door.clean(8, b"another stream", end=True, shapes=False)
        last = await door.clean(7, SECRET[10:].encode() + b" rest", end=True, shapes=False)
        assert (first, other, last) == (b"line\n", b"another stream", b"and [REDACTED] rest")
        large = b"x" * 1_000_000 + b"\n" + SECRET.encode()
        cleaned = await door.clean(9, large, end=True, shapes=False)
        assert cleaned == b"x" * 1_000_000 + b"\n[REDACTED]"


async def test_output_that_a_sidecar_died_over_is_cleaned_by_the_next(world):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        (pid,) = processes("clawbox-egress")
        await suspend(pid)  # it is asked, as one that is dying may be, and never answers
        cleaning = asyncio.create_task(door.clean(1, b"it is " + SECRET.encode(), end=True, shapes=False))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        assert await cleaning == b"it is [REDACTED]"
        assert processes("clawbox-egress") != [pid]


async def test_a_retired_sandbox_has_no_way_out_and_its_output_is_still_cleaned(world, tmp_path):
    path = tmp_path / "run" / "s" / "proxy.sock"
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        door.listen_unix(path, is_self)
        door.admit(digest())
        door.retire()
        with pytest.raises(OSError, match=r"No such file|refused"):
            await get_at(path, world.url)
        assert await door.clean(1, SECRET.encode(), end=True, shapes=False) == b"[REDACTED]"
        with pytest.raises(ClawboxError) as refused:
            door.connect(digest(), "late")
        assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE


async def test_revoking_ends_what_is_under_way(world):
    world.upstream.route("/never", answers.never)
    async with world.supervisor.sandbox(world.grant()) as door:
        asking = asyncio.create_task(get(door, world.url + "/never"))
        await world.upstream.arrived()
        door.revoke(digest())
        with contextlib.suppress(ConnectionError):  # a break or a refusal: the row is what counts
            await asking
        await world.until(world.rows)
        (row,) = world.rows()
        assert (row["decision"], row["reason"]) == ("failed", "ended")


async def test_a_grant_without_rules_reaches_nothing(world):
    async with world.supervisor.sandbox(Grant("none", "ann")) as door:
        answer = await get(door, world.url)
    assert (answer.status, answer.reason) == (403, "network_not_granted")


async def test_hosts_of_a_rule_are_refused_by_their_address(world):
    rule = NetworkRule.parse({"host": "10.1.2.3", "ports": [80]})
    async with world.supervisor.sandbox(Grant("private", "ann", (rule,))) as door:
        answer = await get(door, "http://10.1.2.3/")
    assert (answer.status, answer.reason) == (403, "address_refused")


async def test_rows_cannot_be_written_so_nothing_is_sent(world):
    async with world.supervisor.sandbox(world.grant()) as door:
        assert (await get(door, world.url)).status == 200
        audit = world.home / "audit"
        audit.rename(world.home / "elsewhere")
        asked = len(world.upstream.seen)

        async def refused():
            answer = await get(door, world.url)
            return answer.status == 502 and answer.reason == "audit_unavailable"

        async with asyncio.timeout(20):
            while not await refused():
                asked = len(world.upstream.seen)
        assert len(world.upstream.seen) == asked
        (world.home / "elsewhere").rename(audit)
        async with asyncio.timeout(20):
            while (await get(door, world.url)).status != 200:
                pass


@contextlib.asynccontextmanager
async def tunnel(door, port):
    """A CONNECT through the sidecar, and TLS in it with whoever answers as 127.0.0.1."""
    context = ssl.create_default_context(cadata=door.ca_pem)
    reader, writer = await asyncio.open_unix_connection(sock=door.connect(digest(), "call-1"))
    try:
        head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        writer.write(f"{head}Proxy-Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await writer.start_tls(context, server_hostname="127.0.0.1")
        yield reader, writer
    finally:
        writer.close()


async def test_https_is_read_and_every_encoding_looked_into(world):
    """Whatever a sidecar needs for it was loaded before it was confined: it can open no file."""
    world.keep("api")
    port = world.secure.port
    text = f"it is {SECRET} and more\n".encode()
    for path, handler in {
        "/plain": answers.body(text),
        "/gzip": answers.gzipped(text),
        "/chunked": answers.chunked([text]),
    }.items():
        world.secure.route(path, handler)
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        for path in ("/plain", "/gzip", "/chunked"):
            async with tunnel(door, port) as (reader, writer):
                writer.write(
                    request(f"http://127.0.0.1:{port}{path}", None).replace(
                        f"http://127.0.0.1:{port}".encode(), b"", 1
                    )
                )
                answer = await reader.read()
            assert SECRET.encode() not in answer
            assert world.secure.seen[-1].header("Authorization") == f"Bearer {SECRET}"
    rows = world.rows()
    assert [row["way"] for row in rows] == ["intercept"] * 3
    assert all(row["credential"] == "api" for row in rows)
    assert all(row["found"][0]["kind"] == "known" for row in rows)


async def test_whole_requests_as_data(world):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        for target in (f"https://127.0.0.1:{world.secure.port}/x", f"{world.url}/x"):
            asked = json.dumps({"url": target, "method": "POST", "body": "something"}).encode()
            reader, writer = await asyncio.open_unix_connection(sock=door.connect(digest(), "call-1"))
            head = f"POST /proxy HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(asked)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + asked)
            answer = await reply(reader)
            writer.close()
            assert (answer.status, json.loads(answer.body)["body"]) == (200, "hello")
    assert [row["way"] for row in world.rows()] == ["call", "call"]
    assert world.secure.seen[0].body == b"something"


async def test_a_tunnel_goes_through_unread(world):
    port = world.secure.port
    rule = NetworkRule.parse({"host": "127.0.0.1", "ports": [port], "tls_mode": "tunnel"})
    async with world.supervisor.sandbox(Grant("tunnels", "ann", (rule,))) as door:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_unix_connection(sock=door.connect(digest(), "call-1"))
        head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        writer.write(f"{head}Proxy-Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await writer.start_tls(context, server_hostname="127.0.0.1")
        await world.until(lambda: door.tunnels == 1)
        writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert (await reply(reader)).body == b"hello"
        writer.close()
        await world.until(lambda: door.tunnels == 0 and world.rows())
    assert [row["way"] for row in world.rows()] == ["tunnel"]


async def test_rule_15_no_sandbox_reaches_the_sidecars_own_listener(world):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = listener.getsockname()
        rule = NetworkRule.parse({"host": place[0], "ports": [place[1]]})
        async with world.supervisor.sandbox(Grant("loops", "ann", (rule,))) as door:
            door.listen_tcp(listener.dup())
            answer = await get(door, f"http://127.0.0.1:{place[1]}/")
        assert answer.reason == "address_refused"
        assert "itself listens there" in json.loads(answer.body)["error"]
