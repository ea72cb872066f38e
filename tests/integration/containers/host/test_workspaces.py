"""Workspaces: whose they are, how large, and that they go whole, whatever a sandbox made in them."""

import asyncio
import os
import stat
import time
import uuid
from pathlib import Path

import pytest

from clawbox.containers.host import trees
from clawbox.containers.host.workspace_folders import WorkspaceFolders
from clawbox.containers.host.workspaces import Workspaces
from clawbox.containers.mounts import MountError
from clawbox.containers.users import User
from clawbox.errors import ClawboxError, Reason

ONE, TWO = User(912_345, 912_345), User(912_346, 912_346)
FAR = 3000


@pytest.fixture
async def workspaces(tmp_path):
    async with Workspaces(tmp_path / "workspaces", 1 << 20, max_kept=100) as opened:
        yield opened


def new_id():
    return str(uuid.uuid4())


def deep(folder: Path, depth: int) -> None:
    current = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 50, dir_fd=current)
        following = os.open("d" * 50, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = following
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=current))
    os.close(current)


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


async def emptied(folder: Path) -> None:
    """Return once nothing is in a folder."""
    async with asyncio.timeout(60):
        while await asyncio.to_thread(lambda: list(folder.iterdir())):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def test_a_fresh_workspace_is_the_users_alone_and_goes(workspaces):
    made = await workspaces.acquire("alice", "", container_id=new_id(), user=ONE)

    found = made.path.lstat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (ONE.uid, ONE.gid, 0o700)
    assert not made.kept
    assert str(uuid.UUID(made.workspace_id)) == made.workspace_id
    assert [oct(stat.S_IMODE(path.lstat().st_mode)) for path in made.path.parents[:3]] == ["0o700"] * 3

    workspaces.release(made)
    await workspaces.delete("alice", made.workspace_id)
    await workspaces.delete("alice", made.workspace_id)

    assert not any("files" in name for name in everything(workspaces.root))


async def in_use(call):
    """A container has the workspace."""
    with pytest.raises(ClawboxError) as raised:
        await call
    assert raised.value.reason is Reason.WRONG_STATE


async def test_one_container_at_a_time_has_a_workspace(workspaces):
    made = await workspaces.acquire("alice", "kept", container_id=new_id(), user=ONE)
    assert made.kept

    for call in (
        workspaces.acquire("alice", "kept", container_id=new_id(), user=TWO),
        workspaces.delete("alice", "kept"),
    ):
        await in_use(call)
    other = await workspaces.acquire("bob", "kept", container_id=new_id(), user=TWO)

    assert other.path != made.path
    workspaces.release(made)
    assert (await workspaces.acquire("alice", "kept", container_id=new_id(), user=ONE)).path == made.path


async def test_another_user_gets_everything_in_it_and_links_are_not_followed(workspaces, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("x")
    made = await workspaces.acquire("alice", "kept", container_id=new_id(), user=ONE)
    (made.path / "folder").mkdir()
    (made.path / "folder" / "link").symlink_to(outside)
    await asyncio.to_thread(deep, made.path, FAR)
    workspaces.release(made)

    again = await workspaces.acquire("alice", "kept", container_id=new_id(), user=TWO)

    for path in (again.path, again.path / "folder", again.path / "folder" / "link", again.path / ("d" * 50)):
        assert path.lstat().st_uid == TWO.uid
    assert outside.lstat().st_uid == os.geteuid()


async def test_what_is_no_name_is_refused(workspaces):
    for name in ("..", "a/b", "a" * 65, "ä", "a\n"):
        with pytest.raises(ClawboxError) as raised:
            await workspaces.acquire("alice", name, container_id=new_id(), user=ONE)
        assert raised.value.reason is Reason.INVALID_FIELD


async def test_deep_and_hostile_trees_are_deleted_whole(workspaces, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    made = await workspaces.acquire("alice", "kept", container_id=new_id(), user=ONE)
    (made.path / "link").symlink_to(outside)
    os.mkfifo(made.path / "fifo")
    (made.path / "closed").mkdir()
    (made.path / "closed" / "file").write_text("x")
    (made.path / "closed").chmod(0)
    (made.path / os.fsdecode(b"\xff\xfe\n")).write_text("x")
    await asyncio.to_thread(deep, made.path, FAR)
    for number in range(2500):
        (made.path / f"{number}").touch()
    workspaces.release(made)

    await workspaces.delete("alice", "kept")

    assert not made.path.exists()
    await emptied(workspaces.root / "trash")  # so much may still be under way
    assert everything(workspaces.root) == sorted(
        [made.path.parents[1].name, "trash"],
    )
    assert (outside / "file").read_text() == "x"


async def test_a_deletion_that_broke_off_is_gone_on_with_by_the_next_server(tmp_path):
    async with Workspaces(tmp_path / "workspaces", 1, max_kept=100) as first:
        trash = first.root / "trash"
    (trash / "left" / "a" / "b").mkdir(parents=True)

    async with Workspaces(tmp_path / "workspaces", 1, max_kept=100):
        await emptied(trash)


async def test_fresh_ones_without_their_container_are_deleted_and_kept_ones_stay(workspaces):
    known, lost, kept, promoted = [
        await workspaces.acquire("alice", name, container_id=new_id(), user=ONE)
        for name in ("", "", "mine", "")
    ]
    await workspaces.keep("alice", promoted.workspace_id)

    await workspaces.delete_abandoned({known.container_id})

    there = [one.path.exists() for one in (known, lost, kept, promoted)]
    assert there == [True, False, True, True]


async def test_no_two_servers_have_one_folder_of_workspaces(workspaces):
    second = Workspaces(workspaces.root, 1 << 20, max_kept=100)

    with pytest.raises(MountError, match=r"another server .* containers\.workspace_root"):
        await second.__aenter__()


async def test_after_a_restart_a_workspace_is_held_by_who_had_it(tmp_path):
    root, container = tmp_path / "workspaces", new_id()
    async with Workspaces(root, 1, max_kept=100) as first:
        made = await first.acquire("alice", "mine", container_id=container, user=ONE)

    async with Workspaces(root, 1, max_kept=100) as second:
        held = second.hold("alice", "mine", container)
        assert held.path == made.path
        assert second.hold("alice", "mine", container) == held
        assert not second.hold("alice", "another", container).path.exists()
        for call in (
            second.acquire("alice", "mine", container_id=new_id(), user=TWO),
            second.delete("alice", "mine"),
        ):
            await in_use(call)

        second.release(held)
        assert (await second.acquire("alice", "mine", container_id=new_id(), user=TWO)).path == made.path


async def test_where_two_containers_have_one_it_is_free_when_both_have_gone(workspaces):
    held = [workspaces.hold("alice", "mine", new_id()) for _ in range(2)]

    for one in held:
        await in_use(workspaces.acquire("alice", "mine", container_id=new_id(), user=ONE))
        workspaces.release(one)

    await workspaces.acquire("alice", "mine", container_id=new_id(), user=ONE)


async def test_disk_is_measured_by_blocks_and_names_of_one_file_count_once(workspaces, tmp_path):
    made = await workspaces.acquire("alice", "", container_id=new_id(), user=ONE)
    empty = await workspaces.measure(made)
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 500_000)
    (made.path / "file").write_bytes(b"x" * 100_000)
    os.link(made.path / "file", made.path / "again")
    (made.path / "link").symlink_to(outside)
    with (made.path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)

    used = await workspaces.measure(made) - empty

    assert 100_000 <= used < 130_000
    await asyncio.to_thread(deep, made.path, FAR)
    assert await workspaces.measure(made) >= used + FAR * 512


def test_a_walk_that_takes_too_long_ends(tmp_path):
    deep(tmp_path, 50)
    opened = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(trees.WalkError):
            trees.measure(opened, until=time.monotonic() - 1)
        assert trees.empty(opened, until=time.monotonic() - 1) is False
        assert trees.empty(opened, until=time.monotonic() + 60) is True
    finally:
        os.close(opened)
    assert everything(tmp_path) == []


def test_a_folder_that_is_moved_while_it_is_measured_leads_nowhere_else(tmp_path, monkeypatch):
    """Out of ``a/b`` the way up would lead into a folder outside."""
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "c").mkdir()
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * 1_000_000)
    real_open = os.open

    def opening(name, *arguments, **options):
        if name == ".." and (tree / "a" / "b").exists():
            (tree / "a" / "b").rename(outside / "b")
        return real_open(name, *arguments, **options)

    monkeypatch.setattr(os, "open", opening)
    opened = real_open(tree, os.O_RDONLY)
    try:
        assert trees.measure(opened, until=time.monotonic() + 60) < 100_000
    finally:
        os.close(opened)


async def test_rule_78_workspaces_below_what_others_write_are_refused(tmp_path):
    tmp_path.chmod(0o777)

    with pytest.raises(MountError, match="can be written"):
        async with Workspaces(tmp_path / "workspaces", 1, max_kept=100):
            pass


@pytest.fixture
async def two(tmp_path):
    """An owner may keep two."""
    async with Workspaces(tmp_path / "workspaces", 1 << 20, max_kept=2) as opened:
        yield opened


async def too_many(call):
    """It is one workspace too many; the error."""
    with pytest.raises(ClawboxError) as raised:
        await call
    assert raised.value.reason is Reason.WORKSPACE_LIMIT
    return raised.value


async def test_one_more_than_an_owner_may_keep_is_refused_before_anything_is_made(two):
    kept = [await two.acquire("alice", name, container_id=new_id(), user=ONE) for name in ("a", "b")]
    before = everything(two.root)

    for call in (
        two.require_room("alice", "c"),
        two.require_room("alice", ""),
        two.acquire("alice", "c", container_id=new_id(), user=ONE),
        two.acquire("alice", "", container_id=new_id(), user=ONE, kept=True),
    ):
        error = await too_many(call)
        assert error.metadata == {"principal": "alice", "workspaces": "2"}
        assert "delete_workspace" in error.message
    assert everything(two.root) == before

    # What is there can be used again, others have room of their own, and fresh ones are no matter.
    two.release(kept[0])
    await two.require_room("alice", "a")
    again = await two.acquire("alice", "a", container_id=new_id(), user=TWO)
    await two.acquire("alice", "", container_id=new_id(), user=ONE)
    await two.acquire("bob", "c", container_id=new_id(), user=TWO)

    two.release(again)
    await two.delete("alice", "a")
    await two.require_room("alice", "c")
    await two.acquire("alice", "c", container_id=new_id(), user=ONE)


async def test_of_many_at_once_no_more_are_made_than_may_be_kept(two):
    calls = [two.acquire("alice", f"w{number}", container_id=new_id(), user=ONE) for number in range(20)]

    found = await asyncio.gather(*calls, return_exceptions=True)

    refused = [one for one in found if isinstance(one, ClawboxError)]
    assert {one.reason for one in refused} == {Reason.WORKSPACE_LIMIT}
    assert len(refused) == 18
    assert len(list(two.root.glob("*/w*"))) == 2


async def test_a_fresh_one_is_kept_only_where_there_is_room(two):
    fresh, other = [await two.acquire("alice", "", container_id=new_id(), user=ONE) for _ in range(2)]
    await two.acquire("alice", "mine", container_id=new_id(), user=ONE)
    await two.keep("alice", fresh.workspace_id)
    await two.keep("alice", fresh.workspace_id)

    await too_many(two.keep("alice", other.workspace_id))

    # One that was to go with a container is not one of those that are kept, though it has a name.
    goes = await two.acquire("alice", "goes", container_id=new_id(), user=ONE, kept=False)
    two.release(goes)
    await too_many(two.acquire("alice", "goes", container_id=new_id(), user=ONE))
    await two.delete_abandoned(())
    assert [one.path.exists() for one in (fresh, other, goes)] == [True, False, False]


async def test_a_kept_one_that_is_to_go_with_a_container_stays_when_there_is_none(workspaces):
    made = await workspaces.acquire("alice", "mine", container_id=new_id(), user=ONE)
    workspaces.release(made)
    again = await workspaces.acquire("alice", "mine", container_id=new_id(), user=ONE, kept=False)
    workspaces.release(again)
    assert (made.made, again.made) == (True, False)

    await workspaces.delete_abandoned(())

    assert again.path.exists()


async def test_what_cannot_be_made_ready_leaves_only_what_was_there(workspaces, monkeypatch):
    there = await workspaces.acquire("alice", "there", container_id=new_id(), user=ONE)
    workspaces.release(there)

    def full(*_, **__):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(trees, "give_to", full)
    for name in ("there", "new", ""):
        with pytest.raises(ClawboxError) as raised:
            await workspaces.acquire("alice", name, container_id=new_id(), user=TWO)
        assert raised.value.reason is Reason.SANDBOX_UNAVAILABLE

    assert [path.name for path in there.path.parents[1].iterdir()] == ["there"]


async def test_what_goes_while_the_abandoned_are_deleted_holds_nothing_up(workspaces, monkeypatch):
    lost, other = [await workspaces.acquire("alice", "", container_id=new_id(), user=ONE) for _ in range(2)]
    found = WorkspaceFolders.abandoned

    def and_one_goes(folders, known):
        abandoned = sorted(found(folders, known))
        abandoned[0].rename(workspaces.root / "trash" / "already")
        return abandoned

    monkeypatch.setattr(WorkspaceFolders, "abandoned", and_one_goes)
    await workspaces.delete_abandoned(())

    assert not lost.path.exists()
    assert not other.path.exists()
