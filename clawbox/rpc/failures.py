"""How a call ends with an error: with which status, what the log says, and who is left to be told."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import grpc.aio
import structlog

from clawbox.errors import ClawboxError, Reason
from clawbox.rpc.call import REQUEST_ID_KEY
from clawbox.rpc.status import DETAILS_KEY, internal_error, wire_status

if TYPE_CHECKING:
    from clawbox.rpc.call import Call, Context

LAST_WORD_SECONDS = 1.0
"""How long a server that stops tries to tell a caller so."""

_log = structlog.stdlib.get_logger("clawbox.rpc")


async def fail(call: Call, context: Context, error: BaseException) -> None:
    """End the call with the status of ``error``; returns when that is done, raises what is not an error."""
    match error:
        case ClawboxError():
            pass
        case asyncio.CancelledError() if call.stopping:
            # The server ends it: unlike a caller that left, this one is still there to be told.
            if call.task is not None:
                call.task.uncancel()
            error = shutting_down()
        case asyncio.CancelledError() if call.task is not None and call.task.cancelling():
            call.code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
            raise error
        case grpc.aio.AbortError():
            call.code = context.code().name
            raise error
        case grpc.aio.InternalError() | grpc.aio.UsageError():
            # A read or write failed, because the caller is gone.
            call.code = "CANCELLED"
            return
        case Exception() | asyncio.CancelledError():
            # A handler that raises CancelledError although nobody cancelled it would get no status at all.
            error_id = uuid.uuid4().hex
            _log.error("unexpected error", id=error_id, method=call.name, exc_info=error)
            error = internal_error(error_id)
        case _:
            raise error
    await _abort(call, context, error)


def shutting_down() -> ClawboxError:
    """The error of calls that come, or still go on, when the server stops."""
    return ClawboxError(Reason.SHUTTING_DOWN, "the server is stopping", retry_after=1.0)


async def _abort(call: Call, context: Context, error: ClawboxError) -> None:
    if call.severed:  # gRPC has let go of it
        call.code = "CANCELLED"
        return
    status = wire_status(error)
    call.code = status.code.name
    principal = call.known_principal
    # Callers without a token must not be able to fill the log; wrong tokens pass here at a bounded rate.
    known = principal is not None or error.reason is Reason.TOKEN_INVALID
    (_log.info if known else _log.debug)(
        "call refused",
        method=call.name,
        code=call.code,
        reason=error.reason.name,
        message=_without_input(error, status.message),
        principal=principal.name if principal is not None else "",
        peer=call.peer,
    )
    trailing = ((REQUEST_ID_KEY, call.request_id), (DETAILS_KEY, status.details))
    try:
        # A status waits behind messages that the caller does not read; a server that stops does not.
        async with asyncio.timeout(LAST_WORD_SECONDS if call.stopping else None):
            await context.abort(status.code, status.message, trailing)
    except (grpc.aio.InternalError, grpc.aio.UsageError, TimeoutError):
        call.code = "CANCELLED"  # the caller is gone, or as good as gone


def _without_input(error: ClawboxError, message: str) -> str:
    """What the log says of an error: a schema's complaint repeats the parameters, which may be secret."""
    if error.reason is not Reason.INVALID_INPUT:
        return message
    return ", ".join(sorted({violation.rule for violation in error.violations}))
