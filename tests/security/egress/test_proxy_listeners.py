"""Property 74 as far as the proxy goes: what connects is bounded before its token, and hands nothing over."""

from __future__ import annotations

import asyncio
import os
import socket

from clawbox.egress.messages import Limits
from tests.egress_world import Upstream, answers
from tests.egress_world.client import ask, ca, get
from tests.egress_world.sandbox import request, sandbox


async def test_rule_74_connections_are_bounded_before_any_token(tmp_path):
    limits = Limits(max_connections=4, head_timeout_ms=400)
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca(), limits=limits) as box,
    ):
        silent = [await box.connect_unix() for _ in range(12)]
        # Each of the first has its time for a head, then the next have theirs.
        for wires in silent:
            assert await wires.reader.read() == b""
            wires.close()
        assert (await get(box, "http://api.test/")).status == 200
        assert [row.status for row in box.rows.rows] == [200]


async def test_rule_74_descriptors_beside_a_request_are_not_received(tmp_path):
    async with (
        Upstream(default=answers.body(b"ok")) as upstream,
        sandbox(tmp_path, {"api.test": upstream}, ca()) as box,
    ):
        reader, writer = os.pipe()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, box.path)
            socket.send_fds(sock, [request("http://api.test/", "Connection: close")], [writer])
            os.close(writer)
            answer = b""
            while piece := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200 ")
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""  # nobody else holds the other end
        os.close(reader)
        assert (await ask(box, request("http://api.test/"))).status == 200
