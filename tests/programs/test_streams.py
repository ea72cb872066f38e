"""What is long or slow passes as it comes, and takes no memory."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import pytest

from tests.egress_world.answers import Events
from tests.programs.large import BLOCK, SIZE, Memory, digest, download, upload
from tests.programs.world import CLIENTS, SECRET, need, node

if TYPE_CHECKING:
    import subprocess

EVENTS = 25
MIB = 1 << 20


def read_event(process: subprocess.Popen[bytes]) -> bytes:
    """What the program prints until the empty line that ends an event."""
    assert process.stdout is not None
    data, deadline = b"", time.monotonic() + 20
    while not data.endswith(b"\n\n"):
        readable, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        assert readable, f"only {data!r} came"
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece, f"it ended after {data!r}"
        data += piece
    return data


@pytest.mark.parametrize("program", ["curl", "curl at the Unix socket", "node"])
def test_each_event_comes_when_it_is_sent(world, program):
    events, path = Events(), f"/events/{program.replace(' ', '-')}"
    world.route(path, events.answer)
    curl = ["--silent", "--show-error", "--no-buffer"]
    match program:
        case "curl":
            command = [need("curl"), *curl, world.url(path)]
        case "node":
            command = [node()[0], CLIENTS / "stream.mjs", world.url(path)]
        case _:
            command = [need("curl"), *curl, *world.curl_at_socket, f"http://localhost/{world.url(path)}"]

    with world.start(*command) as process:
        for number in range(EVENTS):
            world.loop.call(events.release, f"event {number}")
            assert read_event(process) == f"data: event {number}\n\n".encode()
        world.loop.call(events.release, f"your key is {SECRET}, is it?")
        last = read_event(process)
        assert last.startswith(b"data: your key is ")
        assert last.endswith(b", is it?\n\n")
        assert SECRET.encode() not in last
        world.loop.call(events.end)
        rest, err = process.communicate(timeout=20)

    assert (process.returncode, rest, err) == (0, b"", b"")


def test_a_download_of_1_gib_takes_no_memory(world):
    memory = Memory(world.sidecar())
    world.route("/large", download(memory))
    fetch = 'curl --silent --show-error --fail "$0" | sha256sum'

    mark = world.mark()

    done = world.run("sh", "-c", fetch, world.url("/large"))

    assert done.out.split()[0] == digest()
    assert world.rows(mark, "api.example.test")[0]["credential"] == "api"
    assert memory.growth < 16 * MIB


def test_an_upload_of_1_gib_takes_no_memory(world, tmp_path):
    memory = Memory(world.sidecar())
    world.route("/upload", upload(memory))
    (tmp_path / "block").write_bytes(BLOCK)
    send = 'yes "$0" | head -n "$1" | xargs cat | curl --silent --show-error --fail --upload-file - "$2"'

    done = world.run(
        *("sh", "-c", send, tmp_path / "block", str(SIZE // len(BLOCK)), world.url("/upload")),
    )

    assert done.out.split() == [str(SIZE), digest()]
    assert memory.growth < 16 * MIB
