"""Changing the settings file: making the first one, and adding and removing tokens.

A change is made under a lock on the folder, written to a new file that only its owner can read, flushed to
disk, checked by loading it, and put in place by renaming: a reader sees the old file or the new, whole.
Comments and order stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Array, Table

from clawbox.config.load import check_section, load, read_file

if TYPE_CHECKING:
    from pathlib import Path

CONFIG_NAME = "config.toml"
TOKEN_NAME = "token"  # noqa: S105 - a file's name

_LOCK_TIMEOUT_S = 10.0


class EditError(Exception):
    """The change cannot be made, and nothing was changed. ``hint`` is what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(message)


class ExistsError(EditError):
    """What should be made is there already."""


class NoSuchTokenError(EditError):
    """There is no token of that name."""


@dataclass(frozen=True, slots=True)
class Initialised:
    """What :func:`initialise` wrote."""

    folder: Path
    config_file: Path
    token_file: Path
    wrote_config: bool
    voided: bool
    """There was a token before, which is void now."""


def initialise(folder: Path, *, force: bool = False) -> Initialised:
    """Make ``folder`` (mode 0700) with ``config.toml`` and ``token`` (0600), ``tools`` and ``audit``.

    What exists stays, unless ``force``, which voids the old token and every named one. Where the settings are
    there and only their token file is missing, that is made.

    Raises ExistsError, or EditError when the folder is not fit for secrets.
    """
    folder = folder.expanduser().absolute()
    config_file, token_file = folder / CONFIG_NAME, folder / TOKEN_NAME
    try:
        _make_private(folder)
        with _locked(folder):
            has_config, has_token = config_file.exists(), token_file.exists()
            only_token = has_config and not has_token and not force and _reads(config_file, token_file)
            if (has_config or has_token) and not force and not only_token:
                there = " and ".join(str(file) for file in (config_file, token_file) if file.exists())
                raise ExistsError(
                    f"there is {there} already; nothing was changed",
                    "--force replaces it, and voids the old tokens",
                )
            for name in ("tools", "audit"):
                (folder / name).mkdir(mode=0o700, exist_ok=True)
                (folder / name).chmod(0o700)  # whatever the umask took away
            if not only_token:
                _write_private(config_file, starter())
            # Last, so that whoever is interrupted before it can run `init` again.
            _write_private(token_file, secrets.token_hex(32) + "\n")
    except OSError as error:
        raise EditError(f"{error.filename or folder}: {error.strerror or error}") from None
    return Initialised(folder, config_file, token_file, not only_token, force and (has_config or has_token))


def starter() -> str:
    """The settings file that :func:`initialise` writes."""
    return resources.files("clawbox.config").joinpath("starter.toml").read_text(encoding="utf-8")


def add_token(file: Path, entry: Mapping[str, object]) -> str:
    """Add a principal to ``[[auth.tokens]]`` and give its new token, which is kept nowhere.

    ``entry`` has ``name``, ``scopes`` and, where they are to be set, other keys of a token but ``sha256``.
    Raises ExistsError when the name is taken, EditError when the file cannot be changed, and ConfigError when
    the entry or another token is not acceptable.
    """
    token = secrets.token_hex(32)
    name = entry["name"]
    complete = {"name": name, "sha256": hashlib.sha256(token.encode()).hexdigest(), **entry}

    def add(document: tomlkit.TOMLDocument) -> None:
        tokens = _tokens(document)
        if any(one.get("name") == name for one in tokens):
            raise ExistsError(f"there is a token named {name}", f"`clawbox token revoke {name}` removes it")
        if isinstance(tokens, Array):
            row = tomlkit.inline_table()
            row.update(complete)
            tokens.append(row)
        else:
            table = tomlkit.table()
            table.update(complete)
            tokens.append(table)

    def expect(data: dict[str, Any]) -> None:
        _plain_tokens(data).append(complete)

    _edit(file, add, expect)
    return token


def remove_token(file: Path, name: str) -> None:
    """Remove a principal from ``[[auth.tokens]]``. Raises NoSuchTokenError."""

    def remove(document: tomlkit.TOMLDocument) -> None:
        tokens = _tokens(document)
        del tokens[_index(tokens, name)]
        if isinstance(tokens, AoT) and not tokens:
            # An empty array of tables would be written as a key at the head of the file.
            auth = document["auth"]
            del auth["tokens"]
            if not auth and isinstance(auth, Table) and auth.is_super_table():  # nobody wrote [auth]
                del document["auth"]

    def expect(data: dict[str, Any]) -> None:
        tokens = _plain_tokens(data)
        del tokens[_index(tokens, name)]

    _edit(file, remove, expect)


Tokens = AoT | Array


def _tokens(document: tomlkit.TOMLDocument) -> Tokens:
    """``[[auth.tokens]]``, made where there is none; an inline list is kept as one."""
    auth = document.get("auth")
    if auth is None:
        auth = tomlkit.table(is_super_table=True)
        document.append("auth", auth)
        auth = document["auth"]
    if not isinstance(auth, MutableMapping):
        raise EditError("`auth` is no table", "`clawbox config check` says more")
    tokens = auth.get("tokens")
    if tokens is None:
        auth["tokens"] = tomlkit.aot()
        tokens = auth["tokens"]
    if not isinstance(tokens, AoT | Array):
        raise EditError("`auth.tokens` is no list of tables", "`clawbox config check` says more")
    return tokens


def _plain_tokens(data: dict[str, Any]) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = data.setdefault("auth", {}).setdefault("tokens", [])
    return tokens


def _index(tokens: Sequence[Mapping[str, object]], name: str) -> int:
    for index, one in enumerate(tokens):
        if one.get("name") == name:
            return index
    raise NoSuchTokenError(f"there is no token named {name}", "`clawbox token list` shows them")


def _edit(
    file: Path, change: Callable[[tomlkit.TOMLDocument], None], expect: Callable[[dict[str, Any]], None]
) -> None:
    """Change a settings file in place.

    ``change`` edits the document with its comments. ``expect`` makes the same change to the plain values:
    what the new file says must be exactly that, whatever an unusual layout made of the edit.
    """
    file = file.expanduser().resolve()  # a link stays a link
    try:
        with _locked(file.parent):
            wanted = read_file(file)
            document = tomlkit.parse(file.read_text(encoding="utf-8"))
            change(document)
            expect(wanted)
            _write_private(file, tomlkit.dumps(document), check=lambda new: _check(new, wanted, file))
    except TOMLKitError as error:
        raise EditError(f"{file} cannot be changed: {error}") from None
    except OSError as error:
        raise EditError(f"{error.filename or file}: {error.strerror or error}") from None


def _check(new: Path, wanted: dict[str, Any], file: Path) -> None:
    if _normal(read_file(new)) != _normal(wanted):
        raise EditError(
            f"the layout of {file} cannot be changed safely",
            "Write the tokens as [[auth.tokens]] tables",
        )
    check_section(
        "auth", wanted, file
    )  # only that: a fault elsewhere must not keep a token from being revoked


def _normal(data: dict[str, Any]) -> dict[str, Any]:
    """The values without an ``auth`` that says nothing."""
    auth = {key: value for key, value in data.get("auth", {}).items() if key != "tokens" or value}
    rest = {key: value for key, value in data.items() if key != "auth"}
    return rest | ({"auth": auth} if auth else {})


def _reads(config_file: Path, token_file: Path) -> bool:
    """Whether the settings take the administrator's token from that file."""
    server = load(config_file, environ={}).config.server
    return server.auth_token is None and server.auth_token_file == token_file


def _make_private(folder: Path) -> None:
    """Make a folder that only its owner can enter; an existing one only if nothing else is in it."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        status = folder.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise EditError(f"{folder} is not a folder") from None
        if stat.S_IMODE(status.st_mode) & 0o077 == 0:
            return
        ours = (folder / CONFIG_NAME).exists() or (folder / TOKEN_NAME).exists()
        if not ours and next(folder.iterdir(), None) is not None:
            raise EditError(
                f"others can look into {folder}, and it holds other things",
                f"Choose a folder of its own, or chmod 700 {folder}",
            ) from None
    folder.chmod(0o700)  # the umask may have taken bits away, or an empty folder may be open


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: files in it are replaced, so that none of them could carry it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EditError(f"another program has been changing {folder} for long") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _write_private(file: Path, text: str, *, check: Callable[[Path], None] | None = None) -> None:
    """Replace a file by one that only its owner can read; ``check`` sees the new one before that."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - it is open already
            os.fchmod(descriptor, 0o600)
            with contextlib.suppress(FileNotFoundError, PermissionError):  # root edits a user's file
                before = file.stat()
                os.fchown(descriptor, before.st_uid, before.st_gid)
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        if check is not None:
            check(temporary)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # the new name is on disk too
    finally:
        os.close(folder)
