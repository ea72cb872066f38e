"""Output that passes through a real sidecar."""

import asyncio
import os
import signal

import pytest

from clawbox.containers.output.cleaning import CleanedStream
from clawbox.containers.output.findings import KNOWN_SECRET, FindingAction
from clawbox.errors import ClawboxError, Reason
from tests.egress_world.supervised import SECRET, World, processes, world

__all__ = ["world"]


async def test_known_secrets_and_shapes_are_replaced_and_told(world: World):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        out, err = CleanedStream(door, shapes=True), CleanedStream(door, shapes=True)
        text = f"a {SECRET} ghp_{'a1B2' * 9}\n".encode()
        halves = await out.feed(text[:9]), await err.feed(b"[INST] "), await out.feed(text[9:])
        assert halves == (b"", b"", b"a [REDACTED] [REDACTED]\n")
        assert out.findings == {
            (KNOWN_SECRET, FindingAction.REDACTED): 1,
            ("github_personal_token", FindingAction.REDACTED): 1,
        }
        assert await err.end() == b"[INST] "
        assert err.findings == {("inst_open", FindingAction.MARKED): 1}


async def test_known_secrets_are_replaced_where_shapes_are_not_looked_for(world: World):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        stream = CleanedStream(door, shapes=False)
        text = f"{SECRET} ghp_{'a1B2' * 9}\n".encode()
        assert await stream.feed(text) == text.replace(SECRET.encode(), b"[REDACTED]")


async def test_rule_67_a_quiet_terminal_gets_everything_and_its_stream_goes_on(world: World):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        stream = CleanedStream(door, shapes=True)
        assert await stream.feed(b"$ ") == b""
        assert await stream.flush() == b"$ "
        assert await stream.feed(f"echo {SECRET}\r\n".encode()) == b"echo [REDACTED]\r\n"
        assert await stream.end() == b""


async def test_a_stream_is_over_when_its_sidecar_is_and_another_one_begins(world: World):
    world.keep("api")
    async with world.supervisor.sandbox(world.grant(credentials=("api",))) as door:
        stream = CleanedStream(door, shapes=True)
        assert await stream.feed(SECRET[:9].encode()) == b""
        os.kill(processes("clawbox-egress")[0], signal.SIGKILL)
        async with asyncio.timeout(20):
            await world.until(lambda: not door.serving)
            for _ in range(2):
                with pytest.raises(ClawboxError) as caught:
                    await stream.feed(SECRET[9:].encode())
                assert caught.value.reason is Reason.REDACTION_UNAVAILABLE
        assert await CleanedStream(door, shapes=True).feed(f"{SECRET}\n".encode()) == b"[REDACTED]\n"
