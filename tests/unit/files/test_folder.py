"""What the files of a sandbox are to those who use them."""

import asyncio
import os
import resource

import pytest

from clawbox.children.files.messages import How, Type
from clawbox.errors import ClawboxError, Reason
from tests.unit.files.conftest import GID, UID, get, put


def refused(reason):
    return pytest.raises(ClawboxError, check=lambda error: error.reason is reason)


async def test_what_is_written_is_read(sandbox):
    info = await put(sandbox.folder, b"file", b"one ", b"two", size=7)

    assert (b"file", Type.REGULAR, 7, 0o644) == (info.path, info.type, info.size, info.mode)
    assert await get(sandbox.folder, b"file") == b"one two"
    assert await get(sandbox.folder, b"file", offset=2, length=3) == b"e t"
    assert await get(sandbox.folder, b"file", offset=100) == b""
    assert info == await sandbox.folder.stat(b"file")
    assert sandbox.names() == ["file"]


async def test_any_bytes_are_a_name(sandbox):
    await put(sandbox.folder, b"\xff\xfe\n\x1b[0m", b"x")

    listing = await sandbox.folder.list(b".")
    assert [info.path for info in listing.infos] == [b"\xff\xfe\n\x1b[0m"]
    assert await sandbox.folder.remove(b"\xff\xfe\n\x1b[0m") == 1


async def test_a_file_that_is_replaced_keeps_its_permissions_and_another_name_its_content(sandbox):
    old = sandbox.make("file", b"old", 0o640)
    os.link(old, sandbox.root / "other")

    info = await put(sandbox.folder, b"file", b"new")

    assert info.mode == 0o640
    assert (sandbox.root / "file").read_bytes() == b"new"
    assert (sandbox.root / "other").read_bytes() == b"old"
    assert (await put(sandbox.folder, b"file", b"", mode=0o755)).mode == 0o755


async def test_creating_refuses_what_is_there_and_appending_adds_to_it(sandbox):
    sandbox.make("file", b"old")

    with refused(Reason.FILE_EXISTS):
        await put(sandbox.folder, b"file", b"new", how=How.CREATE)
    assert (await put(sandbox.folder, b"file", b"er", how=How.APPEND)).size == 5
    assert await get(sandbox.folder, b"file") == b"older"
    assert (await put(sandbox.folder, b"fresh", b"new", how=How.APPEND)).size == 3
    assert (await put(sandbox.folder, b"another", b"new", how=How.CREATE)).size == 3


async def test_folders_above_are_made_only_when_asked_for(sandbox):
    with refused(Reason.FILE_NOT_FOUND):
        await put(sandbox.folder, b"a/b/file", b"x")
    assert sandbox.names() == []

    await put(sandbox.folder, b"a/b/file", b"x", make_parents=True)
    with refused(Reason.FILE_EXISTS):
        await sandbox.folder.make_directory(b"a")
    with refused(Reason.WRONG_STATE):
        await sandbox.folder.make_directory(b"a/b/file", make_parents=True)
    info = await sandbox.folder.make_directory(b"a/c/d", mode=0o2777 & 0o777, make_parents=True)
    assert (info.type, info.mode) == (Type.DIRECTORY, 0o777)
    assert await sandbox.folder.make_directory(b"a/c/d", make_parents=True)
    assert (sandbox.root / "a/c").stat().st_mode & 0o7777 == 0o755


async def test_a_folder_is_listed_in_byte_order_page_by_page(sandbox):
    names = sorted(f"{number}".encode() for number in range(50))
    for name in names:
        sandbox.make(name.decode())

    after, pages = b"", []
    while True:
        listing = await sandbox.folder.list(b".", after=after, limit=20)
        pages.append([info.path for info in listing.infos])
        if not listing.more:
            break
        after = pages[-1][-1]

    assert [len(page) for page in pages] == [20, 20, 10]
    assert [name for page in pages for name in page] == names


async def test_a_recursive_listing_has_all_below_and_follows_no_link(sandbox):
    sandbox.make("a/b/c")
    sandbox.make("a/z")
    sandbox.link("a/link", "b")
    sandbox.link("up", "..")

    listing = await sandbox.folder.list(b".", recursive=True)

    found = [(info.path, info.type) for info in listing.infos]
    assert found == [
        (b"a", Type.DIRECTORY),
        (b"up", Type.SYMLINK),
        (b"a/b", Type.DIRECTORY),
        (b"a/link", Type.SYMLINK),
        (b"a/z", Type.REGULAR),
        (b"a/b/c", Type.REGULAR),
    ]
    assert listing.infos[1].link_target == b".."
    assert (await sandbox.folder.list(b".", recursive=True, limit=3)).more


async def test_only_a_recursive_removal_takes_what_is_in_a_folder(sandbox):
    sandbox.make("a/b/c")
    sandbox.make("a/z")
    sandbox.make("kept")

    with refused(Reason.WRONG_STATE):
        await sandbox.folder.remove(b"a")
    assert await sandbox.folder.remove(b"a", recursive=True) == 4
    assert await sandbox.folder.remove(b"kept", recursive=True) == 1
    assert sandbox.names() == []
    with refused(Reason.FILE_NOT_FOUND):
        await sandbox.folder.remove(b"a", recursive=True)


async def test_what_a_path_is_not_is_said(sandbox):
    sandbox.make("folder/file")

    for asked in (
        get(sandbox.folder, b"folder"),
        put(sandbox.folder, b"folder", b"x"),
        get(sandbox.folder, b"folder/file/x"),
        sandbox.folder.list(b"folder/file"),
    ):
        with refused(Reason.WRONG_STATE):
            await asked
    for missing in (sandbox.folder.stat(b"no"), sandbox.folder.list(b"no"), get(sandbox.folder, b"no")):
        with refused(Reason.FILE_NOT_FOUND):
            await missing


async def test_a_file_of_another_size_than_was_said_is_not_there(sandbox):
    for size in (2, 4):
        with refused(Reason.INVALID_FIELD):
            await put(sandbox.folder, b"file", b"xxx", size=size)
    assert sandbox.names() == []


async def test_whoever_writes_too_much_is_told_before_the_end(sandbox):
    folder = sandbox.limited(file_bytes=100_000)

    async def write_for_ever():
        async with folder.write(b"file") as writing:
            while True:
                await writing.write(bytes(50_000))

    with refused(Reason.FILE_LIMIT):
        await asyncio.wait_for(write_for_ever(), 20)
    assert sandbox.names() == []
    sandbox.make("large", bytes(100_001))
    with refused(Reason.FILE_LIMIT):
        await get(folder, b"large")
    assert len(await get(folder, b"large", length=100_000)) == 100_000


async def test_large_files_pass_in_constant_memory(sandbox):
    size = 256 << 20
    chunk = bytes(1 << 20)
    most = 24 << 10  # KiB that this process may grow by
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async with sandbox.folder.write(b"large", size=size) as writing:
        for _ in range(size // len(chunk)):
            await writing.write(chunk)
        assert (await writing.finish()).size == size
    size <<= 1
    os.truncate(sandbox.root / "large", size)
    total = 0
    async with sandbox.folder.read(b"large") as reading:
        async for data in reading:
            total += len(data)

    assert total == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < most


async def test_the_callers_own_timeout_stays_its_own(sandbox):
    with pytest.raises(TimeoutError):
        async with sandbox.folder.write(b"file"):
            raise TimeoutError


async def test_what_is_written_belongs_to_the_sandboxs_user(sandbox):
    await put(sandbox.folder, b"a/file", b"x", make_parents=True)

    for name in ("a", "a/file"):
        found = (sandbox.root / name).stat()
        assert (found.st_uid, found.st_gid) == (UID, GID)
