"""How the keys come to the keeper without a trace (docs/security.md, 62).

A variable that a process was started with stands in /proc/PID/environ for as long as it runs, whatever it
does to ``os.environ``. So `clawbox serve` puts the master key into a sealed memfd and executes itself anew
without the variable; what runs then has a descriptor that it never reads and passes on. Whoever embeds the
server (``clawbox.app.build_server``) cannot be executed anew: there the key comes from ``os.environ`` as it
is, or better from ``credentials.master_key_file``, which is opened here and read by the keeper alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from clawbox.egress.keeper.identity import IDENTITY_BYTES, Identity
from clawbox.egress.vault import (
    KEY_VARIABLE,
    MAX_KEY_BYTES,
    Fault,
    VaultError,
    open_private,
    sync_folder,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from pathlib import Path
    from types import TracebackType

    from clawbox.config import Config

DESCRIPTOR_VARIABLE: Final = "CLAWBOX_MASTER_KEY_FD"
"""Tells the program that was executed anew where its key is: a number, which is no secret."""
IDENTITY_FILE: Final = "identity.key"

_MEMFD: Final = "clawbox-master-key"
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class Keys:
    """Descriptors of both keys, close-on-exec and never read here; closed when left."""

    identity: int
    key: int | None
    no_key: str = ""
    """Why there is no master key; empty where there is one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (self.identity, self.key):
            if descriptor is not None:
                os.close(descriptor)


def hide_master_key(environ: Mapping[str, str] = os.environ) -> None:
    """Execute this program anew without the master key in its environment; returns where it is not there.

    To be called before anything else is started: threads, children and open files do not survive it.
    Raises OSError.
    """
    if KEY_VARIABLE not in environ:
        return
    clean = {
        name: value for name, value in environ.items() if name not in {KEY_VARIABLE, DESCRIPTOR_VARIABLE}
    }
    if environ[KEY_VARIABLE]:
        descriptor = _sealed(environ[KEY_VARIABLE])
        os.set_inheritable(descriptor, True)  # noqa: FBT003
        clean[DESCRIPTOR_VARIABLE] = str(descriptor)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], clean)  # noqa: S606


def open_keys(folder: Path, key_file: Path | None, environ: MutableMapping[str, str] = os.environ) -> Keys:
    """Both keys of a server whose settings are in ``folder``; the identity key is made at the first start.

    The master key is in ``key_file``, else where :func:`hide_master_key` left it, else in ``environ``. One
    that is missing, or whose file is not private, is told in the result: the server runs without
    credentials. Raises VaultError for an identity key that others can read, that is another user's or has
    another size, and OSError where none can be made.
    """
    with contextlib.ExitStack() as stack:
        hidden = _take_hidden(environ)
        if hidden is not None:
            stack.callback(os.close, hidden)
        identity = _open_identity(folder / IDENTITY_FILE)
        stack.callback(os.close, identity)
        if key_file is not None:
            try:
                key = open_private(key_file, MAX_KEY_BYTES)
            except VaultError as error:
                return Keys(os.dup(identity), None, str(error))
            except FileNotFoundError:
                return Keys(os.dup(identity), None, f"{key_file}: {Fault.KEY_FILE.value}")
        elif hidden is not None:
            key = os.dup(hidden)
        elif environ.get(KEY_VARIABLE):
            key = _sealed(environ[KEY_VARIABLE])
        else:
            return Keys(os.dup(identity), None, Fault.NO_KEY.value)
        return Keys(os.dup(identity), key)


def identity_folder(config: Config) -> Path:
    """Where a server with these settings has its identity key: beside its settings, else its credentials."""
    return config.file.parent if config.file is not None else config.credentials.store_path.parent


def read_public_key(folder: Path) -> bytes:
    """What a server with its settings in ``folder`` signs audit heads with (Ed25519), from its identity key.

    Raises VaultError, and FileNotFoundError where no server ever ran.
    """
    descriptor = _open_sized(folder / IDENTITY_FILE)
    try:
        return Identity(os.pread(descriptor, IDENTITY_BYTES, 0)).public_key
    finally:
        os.close(descriptor)


def _take_hidden(environ: MutableMapping[str, str]) -> int | None:
    """The descriptor that was left for this program; raises VaultError unless it is a sealed memfd."""
    text = environ.pop(DESCRIPTOR_VARIABLE, "")
    if not text:
        return None
    try:
        descriptor = int(text)
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        os.set_inheritable(descriptor, False)  # noqa: FBT003
    except (ValueError, OverflowError, OSError):
        sealed = False
    if not sealed:
        raise VaultError(Fault.BAD_DESCRIPTOR, DESCRIPTOR_VARIABLE)
    return descriptor


def _sealed(text: str) -> int:
    descriptor = os.memfd_create(_MEMFD, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, os.fsencode(text)[:MAX_KEY_BYTES])
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_identity(path: Path) -> int:
    try:
        return _open_sized(path)
    except FileNotFoundError:
        _make_identity(path)
        return _open_sized(path)


def _open_sized(path: Path) -> int:
    descriptor = open_private(path, MAX_KEY_BYTES)
    if os.fstat(descriptor).st_size != IDENTITY_BYTES:
        os.close(descriptor)
        raise VaultError(Fault.BAD_IDENTITY, path)
    return descriptor


def _make_identity(path: Path) -> None:
    """Made under another name: whoever finds the file finds all of it, and of two makers the first wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
        try:
            os.fchmod(file.fileno(), 0o600)
            file.write(os.urandom(IDENTITY_BYTES))
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(temporary)
        finally:
            temporary.unlink()
    sync_folder(path.parent)
