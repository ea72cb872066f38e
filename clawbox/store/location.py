"""Where the state is: a URL, and what of it may be shown. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from clawbox.config.serving import StateSettings

STATE_FILE: Final = "state.db"
_SQLITE: Final = "sqlite+aiosqlite"
_ASYNC_DRIVERS: Final = {"sqlite": _SQLITE, "postgresql": "postgresql+asyncpg"}
"""For a URL that names a database and no driver."""


def sqlite_url(path: Path) -> str:
    """The URL of a state file of SQLite's."""
    return URL.create(_SQLITE, database=str(path)).render_as_string(hide_password=False)


def state_url(settings: StateSettings, folder: Path) -> str:
    """Where a server keeps its state: what the settings say, else a file in ``folder``, that of the settings.

    The path of a file that is not absolute starts in ``folder``, too. Raises STATE_UNAVAILABLE for what is no
    URL.
    """
    if settings.url is None:
        return sqlite_url(folder / STATE_FILE)
    url = parse_url(settings.url.get_secret_value())
    path = sqlite_path(url)
    return url.render_as_string(hide_password=False) if path is None else sqlite_url(folder / path)


def parse_url(text: str) -> URL:
    """The URL, with the name of an async driver. Raises STATE_UNAVAILABLE, and never shows the text."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ClawboxError(
            Reason.STATE_UNAVAILABLE, "state.url is not a database URL: DATABASE://USER@HOST/NAME"
        ) from None
    return url.set(drivername=_ASYNC_DRIVERS.get(url.drivername, url.drivername))


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite URL; None for another database's. Raises STATE_UNAVAILABLE without a file."""
    if url.get_backend_name() != "sqlite":
        return None
    if url.query or not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ClawboxError(
            Reason.STATE_UNAVAILABLE, "state.url names no file, or more than one: sqlite:////PATH"
        )
    return Path(url.database)


def shown(url: URL) -> str:
    """The place without who may use it: for messages and the log."""
    path = sqlite_path(url)
    return str(path) if path is not None else f"{url.get_backend_name()} at {url.host or 'this host'}"
