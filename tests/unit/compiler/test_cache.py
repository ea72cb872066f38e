"""The cache: what was touched is never loaded (docs/security.md, 91), and servers can share a folder."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from clawbox.wasm.cache import ArtifactCache, CacheError
from clawbox.wasm.model import Abi

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "ab" * 32
CONTENTS = bytes(range(256)) * 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> ArtifactCache:
    cache = ArtifactCache(folder)
    cache.open()
    cache.store(DIGEST, Abi.COMPONENT, 123, CONTENTS)
    return cache


def artifact_file(folder: Path) -> Path:
    (found,) = folder.glob("*.cwasm")
    return found


def seal_file(folder: Path) -> Path:
    (found,) = folder.glob("*.json")
    return found


def rewrite(path: Path, contents: bytes, mode: int = 0o444) -> None:
    path.chmod(0o600)
    path.write_bytes(contents)
    path.chmod(mode)


def test_what_was_stored_comes_back(cache, folder):
    found = cache.load(DIGEST)
    assert found is not None
    assert (found.abi, found.wasm_bytes, found.path.read_bytes()) == (Abi.COMPONENT, 123, CONTENTS)
    assert cache.load("cd" * 32) is None


@pytest.mark.parametrize("position", [0, 1000, len(CONTENTS) - 1])
def test_one_patched_byte_is_not_loaded(cache, folder, position):
    patched = bytearray(CONTENTS)
    patched[position] ^= 1
    rewrite(artifact_file(folder), bytes(patched))
    with capture_logs() as logs:
        assert cache.load(DIGEST) is None
    assert [entry["event"] for entry in logs] == ["artifact_refused"]


def _longer(folder: Path) -> None:
    rewrite(artifact_file(folder), CONTENTS + b"x")


def _shorter(folder: Path) -> None:
    rewrite(artifact_file(folder), CONTENTS[:-1])


def _empty(folder: Path) -> None:
    rewrite(artifact_file(folder), b"")


def _writable(folder: Path) -> None:
    artifact_file(folder).chmod(0o644)


def _link(folder: Path) -> None:
    path = artifact_file(folder)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.write_bytes(CONTENTS)
    elsewhere.chmod(0o444)
    path.unlink()
    path.symlink_to(elsewhere)


def _pipe(folder: Path) -> None:
    path = artifact_file(folder)
    path.unlink()
    os.mkfifo(path, 0o444)


def _seal_of_another_abi(folder: Path) -> None:
    path = seal_file(folder)
    rewrite(path, path.read_bytes().replace(b'"component"', b'"command_module"'))


def _seal_of_another_tool(folder: Path) -> None:
    path = seal_file(folder)
    rewrite(path, path.read_bytes().replace(DIGEST.encode(), b"cd" * 32))


def _seal_that_points_outside(folder: Path) -> None:
    path = seal_file(folder)
    rewrite(path, path.read_bytes().replace(artifact_file(folder).name.encode(), b"../elsewhere"))


def _garbled_seal(folder: Path) -> None:
    rewrite(seal_file(folder), b"\xff{")


def _writable_seal(folder: Path) -> None:
    seal_file(folder).chmod(0o664)


@pytest.mark.parametrize(
    "touch",
    [
        *(_longer, _shorter, _empty, _writable, _link, _pipe, _writable_seal, _garbled_seal),
        *(_seal_of_another_abi, _seal_of_another_tool, _seal_that_points_outside),
    ],
)
def test_what_is_not_as_it_was_written_is_not_loaded(cache, folder, touch):
    touch(folder)
    assert cache.load(DIGEST) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_anothers_file_is_not_loaded(cache, folder):
    os.chown(artifact_file(folder), 12345, -1)
    assert cache.load(DIGEST) is None


def test_an_artifact_of_another_key_is_not_loaded(cache, folder):
    rewrite(folder / "key", b"k" * 32, 0o600)
    other = ArtifactCache(folder)
    other.open()
    assert other.load(DIGEST) is None
    assert cache.load(DIGEST) is not None


@pytest.mark.parametrize(("contents", "mode"), [(b"k" * 32, 0o644), (b"short", 0o600), (b"k" * 33, 0o600)])
def test_a_key_that_others_may_know_is_replaced(cache, folder, contents, mode):
    rewrite(folder / "key", contents, mode)
    reopened = ArtifactCache(folder)
    reopened.open()
    assert (folder / "key").stat().st_mode & 0o7777 == 0o600
    assert (folder / "key").read_bytes() != contents
    assert reopened.load(DIGEST) is None


def test_servers_that_start_at_once_agree_on_one_key(folder):
    caches = [ArtifactCache(folder) for _ in range(8)]
    threads = [threading.Thread(target=cache.open) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    caches[0].store(DIGEST, Abi.COMPONENT, 1, CONTENTS)
    assert all(cache.load(DIGEST) is not None for cache in caches)
    assert not list(folder.glob(".new-*"))


def test_servers_that_store_the_same_at_once_leave_one_that_loads(cache, folder):
    other = ArtifactCache(folder)
    other.open()
    threads = [
        threading.Thread(target=one.store, args=(DIGEST, Abi.COMPONENT, 1, CONTENTS))
        for one in (cache, other) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.load(DIGEST) is not None
    assert other.load(DIGEST) is not None


def test_a_folder_open_to_others_is_closed(folder):
    folder.mkdir()
    folder.chmod(0o777)
    ArtifactCache(folder).open()
    assert folder.stat().st_mode & 0o7777 == 0o700


def test_a_folder_that_is_a_link_is_refused(folder, tmp_path):
    (tmp_path / "real").mkdir()
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(CacheError, match="not a folder of uid"):
        ArtifactCache(folder).open()


def test_a_folder_below_one_that_everyone_can_write_is_refused(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(CacheError, match="everyone can write"):
        ArtifactCache(shared / "cache").open()


def test_what_nobody_loaded_for_a_year_goes(cache, folder):
    old = time.time() - 366 * 86400
    for path in folder.glob("*.*"):
        os.utime(path, (old, old))
    stray = folder / "notes.txt"
    stray.write_text("not ours")
    left = folder / f".new-{'0' * 32}"
    left.write_bytes(b"")
    os.utime(left, (old, old))
    ArtifactCache(folder).open()
    assert {path.name for path in folder.iterdir()} == {"key", "notes.txt"}


def test_what_a_newer_artifact_replaced_goes(cache, folder):
    replaced = artifact_file(folder)
    cache.store(DIGEST, Abi.COMPONENT, 123, CONTENTS)
    old = time.time() - 2 * 3600
    for path in folder.glob("*.cwasm"):
        os.utime(path, (old, old))
    ArtifactCache(folder).open()
    assert artifact_file(folder) != replaced
    assert cache.load(DIGEST) is not None
