"""Clients that say that they send no more, and wait for their answer; and clients that have left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from tests.egress_world import Upstream, answers
from tests.egress_world.client import ca, get, inner, read_head, read_reply, tunnel
from tests.egress_world.sandbox import request, sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.egress_world.sandbox import Sandbox, Wires


class Late:
    """An upstream's answer that comes when the test says so."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.due = asyncio.Event()

    async def handler(self, exchange) -> None:
        self.asked.set()
        gone = asyncio.create_task(exchange.client_gone())
        due = asyncio.create_task(self.due.wait())
        await asyncio.wait([gone, due], return_when=asyncio.FIRST_COMPLETED)
        if self.due.is_set():
            await exchange.answer(b"late")
        exchange.keep_alive = False
        for task in (gone, due):
            task.cancel()
        await asyncio.wait([gone, due])


@contextlib.asynccontextmanager
async def late(tmp_path) -> AsyncIterator[tuple[Sandbox, Late]]:
    answer = Late()
    routes = {"/late": answer.handler, "/now": answers.body(b"now")}
    tls = ca().server_context("api.test")
    async with (
        Upstream(routes, tls=tls) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        yield box, answer


async def over_tcp(box: Sandbox) -> Wires:
    wires = await box.connect()
    await wires.send(request("https://api.test/late"))
    return wires


async def over_tcp_with_http_1_0(box: Sandbox) -> Wires:
    wires = await box.connect()
    await wires.send(request("https://api.test/late").replace(b"HTTP/1.1", b"HTTP/1.0"))
    return wires


async def over_a_unix_socket(box: Sandbox) -> Wires:
    wires = await box.connect_unix()
    await wires.send(request("https://api.test/late"))
    return wires


async def with_a_body(box: Sandbox) -> Wires:
    wires = await box.connect()
    await wires.send(request("https://api.test/late", "Content-Length: 4", method="POST") + b"body")
    return wires


async def inside_a_tunnel(box: Sandbox) -> Wires:
    wires = await tunnel(box, "api.test")
    await wires.send(inner("/late", "api.test"))
    return wires


def end_half(wires: Wires) -> None:
    with socket.socket(fileno=os.dup(wires.writer.get_extra_info("socket").fileno())) as raw:
        raw.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    ("begin", "told"),
    [
        (over_tcp, [100]),
        (over_a_unix_socket, []),
        (with_a_body, [100]),
    ],
)
async def test_who_ends_its_half_gets_its_answer(
    tmp_path, begin: Callable[[Sandbox], Awaitable[Wires]], told: list[int]
):
    async with late(tmp_path) as (box, answer):
        wires = await begin(box)
        await answer.asked.wait()
        end_half(wires)
        assert [(await read_head(wires)).status for _ in told] == told
        # By then the sidecar has seen that it ended, where it says nothing of it, too.
        assert (await get(box, "https://api.test/now")).body == b"now"
        answer.due.set()
        reply = await read_reply(wires)
        assert (reply.status, reply.body, await wires.reader.read()) == (200, b"late", b"")
        wires.close()
        rows = {row.path: row for row in box.rows.rows if row.path}
        assert (rows["/late"].decision, rows["/late"].reason) == ("allowed", "")


@pytest.mark.parametrize(
    "begin", [over_tcp, over_tcp_with_http_1_0, over_a_unix_socket, with_a_body, inside_a_tunnel]
)
async def test_who_leaves_before_the_answer_ends_the_request(tmp_path, begin):
    async with late(tmp_path) as (box, answer):
        wires = await begin(box)
        await answer.asked.wait()
        before = len(box.rows.rows)
        wires.close()
        assert (await box.rows.written(before + 1)).reason == "client_gone"


async def test_who_ends_its_half_behind_a_body_at_once_gets_its_answer(tmp_path):
    """While the upstream is dialed: the body has come by then, and nobody has read it."""
    async with late(tmp_path) as (box, answer):
        box.names.gate = asyncio.Event()
        answer.due.set()
        wires = await with_a_body(box)
        await box.names.asked()
        end_half(wires)
        assert (await read_head(wires)).status == 100
        box.names.gate.set()
        reply = await read_reply(wires)
        assert (reply.status, reply.body) == (200, b"late")
        wires.close()


async def test_who_ends_its_half_and_then_leaves_a_unix_socket_is_noticed(tmp_path):
    async with late(tmp_path) as (box, answer):
        wires = await over_a_unix_socket(box)
        await answer.asked.wait()
        end_half(wires)
        assert (await get(box, "https://api.test/now")).body == b"now"
        assert [row.path for row in box.rows.rows] == ["/now"]
        wires.close()
        assert (await box.rows.written(2)).reason == "client_gone"
