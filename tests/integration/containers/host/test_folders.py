"""A container's folder on the host: modes, contents, and nothing left of it."""

import os
import platform
import stat
import uuid

import pytest

from clawbox.containers.gate import gate_binary
from clawbox.containers.host.folders import StateFolder
from clawbox.containers.mounts import MountError
from clawbox.containers.users import User

USER = User(912_345, 912_345)
MACHINE = platform.machine()


@pytest.fixture
def folder(state):
    made = state.container(str(uuid.uuid4()))
    made.make(USER, "/workspace", MACHINE)
    return made


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_rule_88_every_mode_is_set_whatever_the_umask(state, umask):
    before = os.umask(umask)
    try:
        folder = state.container(str(uuid.uuid4()))
        folder.make(USER, "/workspace", MACHINE)
        folder.write({"ca.pem": b"x"})
        folder.make_fifo("exec-1").close()
    finally:
        os.umask(before)

    found = {path.name: oct(mode(path)) for path in (state.root, folder.path, *folder.path.rglob("*"))}

    assert found == {
        "containers": "0o700",
        folder.path.name: "0o700",
        "run": "0o555",
        "gate": "0o555",
        "hold": "0o555",
        "go": "0o444",
        "exec-1": "0o444",
        "ca.pem": "0o444",
        "passwd": "0o444",
        "group": "0o444",
    }
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in folder.path.rglob("*")}
    assert owners == {(os.geteuid(), os.getegid())}


def test_what_is_in_it_is_the_gate_and_who_the_user_is(folder):
    assert (folder.run / "gate").read_bytes() == gate_binary(MACHINE)
    assert "sandbox:x:912345:912345:sandbox:/workspace:" in folder.passwd.read_text()
    assert "sandbox:x:912345:" in folder.group.read_text()
    mounts = folder.mounts(folder.path)
    assert (mounts.run, mounts.passwd) == (str(folder.run), str(folder.passwd))


def test_files_are_replaced_at_once_and_ours_are_not(folder):
    folder.write({"ca.pem": b"1"})
    folder.write({"ca.pem": b"2", "b": b"3"})

    assert (folder.run / "ca.pem").read_bytes() == b"2"
    for name in ("gate", "go", "hold", "proxy.sock", "exec-1", "../passwd", ".hidden", "a/b", ""):
        with pytest.raises(ValueError, match="cannot be a file"):
            folder.write({name: b""})
    assert sorted(path.name for path in folder.run.iterdir()) == ["b", "ca.pem", "gate", "go", "hold"]


def test_fifos_of_execs_come_and_go(folder):
    folder.make_fifo("exec-a").close()
    with pytest.raises(FileExistsError):
        folder.make_fifo("exec-a")
    assert folder.exec_fifos() == ["exec-a"]

    folder.remove_fifo("exec-a")
    folder.remove_fifo("exec-a")

    assert folder.exec_fifos() == []
    for name in ("go", "gate", "exec-", "exec-../x"):
        with pytest.raises(ValueError, match="not the FIFO of an exec"):
            folder.remove_fifo(name)


def test_a_folder_is_made_once_and_removed_with_everything_in_it(state, folder):
    with pytest.raises(FileExistsError):
        folder.make(USER, "/workspace", MACHINE)
    assert state.ids() == [folder.path.name]

    folder.remove()
    folder.remove()

    assert state.ids() == []


def test_a_half_made_folder_is_listed_and_removed(state, monkeypatch):
    folder = state.container(str(uuid.uuid4()))
    monkeypatch.setattr(os, "mkfifo", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        folder.make(USER, "/workspace", MACHINE)

    assert state.ids() == [folder.path.name]
    folder.remove()

    assert not folder.exists


def test_what_is_no_id_names_no_folder(state):
    for name in ("", "..", "x", "../" + str(uuid.uuid4()), str(uuid.uuid4()).upper()):
        with pytest.raises(ValueError, match="not the id"):
            state.container(name)


def test_rule_78_a_state_folder_that_others_could_change_is_refused(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(0o755)
    strangers = tmp_path / "strangers"
    strangers.mkdir(0o700)
    os.chown(strangers, USER.uid, USER.gid)
    (tmp_path / "link").symlink_to(tmp_path)

    for root, said in (
        (shared / "containers", "can be written"),
        (open_to_all, "must have 0700"),
        (strangers, "not a folder of this server's"),
        (strangers / "containers", "belongs to uid"),
        (tmp_path / "link", "not a folder"),
        (tmp_path / "link" / "containers", "not a folder"),
        (tmp_path / "missing" / "containers", "cannot be made"),
    ):
        with pytest.raises(MountError, match=said):
            StateFolder(root).open()
