"""Property 74, its other half: who connects to a sandbox's Unix socket is the sandbox, token or not."""

from __future__ import annotations

import asyncio
import os
import sys

from clawbox.egress.recording import DENIALS_WITH_ROWS
from tests.egress_world.supervised import digest, get_at, processes, reply, request, world

__all__ = ["world"]

_CONNECT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(sys.stdin.buffer.read())
sys.stdout.buffer.write(sock.makefile("rb").read())
"""


async def ask_from_another_process(path, sent):
    """What comes back; the process's own pid, too."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _CONNECT, path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate(sent)
    return process.pid, out


async def test_rule_74_who_is_not_the_sandbox_is_not_served_with_the_right_token(world, tmp_path):
    asked = []
    path = tmp_path / "run" / "s" / "proxy.sock"

    def holds(pid):
        asked.append(pid)
        return pid == os.getpid()

    async with world.supervisor.sandbox(world.grant()) as door:
        door.listen_unix(path, holds)
        door.admit(digest())
        sent = request(world.url)
        pid, answer = await ask_from_another_process(path, sent)
        assert (answer, asked) == (b"", [pid])
        assert world.upstream.seen == []
        assert (await get_at(path, world.url)).status == 200
        assert asked == [pid, os.getpid()]
        (killed,) = processes("clawbox-egress")
        os.kill(killed, 9)
        _, answer = await ask_from_another_process(path, sent)  # of the next sidecar
        assert answer == b""
    rows = world.rows("egress_peer")
    assert {row["decision"] for row in rows} == {"denied"}
    assert len(rows) == 2


async def test_rule_74_a_connection_is_not_read_until_it_is_known_whose_it_is(world, tmp_path):
    """Whoever connects and passes the connection on is not there any more when it is looked at."""
    path = tmp_path / "run" / "s" / "proxy.sock"
    async with world.supervisor.sandbox(world.grant()) as door:
        door.listen_unix(path, lambda _: False)
        door.admit(digest())
        for _ in range(DENIALS_WITH_ROWS + 5):
            reader, writer = await asyncio.open_unix_connection(str(path))
            assert await reader.read() == b""
            writer.close()
        assert world.upstream.seen == []
        with_token = door.connect(digest(), "")  # what control makes needs no look
        reader, writer = await asyncio.open_connection(sock=with_token)
        writer.write(request(world.url))
        assert (await reply(reader)).status == 200
        writer.close()
    assert len(world.rows("egress_peer")) == DENIALS_WITH_ROWS
    (counted,) = [row for row in world.rows("egress") if row["reason"] == "counted"]
    assert counted["reasons"] == {"stranger": 5}
