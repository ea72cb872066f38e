"""Files into containers and out of them, also from a server that lies about their names."""

from __future__ import annotations

import json
import os
import stat

import pytest
from clawbox_client.v1 import containers_pb2 as pb

from tests.integration.client.container_fakes import FIRST


@pytest.fixture
def files(server):
    server.containers.add(FIRST, state=pb.CONTAINER_STATE_RUNNING)
    server.containers.put(b"/workspace", None)
    return server.containers


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def names(folder):
    return sorted(one.name for one in folder.iterdir())


async def test_a_file_in_and_out(cli, files, home):
    content = os.urandom(200_000)
    (home / "f").write_bytes(content)
    (home / "f").chmod(0o750)

    assert (await cli("cp", "f", f"{FIRST}:/workspace/")).code == 0
    assert (files.contents[b"/workspace/f"] == content, files.files[b"/workspace/f"].mode) == (True, 0o750)
    ended = await cli("cp", f"{FIRST[:12]}:/workspace/f", "g", "--json")

    assert json.loads(ended.out) == {"files": 1, "bytes": 200_000, "skipped": 0}
    assert ((home / "g").read_bytes() == content, mode(home / "g")) == (True, 0o750)


async def test_a_folder_in_and_out(cli, files, home):
    (home / "d/sub").mkdir(parents=True)
    (home / "d/sub/\udcff").write_bytes(b"odd name")
    (home / "d/a").write_bytes(b"a")
    (home / "d/sub").chmod(0o550)

    assert (await cli("cp", "d", f"{FIRST}:/workspace")).code == 0
    assert files.contents == {b"/workspace/d/a": b"a", b"/workspace/d/sub/\xff": b"odd name"}
    files.files[b"/workspace/d/sub"].mode = 0o550
    assert (await cli("cp", f"{FIRST}:/workspace/d", "copy")).code == 0

    assert (home / "copy/sub/\udcff").read_bytes() == b"odd name"
    assert mode(home / "copy/sub") == 0o550
    (home / "into").mkdir()
    assert (await cli("cp", f"{FIRST}:/workspace/d/.", "into")).code == 0
    assert names(home / "into") == ["a", "sub"]
    assert (await cli("cp", f"{FIRST}:/workspace/d", "into")).code == 0
    assert (home / "into/d/a").read_bytes() == b"a"
    assert (await cli("cp", "d/.", f"{FIRST}:/workspace")).code == 0
    assert files.contents[b"/workspace/a"] == b"a"


async def test_links_are_named_and_not_copied(cli, files, home):
    (home / "d").mkdir()
    (home / "d/link").symlink_to("/etc/passwd")
    (home / "d/a").write_bytes(b"a")
    os.mkfifo(home / "d/fifo")

    ended = await cli("cp", "d", f"{FIRST}:/workspace/d")

    assert (ended.code, files.contents) == (1, {b"/workspace/d/a": b"a"})
    assert ended.err.splitlines() == [
        "clawbox: d/fifo is not copied: it is no regular file.",
        "clawbox: d/link is not copied: it is a link.",
    ]


async def test_stdin_and_stdout(spawn, files):
    assert (await spawn("cp", "-", f"{FIRST}:/workspace/f", stdin=b"from stdin")).code == 0
    ended = await spawn("cp", f"{FIRST}:/workspace/f", "-")
    assert (ended.code, ended.out, ended.err) == (0, "from stdin", "")


async def test_what_is_not_there(cli, files, home):
    for args in (
        ("none", f"{FIRST}:/workspace/"),
        (f"{FIRST}:/workspace/none", "x"),
        (f"{FIRST}:/workspace", "no/such/folder"),
    ):
        ended = await cli("cp", *args)
        assert ended.code in {2, 4}
        assert ended.err.count("\n") == 1
        assert "b'" not in ended.err
    assert list(home.iterdir()) == []


def lie(files, *entries, folder=b"/workspace"):
    files.listed[folder] = [pb.FileInfo(**entry) for entry in entries]
    for entry in entries:
        files.files.setdefault(entry["path"], pb.FileInfo(**entry))
        files.contents.setdefault(entry["path"], b"hostile")


@pytest.mark.parametrize(
    "name",
    [
        b"..", b".", b"", b"../outside", b"a/b", b"/etc/x", b"a/../../outside", b"nul\0byte", b"x" * 5000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [pb.FILE_TYPE_REGULAR, pb.FILE_TYPE_DIRECTORY])
async def test_rule_98_a_name_that_is_more_than_a_name_is_refused(cli, files, home, name, kind):
    lie(files, {"path": b"/workspace/" + name, "type": kind, "mode": 0o644})
    (home / "in").mkdir()

    ended = await cli("cp", f"{FIRST}:/workspace/.", "in")

    assert ended.code == 1
    assert ended.err.startswith("clawbox: refused: ")
    assert [list(folder) for folder in (home.iterdir(), (home / "in").iterdir())] == [[home / "in"], []]


@pytest.mark.parametrize("path", [b"/etc/passwd", b"relative", b"/workspacex/a", b"../x", b""])
async def test_rule_98_an_entry_of_another_folder_is_refused(cli, files, home, path):
    lie(files, {"path": path, "type": pb.FILE_TYPE_REGULAR})

    assert (await cli("cp", f"{FIRST}:/workspace", "in")).code == 1
    assert [list(folder) for folder in (home.iterdir(), (home / "in").iterdir())] == [[home / "in"], []]


async def test_rule_98_links_are_not_made(cli, files, home):
    lie(
        files,
        {"path": b"/workspace/l", "type": pb.FILE_TYPE_SYMLINK, "link_target": b"/etc"},
        {"path": b"/workspace/f", "type": pb.FILE_TYPE_REGULAR},
    )

    ended = await cli("cp", f"{FIRST}:/workspace", "in")

    assert (ended.code, names(home / "in")) == (1, ["f"])
    assert ended.err == "clawbox: /workspace/l is not copied: it is a link.\n"


async def test_rule_98_no_link_that_is_here_is_followed(cli, files, home):
    outside = home / "outside"
    outside.mkdir()
    (outside / "f").write_text("mine")
    (home / "in").mkdir()
    (home / "in/d").symlink_to(outside)
    (home / "in/f").symlink_to(outside / "f")
    lie(files, {"path": b"/workspace/f", "type": pb.FILE_TYPE_REGULAR, "mode": 0o644})
    assert (await cli("cp", f"{FIRST}:/workspace/.", "in")).code == 0
    assert ((home / "in/f").is_symlink(), (home / "in/f").read_bytes()) == (False, b"hostile")

    lie(files, {"path": b"/workspace/d", "type": pb.FILE_TYPE_DIRECTORY, "mode": 0o755})
    lie(files, {"path": b"/workspace/d/f", "type": pb.FILE_TYPE_REGULAR}, folder=b"/workspace/d")
    assert (await cli("cp", f"{FIRST}:/workspace/.", "in")).code != 0

    assert (outside / "f").read_text() == "mine"
    assert names(outside) == ["f"]


async def test_rule_98_no_permission_beyond_0777_is_given(cli, files, home):
    lie(files, {"path": b"/workspace/f", "type": pb.FILE_TYPE_REGULAR, "mode": 0o6755})

    assert (await cli("cp", f"{FIRST}:/workspace", "in")).code == 0
    assert mode(home / "in/f") == 0o755


async def test_rule_98_names_that_are_shown_cannot_steer_a_terminal(cli, files):
    lie(files, {"path": b"/workspace/\x1b[31m\n\xff", "type": pb.FILE_TYPE_SYMLINK})

    ended = await cli("cp", f"{FIRST}:/workspace", "in")

    assert "\x1b" not in ended.err
    assert ended.err.count("\n") == 1


async def test_a_file_that_breaks_off_leaves_what_was_there(cli, files, home):
    (home / "f").write_text("before")
    files.put(b"/workspace/f", b"x")
    del files.contents[b"/workspace/f"]  # the fake fails when it comes to the bytes

    assert (await cli("cp", f"{FIRST}:/workspace/f", "f")).code != 0

    assert (home / "f").read_text() == "before"
    assert names(home) == ["f"]
