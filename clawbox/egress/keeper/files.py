"""The credential file as control sees it: read again whenever the CLI replaced it, and never decrypted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from watchfiles import awatch

from clawbox.egress.keeper.messages import Store
from clawbox.egress.vault import VaultError, read_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

_log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS: Final = 2.0
"""How long a change can go unseen where the kernel tells of none (network file systems, replaced folders)."""
_NEVER: Final = ()


def read_store(path: Path) -> Store:
    """The file as it is now. One that must not be used (property 42) has a ``fault`` and no ``data``."""
    try:
        return Store(read_file(path))
    except VaultError as error:
        return Store(None, str(error))


async def follow_store(path: Path) -> AsyncGenerator[Store]:
    """The file now, and again each time that it has changed, by name, content or mode; without end."""
    seen: tuple[int, ...] | None = _NEVER
    last = None
    async with contextlib.aclosing(_turns(path)) as turns:
        async for _ in turns:
            now = await asyncio.to_thread(_fingerprint, path)
            if now == seen:
                continue
            seen = now
            store = await asyncio.to_thread(read_store, path)
            if store != last:
                last = store
                yield store


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    """Differs whenever the file does; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_size, found.st_ctime_ns


async def _turns(path: Path) -> AsyncGenerator[None]:
    yield
    while True:
        try:
            changes = awatch(
                path.parent,
                watch_filter=None,
                debounce=50,
                step=20,
                recursive=False,
                rust_timeout=int(LOOK_AGAIN_SECONDS * 1000),
                yield_on_timeout=True,
            )
            async with contextlib.aclosing(changes):
                async for _ in changes:
                    yield
        except OSError as error:  # such as a folder that is not there yet, or is gone
            _log.debug("changes of %s cannot be seen: %s", path, error)
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            yield
