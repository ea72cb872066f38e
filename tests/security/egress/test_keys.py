"""The master key leaves no trace, and the identity key is nobody else's."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clawbox.egress.keeper import bootstrap
from clawbox.egress.keeper.bootstrap import DESCRIPTOR_VARIABLE, open_keys, read_public_key
from clawbox.egress.vault import KEY_VARIABLE, Fault, VaultError
from tests.live import running

KEY = "5ec4e7" + "ab" * 29

# What the server does, in little: hides the key, opens it, and shows what can be seen of it.
PROGRAM = """
import os, sys
from pathlib import Path
from clawbox.egress.keeper.bootstrap import hide_master_key, open_keys
hide_master_key()
with open_keys(Path(sys.argv[1]), None) as keys:
    print(os.pread(keys.key, 100, 0).decode() if keys.key is not None else keys.no_key)
    print(Path("/proc/self/environ").read_bytes(), Path("/proc/self/cmdline").read_bytes(), dict(os.environ))
    print([fd for fd in (keys.key, keys.identity) if fd is not None and os.get_inheritable(fd)])
"""


def run(folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder],
        env={"PATH": os.environ["PATH"], "ONE_MORE": "stays", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_rule_62_the_program_is_executed_anew_without_the_key_in_its_environment(tmp_path):
    key, seen, inheritable = run(tmp_path, CLAWBOX_MASTER_KEY=KEY)
    assert key == KEY
    assert KEY not in seen
    assert KEY_VARIABLE not in seen.replace(DESCRIPTOR_VARIABLE, "")
    assert "ONE_MORE" in seen
    assert inheritable == "[]"


def test_without_a_key_nothing_is_hidden_and_it_is_said_that_there_is_none(tmp_path):
    for environment in ({}, {KEY_VARIABLE: ""}):
        told, seen, _ = run(tmp_path, **environment)
        assert told == Fault.NO_KEY.value
        assert DESCRIPTOR_VARIABLE not in seen


def test_rule_62_a_running_server_and_its_children_show_the_key_to_nobody(tmp_path):
    with running(tmp_path, CLAWBOX_MASTER_KEY=KEY) as server:
        pids = [server.process.pid, *server.descendants()]
        assert len(pids) > 1
        for pid in pids:
            for name in ("environ", "cmdline"):
                assert KEY.encode() not in shown(pid, name), f"{name} of {pid}"
        assert KEY not in subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
        assert KEY not in server.log.read_text()
        assert not in_memory(server.process.pid, KEY.encode())


def shown(pid, name):
    """What /proc has of a process; nothing of one that ended since it was seen, as some do."""
    try:
        return Path("/proc", str(pid), name).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def in_memory(pid, text):
    """Whether the text is anywhere in what a child of this process has written to."""
    proc = Path("/proc", str(pid))
    os.kill(
        pid, signal.SIGSTOP
    )  # else its threads give memory back between a look at the map and one at that
    try:
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        with (proc / "mem").open("rb", buffering=0) as memory:
            for line in (proc / "maps").read_text().splitlines():
                where, access, *_ = line.split()
                first, last = (int(part, 16) for part in where.split("-"))
                if access.startswith("rw"):
                    memory.seek(first)
                    content = memory.read(last - first)
                    assert len(content) == last - first
                    if text in content:
                        return True
    finally:
        os.kill(pid, signal.SIGCONT)
    return False


def test_a_descriptor_that_is_not_the_programs_own_is_refused(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        for text in (str(file.fileno()), "-1", "9999", "x"):
            with pytest.raises(VaultError, match=DESCRIPTOR_VARIABLE):
                open_keys(tmp_path, None, {DESCRIPTOR_VARIABLE: text})


# The key's file


def test_rule_62_a_key_file_is_opened_and_read_by_nobody_here(tmp_path, monkeypatch):
    file = tmp_path / "master.key"
    file.write_text(KEY)
    file.chmod(0o600)
    monkeypatch.setattr(os, "read", None)
    with open_keys(tmp_path, file, {KEY_VARIABLE: "something else"}) as keys:
        assert keys.key is not None
        assert os.fstat(keys.key).st_ino == file.stat().st_ino
        assert os.lseek(keys.key, 0, os.SEEK_CUR) == 0


def test_rule_42_a_key_file_that_cannot_be_used_is_no_key_and_the_reason_is_told(tmp_path):
    file = tmp_path / "master.key"
    with open_keys(tmp_path, file, {KEY_VARIABLE: KEY}) as keys:
        assert (keys.key, keys.no_key) == (None, f"{file}: {Fault.KEY_FILE.value}")
    file.write_text(KEY)
    file.chmod(0o640)
    with open_keys(tmp_path, file, {KEY_VARIABLE: KEY}) as keys:
        assert (keys.key, keys.no_key) == (None, f"{file}: {Fault.NOT_PRIVATE.value}")


# The identity key


def test_the_identity_key_is_made_once_and_is_private(tmp_path):
    folder = tmp_path / "new"
    with open_keys(folder, None, {}) as keys:
        first = os.pread(keys.identity, 100, 0)
    with open_keys(folder, None, {}) as keys:
        assert os.pread(keys.identity, 100, 0) == first
    assert len(first) == 32
    assert [path.name for path in folder.iterdir()] == ["identity.key"]
    assert stat.S_IMODE((folder / "identity.key").stat().st_mode) == 0o600
    assert len(read_public_key(folder)) == 32


@pytest.mark.parametrize("size", [0, 31, 33, 5000])
def test_an_identity_key_of_another_size_is_an_error(tmp_path, size):
    path = tmp_path / "identity.key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(VaultError, match=r"identity\.key"):
        open_keys(tmp_path, None, {})


def test_rule_36_an_identity_key_that_others_can_read_is_an_error(tmp_path):
    path = tmp_path / "identity.key"
    path.write_bytes(bytes(32))
    path.chmod(0o604)
    with pytest.raises(VaultError, match="chmod 600"):
        open_keys(tmp_path, None, {})


def test_an_identity_key_of_another_user_is_an_error(tmp_path, monkeypatch):
    with open_keys(tmp_path, None, {}):
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(VaultError, match="another user"):
            open_keys(tmp_path, None, {})


def test_an_identity_key_that_is_a_link_is_an_error(tmp_path):
    with open_keys(tmp_path / "real", None, {}):
        (tmp_path / "identity.key").symlink_to(tmp_path / "real" / "identity.key")
        with pytest.raises(VaultError, match="not a regular file"):
            open_keys(tmp_path, None, {})


def test_of_two_that_make_an_identity_key_the_first_wins(tmp_path, monkeypatch):
    make = bootstrap._make_identity

    def race(path):
        make(path)
        first = path.read_bytes()
        make(path)
        assert path.read_bytes() == first

    monkeypatch.setattr(bootstrap, "_make_identity", race)
    with open_keys(tmp_path, None, {}) as keys:
        assert os.fstat(keys.identity).st_size == 32
