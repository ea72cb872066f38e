"""The disk of the state is full: it has room of its own, and after that writes fail and change nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

SMALL_DISK = 'mkdir -p "$0" && mount -t tmpfs -o size=32m,mode=700 none "$0" && exec "$@"'

PROGRAM = '''
import asyncio, contextlib, os, sys
from pathlib import Path
from clawbox.errors import ClawboxError
from clawbox.store import ContainerRow, Store, sqlite_url

FOLDER = Path(sys.argv[1])
FILLER = FOLDER / "filler"

def fill():
    """Use every byte that is left."""
    with FILLER.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    assert os.statvfs(FOLDER).f_bavail == 0

def row(number, size=4096):
    return ContainerRow(f"c-{number}", "ann", "running", number, os.urandom(size))

def store():
    return Store(sqlite_url(FOLDER / "state.db"))
'''

KEPT = """
async def main():
    written = {}
    async with store() as state:
        for number in range(20):
            written[number] = row(number)
            await state.containers.save(written[number])
        assert state.status().reserve_problem == "", state.status()
        fill()
        for number in range(300):  # more than the log takes before it is copied into the file
            fill()
            written[number] = row(number)
            await state.containers.save(written[number])
            async with state.request_ids.once("ann", "Spawn", f"id-{number}", bytes(32)) as slot:
                await slot.finish(b"made")
        assert await state.containers.all() == list(written.values())
        assert state.status().failure == ""
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""

AFTER_A_CRASH = """
async def main():
    fill()
    async with store() as state:
        assert len(await state.containers.all()) == 300
        for number in range(300):
            await state.containers.save(row(number))
        assert state.status().failure == ""

asyncio.run(main())
"""

FULL = """
async def main():
    async with store() as state:
        await state.containers.save(row(0))
        fill()
        known = await state.containers.all()
        try:
            while True:
                await state.containers.save(row(len(known), 100_000))
                known = await state.containers.all()
        except ClawboxError as error:
            assert error.reason.name == "STATE_UNAVAILABLE", error
            assert "full" in str(error), error
            assert error.retry_after
        assert len(known) > 20, len(known)
        assert await state.containers.all() == known
        with contextlib.suppress(ClawboxError):
            while True:
                async with state.request_ids.once("ann", "Spawn", os.urandom(9).hex(), bytes(32)) as slot:
                    await slot.finish(os.urandom(100_000))
        with contextlib.suppress(ClawboxError):
            await state.containers.save(row(9999, 1 << 20))
        status = state.status()
        assert "full" in status.failure, status
        assert status.reserve_problem, status
        assert await state.containers.all() == known
        FILLER.unlink()
        while state.status().reserve_problem:
            await asyncio.sleep(0.1)
            await state.containers.save(row(0))
        assert state.status().failure == ""
        fill()
        await state.containers.save(row(1))

asyncio.run(main())
"""


@pytest.fixture
def on_small_disk(tmp_path):
    """Runs programs with a disk of 32 MiB, which nobody else sees: their exit statuses and what they said."""
    folder = tmp_path / "disk"
    inner = ["sh", "-c", SMALL_DISK, str(folder)]
    reasons = []
    for outer in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        tried = subprocess.run([*outer, *inner, "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            break
        reasons.append(tried.stderr)
    else:
        pytest.skip(f"this machine lets nobody mount a disk of their own: {reasons}")

    def run(*programs):
        script = 'for program; do python -W error -c "$program" "$0"; echo "exit $?"; done'
        whole = [PROGRAM + program for program in programs]
        command = [*outer, *inner, "sh", "-c", script.replace("python", sys.executable), folder, *whole]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        return [line for line in ended.stdout.splitlines() if line.startswith("exit ")], ended.stderr

    return run


def test_rule_99_what_fills_the_disk_stops_no_write_of_the_state(on_small_disk):
    status, said = on_small_disk(KEPT, AFTER_A_CRASH)
    assert status == ["exit 137", "exit 0"], said


def test_rule_99_when_its_own_room_is_full_too_a_write_fails_and_changes_nothing(on_small_disk):
    status, said = on_small_disk(FULL)
    assert status == ["exit 0"], said
