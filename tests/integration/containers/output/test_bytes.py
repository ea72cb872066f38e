"""What programs write comes as they wrote it, byte by byte."""

import pytest

from clawbox.containers.backend import Stream
from clawbox.containers.output.capture import OutputCapture
from clawbox.containers.output.reading import Oldest
from tests.integration.containers.output.conftest import read_all, text

EVERY_BYTE = 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %o $i)"; i=$((i+1)); done; echo'
LONG_LINE = "yes é | head -n 51200 | tr -d '\\n'; echo"
WRITTEN = bytes(range(256)) + b"\n" + "é".encode() * 51200 + b"\n"
SCRIPT = f"{EVERY_BYTE}; {LONG_LINE}; printf 'no end'"


async def test_every_byte_and_long_lines_are_kept(capture, program):
    one = await program(f"{SCRIPT}; {{ {SCRIPT}; }} >&2")
    await one.start(capture)
    await one.finish(capture)
    events = await read_all(capture, one.id)
    assert text(events) == WRITTEN + b"no end"
    assert text(events, Stream.STDERR) == WRITTEN + b"no end"


async def test_a_long_line_at_the_very_end_has_its_end(capture, program):
    one = await program(LONG_LINE)
    await one.start(capture)
    await one.finish(capture)
    assert text(await read_all(capture, one.id)) == "é".encode() * 51200 + b"\n"


@pytest.mark.parametrize("driver", ["local", "json-file"])
async def test_a_log_of_either_kind_is_taken_over(backend, program, tmp_path, driver):
    """As an earlier server began it, which wrote ``json-file``."""
    script = f"{LONG_LINE}; until [ $told ]; do sleep 0.02; done; {LONG_LINE}; printf 'no end'"
    one = await program(f"trap 'told=1' USR1; {script}", driver=driver)
    folder, line = tmp_path / "output", "é".encode() * 51200 + b"\n"
    async with OutputCapture(backend, folder, shapes=True) as first:
        await one.start(first)
        said = b""
        async for event in first.read(one.id, (), Oldest(), follow=True):
            said += text([event])
            if said.endswith(b"\n"):
                break
    await backend.signal(one.quarters.engine_id, "SIGUSR1")
    async with OutputCapture(backend, folder, shapes=True) as second:
        await second.began(one.known, one.quarters, adopted=True)
        await one.finish(second)
        whole = text(await read_all(second, one.id))
        assert whole.count(b"\n") == 2
        assert whole.endswith(b"\nno end")
        if driver == "local":
            assert whole == line + line + b"no end"
