"""Has the head of an audit log signed while a server writes to it: at the start, at the end, in between."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import structlog

from clawbox.audit.heads import KIND, Head, Signer, SignerGoneError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clawbox.audit.log import AuditLog

SIGN_EVERY_S: Final = 60.0
"""How long rows can stand unsigned while there is somebody who signs."""
_LAST_S: Final = 5.0
"""How long stopping waits for the last signature."""

_log = structlog.stdlib.get_logger("clawbox.audit")


@contextlib.asynccontextmanager
async def signed_heads(log: AuditLog, signer: Signer, every_s: float = SIGN_EVERY_S) -> AsyncIterator[None]:
    """Have heads signed while entered: now, every ``every_s`` seconds, and whenever a file is full.

    A head is signed only where rows were written since the last. Leaving signs once more, so ``signer`` must
    still be there then. What cannot be signed for now is signed later: rows are never held up.
    """
    heads = _Heads(log, signer)
    task = asyncio.create_task(_keep_signing(log, heads, every_s), name="audit-heads")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_S):
                await heads.sign()


async def _keep_signing(log: AuditLog, heads: _Heads, every_s: float) -> None:
    while True:
        log.rotated.clear()
        await heads.sign()
        with contextlib.suppress(TimeoutError):
            # Not wait_for: that of Python 3.11 forgets a cancellation that comes together with the event.
            async with asyncio.timeout(every_s):
                await log.rotated.wait()


class _Heads:
    def __init__(self, log: AuditLog, signer: Signer) -> None:
        self._log = log
        self._signer = signer
        self._signed = log.signed
        """The log's head when a signature was the last thing written."""

    async def sign(self) -> None:
        """Write a signed head, unless nothing was written since the last."""
        head = self._log.head
        if not head or head == self._signed:
            return
        number, _, digest = head.partition(":")
        try:
            signature = await self._signer.sign(int(number), digest)
        except SignerGoneError as error:
            _log.warning("the head of the audit log is not signed for now", why=str(error))
            return
        fields = Head(int(number), digest, signature).fields()
        # Rows that came while it was signed are the next head's.
        if self._log.append(KIND, decision="recorded", **fields) == int(number) + 1:
            self._signed = self._log.head
