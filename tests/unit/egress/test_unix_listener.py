"""The socket that a sandbox gets to see: who reaches it, what it leaves behind."""

import os
import socket
import stat

import pytest

from clawbox.egress.unix_listener import UnixListener, UnsafeFolderError


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def connects(path):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "sandbox" / "proxy.sock"


def test_the_folder_is_closed_to_others_and_the_socket_open_to_who_gets_in(path):
    with UnixListener(path):
        assert mode(path.parent.parent) == 0o700
        assert mode(path.parent) == 0o555
        assert mode(path) == 0o666
        assert connects(path)


def test_nothing_is_left(path):
    listener = UnixListener(path)
    listener.close()
    listener.close()
    assert not path.parent.exists()
    assert path.parent.parent.exists()


def test_what_others_put_beside_it_stays(path):
    path.parent.mkdir(parents=True)
    path.parent.parent.chmod(0o700)
    (path.parent / "ca.pem").write_text("x")
    with UnixListener(path):
        pass
    assert [entry.name for entry in path.parent.iterdir()] == ["ca.pem"]


def test_the_socket_of_a_process_that_was_killed_is_replaced(path):
    dead = UnixListener(path)
    dead.socket.close()
    with UnixListener(path):
        assert connects(path)
    os.close(dead._folder)


def test_a_file_in_its_place_is_kept_and_said(path):
    path.parent.mkdir(parents=True)
    path.parent.parent.chmod(0o700)
    path.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        UnixListener(path)
    assert path.read_text() == "mine"


def test_a_folder_above_that_others_may_enter_is_refused(path):
    path.parent.parent.mkdir(mode=0o755)
    with pytest.raises(UnsafeFolderError, match="0700"):
        UnixListener(path)


def test_a_folder_that_is_a_link_is_refused(path, tmp_path):
    path.parent.parent.mkdir(mode=0o700)
    path.parent.symlink_to(tmp_path)
    with pytest.raises(OSError, match="directory"):
        UnixListener(path)


def test_a_path_longer_than_an_address_may_be(tmp_path):
    path = tmp_path / ("r" * 100) / ("s" * 100) / "proxy.sock"
    with UnixListener(path), socket.socket(socket.AF_UNIX) as client:
        folder = os.open(path.parent, os.O_PATH)
        try:
            client.connect(f"/proc/self/fd/{folder}/proxy.sock")
        finally:
            os.close(folder)
