"""How keeper and dialer are kept running: each process that ends is followed by another."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NoReturn

from clawbox.children.channel import ChannelClosedError
from clawbox.children.launcher import ChildrenUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FIRST_PAUSE_SECONDS: Final = 0.1
"""Before the third start in a row; twice as long before each further one."""
LONGEST_PAUSE_SECONDS: Final = 10.0
SETTLED_SECONDS: Final = 5.0
"""A process that lived this long did not fail at its start, and is replaced without a pause."""

_log = logging.getLogger(__name__)


async def keep_running(
    name: str, serve: Callable[[], Awaitable[None]], restarted: Callable[[], None]
) -> NoReturn:
    """Have ``serve`` run a process, again and again, until this is cancelled.

    ``serve`` starts one and returns when it is gone; it may raise ChildrenUnavailableError, and OSError,
    ChannelClosedError or TimeoutError where the process did not start. ``restarted`` is called for each that
    is followed by another. ``name`` is for the log.
    """
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        began = loop.time()
        try:
            await serve()
        except ChildrenUnavailableError as error:
            _log.error("no %s can be started: %s", name, error)
            await asyncio.sleep(error.retry_after)
            continue
        except (OSError, ChannelClosedError, TimeoutError) as error:
            _log.error("the %s did not start: %s", name, str(error) or type(error).__name__)
        failures = 0 if loop.time() - began >= SETTLED_SECONDS else failures + 1
        _log.error("the %s ended; starting another", name)
        restarted()
        if failures > 1:
            await asyncio.sleep(min(FIRST_PAUSE_SECONDS * 2 ** (failures - 2), LONGEST_PAUSE_SECONDS))
