"""Property 81 of docs/security.md: what is done to a sandbox's files stays inside, whatever is in there."""

import asyncio
import ctypes
import errno
import os
import socket
import subprocess
import sys
import time

import pytest

from clawbox.children.files.beneath import FileProblem, open_regular
from clawbox.children.files.folder import KIND, KIND_OBJECT, FileLimits, Folder
from clawbox.children.files.messages import How, Type
from clawbox.children.files.writing import _Draft
from clawbox.children.filters import working_on_files
from clawbox.children.kind import Place
from clawbox.children.launcher import Launcher
from clawbox.children.seccomp import ARCHITECTURES, build
from clawbox.errors import ClawboxError, Reason
from tests.unit.children.conftest import Probe
from tests.unit.children.test_seccomp import ALLOW, decide
from tests.unit.children.test_seccomp import refused as refused_with
from tests.unit.files.conftest import GID, OUTSIDE, UID, get, put, sandbox
from tests.unit.files.test_folder import refused

__all__ = ["sandbox"]


@pytest.mark.parametrize(
    "path",
    [
        *(b"", b"/", b"/etc/passwd", b"..", b"../outside/secret", b"a/../b", b"a/..", b"./a", b"a//b", b"a/"),
        *(b"a\0b", b"a" * 256, b"/".join([b"ab"] * 1400)),
    ],
)
async def test_rule_81_a_path_that_could_mean_something_else_is_refused_before_anything_is_done(path):
    async with Launcher({KIND: KIND_OBJECT}, None) as launcher:
        pass
    # It is over: whatever asked it for a child would wait for ever.
    folder = Folder(launcher, Place(-1, UID, GID), FileLimits(seconds=10))

    for asked in (
        folder.stat(path),
        folder.list(path),
        folder.make_directory(path),
        folder.remove(path),
        get(folder, path),
        put(folder, path, b"x"),
    ):
        with refused(Reason.INVALID_FIELD):
            await asked


async def test_rule_81_no_link_leads_outside_wherever_in_a_path_it_is(sandbox):
    sandbox.make("a/b/file")
    outside = str(sandbox.outside)
    for name, target in {
        "up": "../outside",
        "a/up": "../../outside",
        "a/b/up": "../../../outside",
        "absolute": outside,
        "proc": "/proc/self/root",
        "twice": "a/up",
        "a/b/secret": f"{outside}/secret",
    }.items():
        sandbox.link(name, target)

    for way in (b"up/", b"a/up/", b"a/b/up/", b"absolute/", b"twice/", b"proc" + outside.encode() + b"/"):
        for asked in (
            get(sandbox.folder, way + b"secret"),
            put(sandbox.folder, way + b"secret", b"x"),
            put(sandbox.folder, way + b"new/new", b"x", make_parents=True),
            sandbox.folder.stat(way + b"secret"),
            sandbox.folder.list(way[:-1]),
            sandbox.folder.make_directory(way + b"new", make_parents=True),
            sandbox.folder.remove(way + b"secret"),
        ):
            with refused(Reason.INVALID_FIELD):
                await asked
    with refused(Reason.INVALID_FIELD):
        await get(sandbox.folder, b"a/b/secret")
    for how in How:
        with pytest.raises(ClawboxError):
            await put(sandbox.folder, b"a/b/secret", b"x", how=how)
    assert (await sandbox.folder.stat(b"up")).type is Type.SYMLINK
    await sandbox.folder.remove(b"up", recursive=True)
    await sandbox.folder.remove(b"a", recursive=True)
    assert sorted(path.name for path in sandbox.outside.iterdir()) == ["new", "secret"]
    assert {path.read_bytes() for path in sandbox.outside.iterdir()} == {OUTSIDE}


async def test_rule_81_a_link_that_stays_inside_is_followed(sandbox):
    sandbox.make("a/file")
    sandbox.link("link", "a")

    assert await get(sandbox.folder, b"link/file") == b"content"
    await put(sandbox.folder, b"link/new", b"x")
    assert (sandbox.root / "a/new").read_bytes() == b"x"


_SWAP = """
import ctypes, os, sys
root, outside = sys.argv[1:]
os.chdir(root)
os.symlink(outside, "link")
rename = ctypes.CDLL(None).renameat2
print("ready", flush=True)
while True:
    rename(-100, b"folder", -100, b"link", 2)  # RENAME_EXCHANGE
"""


async def test_rule_81_a_folder_that_is_a_link_the_next_moment_is_no_way_out(sandbox):
    sandbox.make("folder/secret", b"inside")
    swapping = subprocess.Popen(  # noqa: ASYNC220 - it is killed below
        [sys.executable, "-c", _SWAP, str(sandbox.root), str(sandbox.outside)], stdout=subprocess.PIPE
    )
    seen: set[object] = set()
    try:
        assert swapping.stdout is not None
        swapping.stdout.readline()
        loop = asyncio.get_running_loop()
        began = loop.time()
        # Until both were met, however long who swaps has to wait for the processor.
        while loop.time() < began + 2.5 or not {b"inside", Reason.INVALID_FIELD} <= seen:
            assert loop.time() < began + 60, seen
            try:
                seen.add(await get(sandbox.folder, b"folder/secret"))
                await put(sandbox.folder, b"folder/new", b"x")
                seen.add((await sandbox.folder.list(b"folder")).infos[-1].path)
                await sandbox.folder.remove(b"folder/new", recursive=True)
            except ClawboxError as error:
                seen.add(error.reason)
    finally:
        swapping.kill()
        swapping.wait()
        assert swapping.stdout is not None
        swapping.stdout.close()

    assert seen <= {b"inside", b"secret", Reason.INVALID_FIELD, Reason.FILE_NOT_FOUND, Reason.WRONG_STATE}
    assert sorted(path.name for path in sandbox.outside.iterdir()) == ["new", "secret"]
    assert {path.read_bytes() for path in sandbox.outside.iterdir()} == {OUTSIDE}


def test_rule_81_of_many_thousand_swaps_none_is_opened_outside(tmp_path):
    (tmp_path / "root/folder").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root/folder/file").write_bytes(b"inside")
    (tmp_path / "outside/file").write_bytes(b"outside")
    root = os.open(tmp_path / "root", os.O_PATH)
    swapping = subprocess.Popen(
        [sys.executable, "-c", _SWAP, str(tmp_path / "root"), str(tmp_path / "outside")],
        stdout=subprocess.PIPE,
    )
    seen: set[object] = set()
    tries, began = 0, time.monotonic()
    try:
        assert swapping.stdout is not None
        swapping.stdout.readline()
        # Until it was swapped, however long who does that has to wait for the processor.
        while tries < 20_000 or b"inside" not in seen or len(seen) < 2:
            assert time.monotonic() < began + 60, seen
            tries += 1
            try:
                file = open_regular(root, b"folder/file", os.O_RDONLY)
            except FileProblem as problem:
                seen.add(problem.problem)
            except OSError as error:
                seen.add(error.errno)
            else:
                seen.add(os.read(file, 100))
                os.close(file)
    finally:
        swapping.kill()
        swapping.wait()
        assert swapping.stdout is not None
        swapping.stdout.close()
        os.close(root)

    assert b"outside" not in seen


async def test_rule_81_what_is_no_regular_file_is_neither_opened_nor_waited_for(sandbox):
    os.mkfifo(sandbox.root / "fifo")
    os.mknod(sandbox.root / "null", 0o20666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{sandbox.root}/socket")
        for name in (b"fifo", b"null", b"socket"):
            (sandbox.root / name.decode()).chmod(0o666)
            assert (await sandbox.folder.stat(name)).type is Type.OTHER
            async with asyncio.timeout(20):
                with refused(Reason.WRONG_STATE):
                    await get(sandbox.folder, name)
                for how in (How.REPLACE, How.APPEND):
                    with refused(Reason.WRONG_STATE):
                        await put(sandbox.folder, name, b"x", how=how)
            assert await sandbox.folder.remove(name) == 1


@pytest.fixture
def mounted(sandbox):
    """What is mounted below the root: the kernel's /proc, and a folder of another file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    places = {"proc": (b"proc", b"proc"), "memory": (b"tmpfs", b"tmpfs")}
    for name, (source, kind) in places.items():
        (sandbox.root / name).mkdir()
        assert libc.mount(source, os.fsencode(sandbox.root / name), kind, 0, None) == 0
    (sandbox.root / "memory/file").write_bytes(b"x")
    yield sandbox
    for name in places:
        assert libc.umount2(os.fsencode(sandbox.root / name), 2) == 0


async def test_rule_81_what_is_mounted_inside_is_outside_magic_links_too(mounted):
    for path in (b"proc/self/root/etc/passwd", b"proc/self/cwd/x", b"proc/version", b"memory/file"):
        for asked in (
            get(mounted.folder, path),
            put(mounted.folder, path, b"x"),
            mounted.folder.remove(path),
        ):
            with refused(Reason.INVALID_FIELD):
                await asked
    with refused(Reason.INVALID_FIELD):
        await mounted.folder.remove(b"memory", recursive=True)
    assert (mounted.root / "memory/file").read_bytes() == b"x"


async def test_rule_81_it_is_done_as_the_sandboxs_user_without_capabilities(sandbox):
    await put(sandbox.folder, b"made/file", b"x", mode=0o700, make_parents=True)
    roots = sandbox.root / "roots"
    roots.write_bytes(b"root's")
    roots.chmod(0o600)
    (sandbox.root / "closed").mkdir(mode=0o700)

    for name in ("made", "made/file"):
        found = (sandbox.root / name).stat()
        assert (found.st_uid, found.st_gid) == (UID, GID)
    for asked in (
        get(sandbox.folder, b"roots"),
        put(sandbox.folder, b"roots", b"x", how=How.APPEND),
        put(sandbox.folder, b"closed/file", b"x"),
        sandbox.folder.list(b"closed"),
    ):
        with refused(Reason.FILE_DENIED):
            await asked


async def test_rule_81_no_permission_beyond_0777_is_given(sandbox):
    for asked in (
        put(sandbox.folder, b"file", b"x", mode=0o4755),
        sandbox.folder.make_directory(b"folder", mode=0o1777),
    ):
        with refused(Reason.INVALID_FIELD):
            await asked
    old = sandbox.make("old")
    old.chmod(0o4755)
    await put(sandbox.folder, b"old", b"x")
    assert old.stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("chunks", [0, 1, 3])
async def test_rule_81_a_write_that_is_given_up_at_any_step_leaves_everything_as_it_was(sandbox, chunks):
    sandbox.make("file", b"old")

    async def begin():
        async with sandbox.folder.write(b"file") as writing:
            for _ in range(chunks):
                await writing.write(bytes(100_000))
            begun.set()
            await asyncio.Event().wait()

    begun = asyncio.Event()
    task = asyncio.create_task(begin())
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])

    assert sandbox.names() == ["file"]
    assert (sandbox.root / "file").read_bytes() == b"old"


async def test_rule_81_wherever_a_write_is_cancelled_the_file_is_old_or_new(sandbox):
    sandbox.make("file", b"old")
    for turns in range(0, 60, 2):
        task = asyncio.create_task(put(sandbox.folder, b"file", b"new", b"er"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert sandbox.names() == ["file"]
        assert (sandbox.root / "file").read_bytes() in {b"old", b"newer"}


async def test_rule_81_nothing_is_left_where_files_always_have_names(sandbox, monkeypatch):
    def named(above, name):
        monkeypatch.setattr(_Draft, "_open_unnamed", lambda _: -1)
        return _Draft(above, name)

    above = os.open(sandbox.root, os.O_PATH)
    with named(above, b".draft") as draft:
        assert sandbox.names() == [".draft"]
        os.write(draft.descriptor, b"x")
    assert sandbox.names() == []
    for replace in (False, True):
        with named(above, b".draft") as draft:
            draft.publish(b"file", replace=replace)
        assert sandbox.names() == ["file"]
    with pytest.raises(FileExistsError), named(above, b".draft") as draft:
        draft.publish(b"file", replace=False)
    assert sandbox.names() == ["file"]
    os.close(above)


async def test_rule_81_a_tree_of_3000_folders_is_removed(sandbox):
    depth = 3000
    above = os.open(sandbox.root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=above)
        os.chown("deep", UID, GID, dir_fd=above)
        below = os.open("deep", os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)

    listing = await sandbox.folder.list(b".", recursive=True, limit=10_000)
    assert len(listing.infos) == 4096 // 5
    assert await sandbox.folder.remove(b"deep", recursive=True) == depth
    assert sandbox.names() == []


async def test_rule_81_entries_and_time_are_bounded(sandbox):
    for number in range(50):
        sandbox.make(f"folder/{number}")
    few = sandbox.limited(entries=20)

    with refused(Reason.FILE_LIMIT):
        await few.list(b"folder")
    with refused(Reason.FILE_LIMIT):
        await few.remove(b"folder", recursive=True)
    with refused(Reason.INVALID_FIELD):
        await few.list(b"folder", limit=10_001)
    with refused(Reason.DEADLINE):
        async with sandbox.limited(seconds=0.5).write(b"file") as writing:
            await writing.write(b"x")
            await asyncio.Event().wait()
    assert "file" not in sandbox.names()


REFUSED = f"errno {errno.EPERM}"


async def test_rule_81_the_child_can_do_nothing_but_work_on_files_of_its_root(sandbox):
    async with Launcher({"probe": "tests.unit.children.probe_kind:FILES"}, None) as launcher:
        place = Place(sandbox.descriptor, UID, GID)
        probe = await Probe.start(launcher, place=place)
        status = await probe.ask("status")
        assert status["Uid"].split() == [str(UID)] * 4
        assert status["Gid"].split() == [str(GID)] * 4
        assert status["Groups"].split() == []
        assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert set(await probe.ask("socket")) == {REFUSED}
        for call in ("exec", "fork", "open", "socketpair", "prlimit_other"):
            assert await probe.ask(call, 1) == REFUSED, call
        assert set(await probe.ask("kill", os.getpid())) == {REFUSED}
        assert await probe.ask("executable_memory") == [REFUSED, "worked"]
        assert await probe.ask("descriptors") == await probe.ask("own_descriptors")
        await probe.close()


@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        ((437, 437), (), ALLOW),  # openat2
        ((257, 56), (), refused_with(errno.EPERM)),  # openat
        ((91, 52), (3, 0o777), ALLOW),  # fchmod
        ((91, 52), (3, 0o4755), refused_with(errno.EPERM)),
        ((258, 34), (3, 0, 0o755), ALLOW),  # mkdirat
        ((258, 34), (3, 0, 0o2755), refused_with(errno.EPERM)),
        ((41, 198), (1, 1, 0), refused_with(errno.EPERM)),  # socket
        ((59, 221), (), refused_with(errno.EPERM)),  # execve
        ((56, 220), (17,), refused_with(errno.EPERM)),  # clone, as fork does
        ((56, 220), (0x3D0F00,), refused_with(errno.EPERM)),  # as a thread
        ((259, 33), (), refused_with(errno.EPERM)),  # mknodat
        ((161, 51), (), refused_with(errno.EPERM)),  # chroot
        ((81, 50), (), refused_with(errno.EPERM)),  # fchdir
        ((47, 212), (), refused_with(errno.EPERM)),  # recvmsg
    ],
)
def test_rule_81_the_calls_are_a_list_on_both_architectures(call, arguments, verdict):
    for architecture in ARCHITECTURES.values():
        program = build(architecture, working_on_files(7))
        assert verdict == decide(program, architecture.audit, call[architecture.column], *arguments)


async def test_rule_81_what_a_child_says_is_not_believed_and_one_that_stays_is_killed(sandbox):
    async with Launcher({KIND: "tests.security.hostile_files_kind:KIND"}, None) as launcher:
        folder = Folder(launcher, Place(sandbox.descriptor, UID, GID), FileLimits(seconds=20))
        for path in (b"garbage", b"huge", b"half", b"other", b"entries"):
            for asked in (
                folder.stat(path),
                folder.remove(path),
                folder.list(path, limit=1000) if path != b"other" else get(folder, path),
                put(folder, path, bytes(1000)),
            ):
                with refused(Reason.SANDBOX_UNAVAILABLE):
                    await asked
        with refused(Reason.SANDBOX_UNAVAILABLE):
            await get(folder, b"chunks")
        hasty = Folder(launcher, Place(sandbox.descriptor, UID, GID), FileLimits(seconds=0.2))
        with refused(Reason.DEADLINE):
            await hasty.stat(b"stays")
        assert launcher.children == 0
