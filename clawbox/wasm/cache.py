"""Compiled tools on disk, in a folder that belongs to the server alone.

To load an artifact is to run it: a patched byte in a serialized module ran (docs/security.md, 91). So the
folder is 0700, files in it are 0444 and the server's, and each has an HMAC-SHA256, by a key that is in the
folder too, over everything that names it and every byte of it. An artifact that does not check out is never
loaded; the caller compiles anew. Several servers may share a folder: every file appears by rename or link,
whole or not at all.

Files: ``key`` (0600, 32 bytes), ``DIGEST.FINGERPRINT.json`` (the seal) and ``DIGEST.FINGERPRINT.ID.cwasm``,
which the seal names.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import mmap
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from clawbox.wasm.engine import ENGINE_FINGERPRINT
from clawbox.wasm.model import Abi  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger("clawbox.wasm.cache")

KEY_BYTES = 32
UNUSED_DAYS = 365
"""Artifacts that no server loaded for so long are removed when a server starts. Longer than a server runs:
another that shares the folder loads an artifact once, and may open it again much later."""
_STALE_SECONDS = 3600
_MAX_SEAL = 4096
_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{32}\.(?:json|[0-9a-f]{32}\.cwasm)|\.new-[0-9a-f]{32}")


class CacheError(Exception):
    """The cache folder cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled tool that has been checked."""

    digest: str
    """SHA-256 of the WebAssembly bytes, 64 hexadecimal digits."""
    abi: Abi
    path: Path
    wasm_bytes: int
    """Size of the WebAssembly binary."""


class _Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digest: str
    fingerprint: str
    abi: Abi
    wasm_bytes: int
    file: str
    file_bytes: int
    mac: str


class ArtifactCache:
    """The folder. Its methods read and write whole files: call them off the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = b""

    def open(self) -> None:
        """Make or check the folder and its key, and remove what nobody uses; raises CacheError."""
        try:
            self._claim_folder()
            self._key = self._read_or_make_key()
            self._prune()
        except OSError as error:
            raise CacheError(f"the cache folder {self._folder} cannot be used: {error.strerror}") from error

    def load(self, digest: str) -> Artifact | None:
        """The artifact for these bytes and this engine, checked byte by byte; None: compile."""
        try:
            return self._load(digest)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, _RefusedError) as error:
            log.warning("artifact_refused", digest=digest, why=str(error))
            return None

    def store(self, digest: str, abi: Abi, wasm_bytes: int, contents: bytes | memoryview) -> Artifact:
        """Seal and keep an artifact; raises OSError when the disk says so."""
        name = f"{digest}.{ENGINE_FINGERPRINT}.{secrets.token_hex(16)}.cwasm"
        seal = _Seal(digest, ENGINE_FINGERPRINT, abi, wasm_bytes, name, len(contents), "")
        mac = self._mac(seal, hashlib.sha256(contents).digest())
        seal = msgspec.structs.replace(seal, mac=mac)
        # A new name each time: of two servers that store at once, neither breaks the other's seal.
        self._write(name, contents, 0o444)
        self._write(f"{digest}.{ENGINE_FINGERPRINT}.json", msgspec.json.encode(seal), 0o444)
        return Artifact(digest, abi, self._folder / name, wasm_bytes)

    def _load(self, digest: str) -> Artifact:
        seal_path = self._folder / f"{digest}.{ENGINE_FINGERPRINT}.json"
        with _opened(seal_path, 0o444) as descriptor:
            seal = msgspec.json.decode(os.read(descriptor, _MAX_SEAL), type=_Seal)
        if seal.digest != digest or seal.fingerprint != ENGINE_FINGERPRINT or not _NAME.fullmatch(seal.file):
            raise _RefusedError("its seal is another's")
        path = self._folder / seal.file
        with _opened(path, 0o444) as descriptor:
            if os.fstat(descriptor).st_size != seal.file_bytes or seal.file_bytes == 0:
                raise _RefusedError("its size is not the sealed one")
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as contents:
                mac = self._mac(seal, hashlib.sha256(contents).digest())
        if not hmac.compare_digest(mac, seal.mac):
            raise _RefusedError("its MAC does not match")
        os.utime(seal_path)
        os.utime(path)
        return Artifact(digest, seal.abi, path, seal.wasm_bytes)

    def _claim_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for parent in self._folder.parents:
            mode = parent.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise CacheError(f"everyone can write to {parent}, so nothing below it is safe as cache_dir")
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise CacheError(
                f"{self._folder} is not a folder of uid {os.geteuid()}; choose another cache_dir"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            # Ours, but others could write: what is in it is sealed, and from now on they cannot.
            log.warning(
                "cache_folder_mode_mended", folder=str(self._folder), mode=f"{found.st_mode & 0o7777:o}"
            )
            self._folder.chmod(0o700)

    def _mac(self, seal: _Seal, contents_digest: bytes) -> str:
        named = msgspec.json.encode(msgspec.structs.replace(seal, mac=""))
        return hmac.digest(self._key, named + b"\0" + contents_digest, "sha256").hex()

    def _write(self, name: str, contents: bytes | memoryview, mode: int) -> None:
        temporary = self._folder / f".new-{secrets.token_hex(16)}"
        try:
            _create(temporary, contents, mode)
            temporary.rename(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _read_or_make_key(self) -> bytes:
        path = self._folder / "key"
        for _ in range(8):
            try:
                return _read_key(path)
            except FileNotFoundError:
                pass
            except _RefusedError as error:
                # Whoever could touch it may know it: with a new one, nothing that is there checks out.
                log.warning("cache_key_replaced", why=str(error))
                path.unlink(missing_ok=True)
            temporary = self._folder / f".new-{secrets.token_hex(16)}"
            _create(temporary, secrets.token_bytes(KEY_BYTES), 0o600)
            with contextlib.suppress(FileExistsError):  # the other server's key is as good
                os.link(temporary, path)
            temporary.unlink()
        raise CacheError(f"{path} is replaced again and again by something else; choose another cache_dir")

    def _prune(self) -> None:
        now, kept, sealed = time.time(), [], set[str]()
        for entry in os.scandir(self._folder):
            if not _NAME.fullmatch(entry.name):
                continue
            limit = _STALE_SECONDS if entry.name.startswith(".new-") else UNUSED_DAYS * 86400
            with contextlib.suppress(FileNotFoundError):
                if now - entry.stat(follow_symlinks=False).st_mtime > limit:
                    Path(entry.path).unlink()
                elif entry.name.endswith(".cwasm"):
                    kept.append(entry)
                elif entry.name.endswith(".json"):
                    with contextlib.suppress(OSError, msgspec.MsgspecError):
                        sealed.add(msgspec.json.decode(Path(entry.path).read_bytes(), type=_Seal).file)
        for entry in kept:
            # An artifact that a later one replaced, or whose writer died before it was sealed.
            with contextlib.suppress(FileNotFoundError):
                age = now - entry.stat(follow_symlinks=False).st_mtime
                if entry.name not in sealed and age > _STALE_SECONDS:
                    Path(entry.path).unlink()


class _RefusedError(Exception):
    """A file that is not as this module writes it."""


@contextlib.contextmanager
def _opened(path: Path, mode: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _RefusedError("it is not a regular file")
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != mode:
            raise _RefusedError(
                f"owner or mode is not ours: uid {found.st_uid}, {stat.S_IMODE(found.st_mode):o}"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _read_key(path: Path) -> bytes:
    with _opened(path, 0o600) as descriptor:
        key = os.read(descriptor, KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise _RefusedError("its size is wrong")
    return key


def _create(path: Path, contents: bytes | memoryview, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(contents)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
