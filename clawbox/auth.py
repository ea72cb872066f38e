"""Who a bearer token speaks for.

Tokens themselves are kept nowhere but in the administrator's token file: a :class:`TokenTable` holds SHA-256
digests, and so does ``[[auth.tokens]]``. A plain hash is enough, because tokens are 256 random bits, not
passwords that somebody could guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from watchfiles import awatch

from clawbox.config import SCOPES, Config, ConfigError, Problem
from clawbox.config.fields import is_token
from clawbox.config.serving import ADMIN, WELL_KNOWN_TOKEN
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from clawbox.network_rules import NetworkRule

__all__ = [
    "ADMIN",
    "SCOPES",
    "Principal",
    "PrincipalLimits",
    "TokenTable",
    "admin_token",
    "bearer_token",
    "digest_of",
    "new_token",
    "principals_of",
    "watch_tokens",
]

_log = structlog.stdlib.get_logger("clawbox.auth")

_CREDENTIALS = re.compile(r"(?i:bearer) +([A-Za-z0-9\-._~+/]+=*)", re.ASCII)
"""RFC 6750, section 2.1; the scheme is case-insensitive (RFC 9110, section 11.1)."""

_LARGEST_TOKEN_FILE = 16 << 10
_LOOK_AGAIN_S = 1.0
"""How long a change can go unseen where the kernel tells of none (network file systems, replaced folders)."""


@dataclass(frozen=True, slots=True)
class PrincipalLimits:
    """What bounds a principal besides the server's own limits; None everywhere: nothing does."""

    network: tuple[NetworkRule, ...] | None = None
    """Most that its sandboxes may reach; empty: nothing."""
    credentials: frozenset[str] | None = None
    """Credentials that its sandboxes may use."""
    max_sandboxes: int | None = None
    """Runs and containers at the same time."""
    max_streams: int | None = None
    """Open streams."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: a name and what it may do. Holds nothing secret."""

    name: str
    scopes: frozenset[str]
    limits: PrincipalLimits = PrincipalLimits()

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything and see everyone's things."""
        return "*" in self.scopes

    def allows(self, scope: str) -> bool:
        """Whether it has ``scope``, one of :data:`SCOPES`."""
        return scope in self.scopes or self.is_admin


class TokenTable:
    """Every token that the server accepts, by digest. Replacing the whole is one assignment, so atomic."""

    def __init__(self, principals: Iterable[tuple[str, Principal]]) -> None:
        self._entries: tuple[tuple[bytes, Principal], ...] = ()
        self.problem: str | None = None
        """Why the settings file's newest tokens are not in force; None when they are."""
        self.replace(principals)

    @classmethod
    def of(cls, config: Config) -> TokenTable:
        """The administrator and everyone in ``[[auth.tokens]]``.

        Raises ConfigError when there is no administrator's token, or its file is not private.
        """
        return cls(principals_of(config))

    def replace(self, principals: Iterable[tuple[str, Principal]]) -> None:
        """Put other tokens in force: pairs of SHA-256 in hexadecimal and principal."""
        self._entries = tuple((bytes.fromhex(digest), principal) for digest, principal in principals)
        self.problem = None

    def authenticate(self, authorization: str | None) -> Principal:
        """Who presents ``authorization``, the value of that metadata key.

        Every digest is compared, each in constant time, whether or not one has matched: time tells neither
        how much of a token is right nor where in the table it stands. Raises TOKEN_MISSING or TOKEN_INVALID.
        """
        digest = hashlib.sha256(bearer_token(authorization).encode()).digest()
        found = None
        for known, principal in self._entries:
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise ClawboxError(Reason.TOKEN_INVALID, "this server does not know the token")
        return found

    def find(self, name: str) -> Principal | None:
        """The principal of that name, as its token stands now; None once it is revoked."""
        return next((principal for _, principal in self._entries if principal.name == name), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Everyone's names, the administrator's first."""
        return tuple(principal.name for _, principal in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"TokenTable({', '.join(self.names)})"


def bearer_token(authorization: str | None) -> str:
    """The token in ``Bearer TOKEN``, the scheme in any case, with nothing before, between or after.

    Raises TOKEN_MISSING when there is no value, TOKEN_INVALID when it has any other form.
    """
    if not authorization:
        raise ClawboxError(Reason.TOKEN_MISSING, "the call carries no bearer token")
    match = _CREDENTIALS.fullmatch(authorization)
    if match is None:
        raise ClawboxError(Reason.TOKEN_INVALID, "the authorization is not of the form `Bearer TOKEN`")
    return match[1]


def new_token() -> str:
    """256 random bits, as 64 hexadecimal digits."""
    return secrets.token_hex(32)


def digest_of(token: str) -> str:
    """What ``[[auth.tokens]]`` stores: the SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def principals_of(config: Config) -> list[tuple[str, Principal]]:
    """Everyone that the settings name, with the digest of their token; the administrator is first.

    Raises ConfigError as :func:`admin_token` does, and when a named token is the administrator's own.
    """
    admin = digest_of(admin_token(config))
    everyone = [(admin, Principal(ADMIN, frozenset(("*",))))]
    for index, token in enumerate(config.auth.tokens):
        if token.sha256 == admin:
            key = f"auth.tokens[{index}].sha256"
            raise ConfigError(
                [Problem(str(config.file), key, "the administrator's token", "a token of its own")]
            )
        limits = PrincipalLimits(
            network=token.network_allowlist,
            credentials=None if token.credentials is None else frozenset(token.credentials),
            max_sandboxes=token.max_sandboxes,
            max_streams=token.max_streams,
        )
        everyone.append((token.sha256, Principal(token.name, frozenset(token.scopes), limits)))
    return everyone


def admin_token(config: Config) -> str:
    """The administrator's token: ``server.auth_token``, else what ``server.auth_token_file`` holds.

    Raises ConfigError when there is none, when it is the well-known one without ``server.insecure``, or when
    group or others can read the file.
    """
    server = config.server
    if server.auth_token is not None:
        return server.auth_token.get_secret_value()
    file = server.auth_token_file
    token = _private_text(file)
    if not is_token(token):
        found = "text that is no token" if token else "an empty file"
        raise _refused(file, found, "one line of letters, digits and -._~+/, such as `clawbox init` writes")
    if token == WELL_KNOWN_TOKEN and not server.insecure:
        raise _refused(file, "the token of the examples", "a token that nobody can guess; or insecure = true")
    return token


def _private_text(file: Path) -> str:
    """What a file holds that only its owner can read, without white space around it."""
    try:
        # Not blocking, so that a FIFO in the token's place is refused rather than waited for.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise _refused(file, "something that is not a file", "a file")
            if mode & 0o077:
                found = f"mode {stat.S_IMODE(mode):04o}, so that others can use it"
                raise _refused(file, found, f"mode 0600: chmod 600 {file}")
            data = os.read(descriptor, _LARGEST_TOKEN_FILE + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        accepted = "the administrator's token; `clawbox init` makes one"
        raise _refused(file, "no such file", accepted) from None
    except OSError as error:
        raise _refused(file, error.strerror or "an error", "a file that the server can read") from None
    if len(data) > _LARGEST_TOKEN_FILE:
        raise _refused(file, "a huge file", "one line")
    return data.decode("ascii", errors="replace").strip()


def _refused(file: Path, found: str, accepted: str) -> ConfigError:
    return ConfigError([Problem(str(file), "server.auth_token_file", found, accepted)])


@contextlib.asynccontextmanager
async def watch_tokens(table: TokenTable, config: Config) -> AsyncIterator[None]:
    """While open, keeps ``table`` as the settings file and the administrator's token file say.

    A change that cannot be used leaves the table as it is, is logged, and stands in ``table.problem``. Other
    settings are checked but not applied. Calls that are running go on as whoever they began as.
    """
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(_watch(table, config), name="watch tokens")
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below, as itself and not in the group's wrapping
            failure = error
        finally:
            watcher.cancel()
    if failure is not None:
        raise failure


async def _watch(table: TokenTable, config: Config) -> None:
    # The start's own reading came before: a change since then differs from nothing known, so is read again.
    seen: _Fingerprint | None = None
    while folders := {file.parent for file in _sources(config)}:
        changes = awatch(
            *folders,
            watch_filter=None,
            debounce=200,
            step=20,
            rust_timeout=int(_LOOK_AGAIN_S * 1000),
            yield_on_timeout=True,
            recursive=False,
        )
        try:
            async with contextlib.aclosing(changes):
                async for _ in changes:
                    now = await asyncio.to_thread(_fingerprint, config)
                    if now != seen or table.problem is not None:
                        seen = now
                        config = await _apply(table, config)
                    if {file.parent for file in _sources(config)} != folders:
                        break
        except OSError as error:  # such as a folder that is gone, and may come back
            table.problem = f"changes cannot be seen: {error}"
            await asyncio.sleep(_LOOK_AGAIN_S)


_Fingerprint = tuple[tuple[int, ...] | None, ...]


def _sources(config: Config) -> tuple[Path, ...]:
    """The files that say who may call."""
    token = () if config.server.auth_token is not None else (config.server.auth_token_file,)
    return (*token, *((config.file,) if config.file is not None else ()))


def _fingerprint(config: Config) -> _Fingerprint:
    """What changes when one of the files does; the inode too, since files are replaced by renaming."""
    found: list[tuple[int, ...] | None] = []
    for file in _sources(config):
        try:
            status = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode))
    return tuple(found)


async def _apply(table: TokenTable, config: Config) -> Config:
    """Read the tokens again and put them in force; gives the settings that they came from."""
    try:
        fresh = await asyncio.to_thread(config.reload)
        principals = await asyncio.to_thread(principals_of, fresh)
    except ConfigError as error:
        problem = str(error)
        if problem != table.problem:
            _log.error(
                "the tokens in the settings cannot be used; the previous ones stay in force", why=problem
            )
        table.problem = problem
        return config
    before, now = set(table.names), {principal.name for _, principal in principals}
    table.replace(principals)
    if before != now:
        _log.info("tokens changed", added=sorted(now - before), removed=sorted(before - now))
    return fresh
