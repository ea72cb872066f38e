"""The encrypted file of credentials, which the Rust clawbox 0.1 can read and write, too.

The file is a 12-byte nonce, then AES-256-GCM ciphertext and tag, without version, associated data or key
derivation; inside is a JSON list of entries, and :mod:`clawbox.egress.credential_entries` says what they mean
(docs/decisions/014-credential-file.md). Errors never hold a value.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from clawbox.egress.credential_entries import (
    RULES_ENTRY,
    contents_of,
    is_entry,
    with_credential,
    without_credential,
)
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from clawbox.egress.credential_entries import Contents, Entry
    from clawbox.egress.credentials import Credential

KEY_VARIABLE: Final = "CLAWBOX_MASTER_KEY"
MAX_BYTES: Final = 4 << 20
"""Size of the file."""
MAX_KEY_BYTES: Final = 4096
"""Size of a file with the master key."""
_NONCE: Final = 12
_TAG: Final = 16


class Fault(enum.Enum):
    """What is wrong with the file or its key."""

    NO_KEY = f"there is no master key; set {KEY_VARIABLE} or credentials.master_key_file"
    BAD_KEY = "the master key is not 64 hexadecimal digits"
    KEY_FILE = "the master key's file cannot be read"
    NOT_PRIVATE = "others may read or change the file; make it `chmod 600`"
    WRONG_OWNER = "the file belongs to another user"
    NOT_A_FILE = "it is not a regular file"
    UNREADABLE = "the file cannot be read"
    UNWRITABLE = "the file cannot be written"
    TOO_LARGE = "the file is larger than a credential file can be"
    OTHER_KEY = "the file is damaged, or was written with another key"
    BAD_DESCRIPTOR = "it does not name a master key that this program put there"
    BAD_IDENTITY = "an identity key has exactly 32 bytes; this file has another size"
    MALFORMED = "the file decrypts, but what is inside is not a list of credentials"


class VaultError(ClawboxError):
    """The credential file cannot be used; nothing goes out in its place (property 42)."""

    def __init__(self, fault: Fault, path: object) -> None:
        self.fault = fault
        super().__init__(Reason.CREDENTIALS_UNREADABLE, "{path}: {fault}", path=path, fault=fault.value)


class MasterKey:
    """The 32 bytes that the file is encrypted with; never shown."""

    __slots__ = ("_bytes",)

    def __init__(self, text: str, source: object = KEY_VARIABLE) -> None:
        """``text`` is 64 hexadecimal digits. Raises VaultError."""
        digits = text.strip()
        try:
            self._bytes = bytes.fromhex(digits)
        except ValueError:
            self._bytes = b""
        if len(digits) != 64 or len(self._bytes) != 32:
            raise VaultError(Fault.BAD_KEY, source)

    def __repr__(self) -> str:
        return "MasterKey(…)"

    def cipher(self) -> AESGCM:
        """What encrypts and decrypts with it."""
        return AESGCM(self._bytes)


def read_master_key(environ: Mapping[str, str], file: Path | None) -> MasterKey:
    """The key from ``credentials.master_key_file`` where that is set, else from the environment.

    Raises VaultError; a key file that others may read is refused.
    """
    if file is not None:
        try:
            text = _read_private(file, MAX_KEY_BYTES).decode("ascii")
        except FileNotFoundError:
            raise VaultError(Fault.KEY_FILE, file) from None
        except UnicodeDecodeError:
            raise VaultError(Fault.BAD_KEY, file) from None
        return MasterKey(text, file)
    text = environ.get(KEY_VARIABLE, "")
    if not text:
        raise VaultError(Fault.NO_KEY, KEY_VARIABLE)
    return MasterKey(text)


class Vault:
    """The file at a path. Reading takes no lock: it is only ever replaced as a whole."""

    def __init__(self, path: Path, key: MasterKey) -> None:
        self.path = path
        self._key = key

    def load(self) -> Contents:
        """Everything in the file; nothing when there is no file. Raises VaultError."""
        return contents_of(self._entries())

    def put(self, credential: Credential) -> bool:
        """Add a credential, or replace the one of that name; whether there was one. Raises VaultError."""
        with self._locked():
            entries = self._entries()
            there = any(entry["name"] == credential.name for entry in entries)
            self._write(with_credential(entries, credential))
        return there

    def remove(self, name: str) -> bool:
        """Remove a credential; whether there was one. Raises VaultError."""
        with self._locked():
            entries = self._entries()
            there = name != RULES_ENTRY and any(entry["name"] == name for entry in entries)
            if there:
                self._write(without_credential(entries, name))
        return there

    def _entries(self) -> list[Entry]:
        data = read_file(self.path)
        if data is None:
            return []
        try:
            return decrypt(data, self._key)
        except VaultError as error:
            raise VaultError(error.fault, self.path) from None

    def _write(self, entries: Sequence[Entry]) -> None:
        data = encrypt(entries, self._key)
        if len(data) > MAX_BYTES:
            raise VaultError(Fault.TOO_LARGE, self.path)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_folder(self.path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise VaultError(Fault.UNWRITABLE, self.path) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; the lock is on a file of its own, since this one is replaced."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path.with_name(f"{self.path.name}.lock"), flags, 0o600)
        except OSError:
            raise VaultError(Fault.UNWRITABLE, self.path) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def read_file(path: Path) -> bytes | None:
    """A credential file as it is, encrypted: whoever has no key can read it. None: there is no file.

    Raises VaultError.
    """
    try:
        return _read_private(path, MAX_BYTES)
    except FileNotFoundError:
        return None


def decrypt(data: bytes, key: MasterKey) -> list[Entry]:
    """The entries of a file. Raises VaultError, which cannot tell a damaged file from another key."""
    if len(data) < _NONCE + _TAG:
        raise VaultError(Fault.OTHER_KEY, "credentials")
    try:
        plain = key.cipher().decrypt(data[:_NONCE], data[_NONCE:], None)
    except InvalidTag:
        raise VaultError(Fault.OTHER_KEY, "credentials") from None
    try:
        entries = json.loads(plain)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(map(is_entry, entries)):
        # Without the cause: a JSON error quotes what it read.
        raise VaultError(Fault.MALFORMED, "credentials") from None
    return entries


def encrypt(entries: Sequence[Entry], key: MasterKey) -> bytes:
    """A file with these entries, under a fresh nonce."""
    nonce = secrets.token_bytes(_NONCE)
    plain = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    return nonce + key.cipher().encrypt(nonce, plain, None)


def open_private(path: Path, limit: int) -> int:
    """A descriptor, not inherited, of a file of at most ``limit`` bytes that its owner alone can read.

    Raises VaultError, and FileNotFoundError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError:
        raise VaultError(Fault.NOT_A_FILE if path.is_symlink() else Fault.UNREADABLE, path) from None
    if (fault := _fault_of(os.fstat(descriptor), limit)) is not None:
        os.close(descriptor)
        raise VaultError(fault, path)
    return descriptor


def _fault_of(status: os.stat_result, limit: int) -> Fault | None:
    if not stat.S_ISREG(status.st_mode):
        return Fault.NOT_A_FILE
    if status.st_uid != os.geteuid():
        return Fault.WRONG_OWNER
    if stat.S_IMODE(status.st_mode) & 0o077:
        return Fault.NOT_PRIVATE
    return Fault.TOO_LARGE if status.st_size > limit else None


def _read_private(path: Path, limit: int) -> bytes:
    """What is in such a file. Raises VaultError, and FileNotFoundError."""
    descriptor = open_private(path, limit)
    try:
        return os.read(descriptor, limit)
    except OSError:
        raise VaultError(Fault.UNREADABLE, path) from None
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the kernel store which names a folder has. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
