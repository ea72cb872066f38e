"""What is remembered over restarts, and which files are refused as they are."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config as AlembicConfig

from clawbox.config.serving import StateSettings
from clawbox.errors import ClawboxError, Reason
from clawbox.store import ContainerRow, Store, schema, sqlite_url, state_url

ROW = ContainerRow("c-1", "ann", "running", 1_700_000_000_000, b"\x00document")
BODY = b"b" * 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "state.db"


def opened(path):
    return Store(sqlite_url(path))


async def refused(url):
    with pytest.raises(ClawboxError) as caught:
        async with Store(url):
            pass
    assert caught.value.reason is Reason.STATE_UNAVAILABLE
    return str(caught.value)


async def test_rows_are_there_after_a_restart(path):
    later = ContainerRow("c-0", "bob", "created", ROW.created_ms + 1, b"")
    async with opened(path) as store:
        await store.containers.save(later)
        await store.containers.save(ContainerRow("c-1", "ann", "created", ROW.created_ms, b"first"))
        await store.containers.save(ROW)
        await store.containers.save(ContainerRow("c-2", "ann", "created", 1, b""))
        await store.containers.delete("c-2")
        await store.containers.delete("never there")
    async with opened(path) as store:
        assert await store.containers.all() == [ROW, later]


async def test_the_file_is_its_owners_alone(path):
    async with opened(path) as store:
        await store.containers.save(ROW)
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o640)
    assert "chmod 600" in await refused(sqlite_url(path))
    path.chmod(0o600)
    path.parent.chmod(0o777)
    assert "chmod go-w" in await refused(sqlite_url(path))


async def test_a_link_in_place_of_the_file_is_not_followed(path):
    path.parent.mkdir(mode=0o700)
    path.symlink_to(path.with_name("elsewhere"))
    await refused(sqlite_url(path))
    assert not path.with_name("elsewhere").exists()


async def test_one_server_has_the_file_at_a_time(path):
    async with opened(path) as store:
        assert "a server that is running has it" in await refused(sqlite_url(path))
        await store.containers.save(ROW)  # the refusal took nothing from the first
        with pytest.raises(sqlite3.OperationalError), sqlite3.connect(path, timeout=0) as other:
            other.execute("DELETE FROM containers")
        other.close()
    async with opened(path) as store:
        assert await store.containers.all() == [ROW]


@pytest.mark.parametrize("place", ["beginning", "middle"])
async def test_a_damaged_file_is_refused_and_stays_as_it_is(path, place):
    async with opened(path) as store:
        for number in range(50):
            await store.containers.save(ContainerRow(f"c-{number}", "ann", "created", number, b"x" * 3000))
    data = bytearray(path.read_bytes())
    begin = 0 if place == "beginning" else 4096
    data[begin : begin + 8192] = b"\xa5" * 8192
    path.write_bytes(data)
    message = await refused(sqlite_url(path))
    assert "damaged" in message
    assert str(path) in message
    assert path.read_bytes() == data


async def test_what_a_newer_clawbox_wrote_is_refused_and_stays_as_it_is(path):
    async with opened(path) as store:
        await store.containers.save(ROW)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    before = path.read_bytes()
    message = await refused(sqlite_url(path))
    assert "newer" in message
    assert "9999" in message
    assert path.read_bytes() == before


async def test_another_programs_database_is_refused(path):
    path.parent.mkdir(mode=0o700)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()
    path.chmod(0o600)
    assert "not clawbox's" in await refused(sqlite_url(path))


MIGRATION = """
import os
from alembic import op
revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None

def upgrade():
    op.execute("CREATE TABLE half (made TEXT)")
    op.execute("DELETE FROM containers")
    op.execute("DROP TABLE containers")
    {end}
"""
PROGRAM = """
import asyncio, sys
from pathlib import Path
from clawbox.store import Store, schema, sqlite_url
schema.MIGRATIONS = Path(sys.argv[1])

async def main():
    async with Store(sqlite_url(Path(sys.argv[2]))):
        pass

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("os.kill(os.getpid(), 9)", -9), ("raise OSError('the disk broke')", 1)],
    ids=["killed", "failed"],
)
async def test_a_migration_that_did_not_end_leaves_everything_as_it_was(tmp_path, path, end, status):
    async with opened(path) as store:
        await store.containers.save(ROW)
    migrations = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, migrations)
    (migrations / "versions" / "r0002_half.py").write_text(MIGRATION.format(end=end))
    command_line = [sys.executable, "-c", PROGRAM, migrations, path]
    tried = await asyncio.to_thread(subprocess.run, command_line, capture_output=True, check=False)
    assert tried.returncode == status, tried.stderr
    async with opened(path) as store:
        assert await store.containers.all() == [ROW]
        async with store.request_ids.once("ann", "Spawn", "id", BODY) as slot:
            await slot.finish(b"works")
    (migrations / "versions" / "r0002_half.py").write_text(MIGRATION.format(end="pass"))
    assert (await asyncio.to_thread(subprocess.run, command_line, check=False)).returncode == 0
    assert "newer" in await refused(sqlite_url(path))  # the same migration, let to end, is the proof


async def test_a_killed_server_lost_nothing_that_it_said_was_stored(path):
    program = PROGRAM.replace("        pass", "        await s.containers.save(ROW); os.kill(os.getpid(), 9)")
    program = program.replace("]))):", "]))) as s:").replace("import asyncio", "import os, asyncio")
    program = f"from clawbox.store import ContainerRow\nROW = {ROW!r}\n{program}"
    command_line = [sys.executable, "-c", program, schema.MIGRATIONS, path]
    tried = await asyncio.to_thread(subprocess.run, command_line, capture_output=True, check=False)
    assert tried.returncode == -9, tried.stderr
    async with opened(path) as store:
        assert await store.containers.all() == [ROW]


async def test_a_cancelled_write_is_whole_and_the_next_one_works(path):
    async with opened(path) as store:
        for number in range(20):
            saving = asyncio.create_task(store.containers.save(ContainerRow(f"{number}", "a", "b", 1, b"")))
            for _ in range(number):
                await asyncio.sleep(0)
            saving.cancel()
            await asyncio.wait([saving])
        await store.containers.save(ROW)
        assert ROW in await store.containers.all()


# Where it is


def test_the_state_is_beside_the_settings_unless_they_say_where():
    folder = Path("/etc/clawbox")
    assert state_url(StateSettings(), folder) == "sqlite+aiosqlite:////etc/clawbox/state.db"
    for given, meant in {
        "sqlite:///other.db": "sqlite+aiosqlite:////etc/clawbox/other.db",
        "sqlite:////srv/other.db": "sqlite+aiosqlite:////srv/other.db",
        "postgresql://ann:pw@db/state": "postgresql+asyncpg://ann:pw@db/state",
        "postgresql+psycopg://db/state": "postgresql+psycopg://db/state",
    }.items():
        assert state_url(StateSettings.model_validate({"url": given}), folder) == meant


async def test_a_driver_that_is_not_installed_is_named_and_the_password_is_not():
    message = await refused("postgresql+asyncpg://ann:the-password@db/state")
    assert "the Python package asyncpg is not installed" in message
    assert "the-password" not in message


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///x.db?mode=ro", "the-password", "nonsense://db/x"]
)
async def test_a_url_that_names_no_database_is_refused(url):
    assert "the-password" not in await refused(url)


def test_the_migrations_can_be_written_down_for_postgresql(capsys):
    """No server of it is here: at least its dialect has a word for everything that they do."""
    config = AlembicConfig(stdout=sys.stdout)
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.set_main_option("dialect", "postgresql")
    command.upgrade(config, "head", sql=True)
    sql = capsys.readouterr().out
    assert "document BYTEA NOT NULL" in sql
    assert "COMMIT" in sql
