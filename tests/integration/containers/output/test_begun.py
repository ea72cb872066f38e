"""When a container's output can be followed to its end."""

import asyncio
import contextlib

from clawbox.containers.output.capture import OutputCapture
from clawbox.containers.output.reading import Oldest
from tests.integration.containers.output.conftest import read_all, text


async def test_a_reader_waits_until_a_container_was_taken_over(backend, program, tmp_path):
    one = await program("echo first; exec sleep 1000")
    folder = tmp_path / "output"
    async with OutputCapture(backend, folder, shapes=True) as capture:
        await one.start(capture)
    async with OutputCapture(backend, folder, shapes=True) as capture:
        # Somebody looks at what is kept, which must not make it look complete afterwards.
        await read_all(capture, one.id, follow=False)
        begun = asyncio.create_task(capture.begun(one.id))
        await asyncio.sleep(0)
        assert not begun.done()
        await capture.began(one.known, one.quarters, adopted=True)
        await begun
        reading = asyncio.create_task(read_all(capture, one.id))
        async with (
            asyncio.timeout(30),
            contextlib.aclosing(capture.read(one.id, (), Oldest(), follow=True)) as events,
        ):
            assert text([await anext(events)]) == b"first\n"
        await backend.signal(one.quarters.engine_id, "SIGKILL")
        await one.finish(capture)
        assert text(await reading) == b"first\n"


async def test_nobody_waits_for_ever(backend, program, tmp_path):
    one = await program("echo first")
    async with OutputCapture(backend, tmp_path / "output", shapes=True) as capture:
        begun = asyncio.create_task(capture.begun(one.id))
        await asyncio.sleep(0)
        assert not begun.done()
    async with asyncio.timeout(10):
        await begun
