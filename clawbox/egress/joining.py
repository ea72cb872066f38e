"""What joins a sidecar with the keeper and the dialer, whichever of them run while it lives."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import TYPE_CHECKING

from clawbox.egress.keeper.control import KeeperUnavailableError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

    from clawbox.egress.dialer.control import DialerControl
    from clawbox.egress.keeper.control import Keeper
    from clawbox.egress.messages import FromSidecar, Grant
    from clawbox.egress.process import ChildProcess

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def joined(
    process: ChildProcess[FromSidecar], grant: Grant, keeper: Keeper, dialer: DialerControl
) -> AsyncIterator[None]:
    """Have a sidecar sent the secrets of its grant, and connections made by it, while this is entered.

    A sidecar that either of them gives up, for what it did, is killed.
    """
    enrolment = dialer.enrol(
        grant, functools.partial(_deliver, process, "dialer"), functools.partial(_fault, process)
    )
    secrets = asyncio.create_task(_have_secrets_sent(process, grant, keeper))
    try:
        yield
    finally:
        dialer.dismiss(enrolment)
        secrets.cancel()
        await asyncio.wait([secrets])


async def _have_secrets_sent(process: ChildProcess[FromSidecar], grant: Grant, keeper: Keeper) -> None:
    """Have the keeper serve a sidecar for as long as this runs."""
    try:
        recipient = await keeper.hand_out(
            grant.sandbox,
            grant.owner,
            grant.credentials,
            functools.partial(_deliver, process, "keeper"),
            functools.partial(_fault, process),
        )
    except KeeperUnavailableError as error:
        _fault(process, str(error))
        return
    try:
        await process.gone()
    finally:
        keeper.dismiss(recipient)


def _deliver(process: ChildProcess[FromSidecar], purpose: str, end: socket.socket) -> None:
    process.hand(purpose, 0, end.fileno())


def _fault(process: ChildProcess[FromSidecar], why: str) -> None:
    if process.alive:
        _log.warning("sidecar %d is killed: %s", process.pid, why)
        process.kill()
