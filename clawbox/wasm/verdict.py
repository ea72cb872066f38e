"""What came of a run, by what this program knows about it rather than by what the guest says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clawbox.wasm import schema
from clawbox.wasm.guest import Ended
from clawbox.wasm.messages import MAX_VIOLATIONS
from clawbox.wasm.model import Outcome

if TYPE_CHECKING:
    from clawbox.wasm.capture import Capture
    from clawbox.wasm.host import Session
    from clawbox.wasm.messages import RunFrame
    from clawbox.wasm.model import Limits

_MEMORY_SLACK_SHARE: Final = 16


def conclude(
    ended: Ended,
    limits: Limits,
    capture: Capture,
    session: Session,
    *,
    left: int,
    peak: int,
    expired: bool,
) -> Ended:
    """The outcome of a run that ended by itself, or was ended because it was over one of its limits.

    ``left`` is the fuel that it did not use, ``peak`` the most memory it had in bytes; ``expired``: its time
    was over.
    """
    if capture.overflowed:
        message = f"wrote more than {limits.stdout_bytes} bytes of output"
        return Ended(Outcome.OUTPUT_EXCEEDED, message, trapped=ended.trapped)
    if session.exceeded:
        message = f"made more than {limits.host_calls} host calls"
        return replace(ended, outcome=Outcome.HOST_CALLS_EXCEEDED, message=message)
    if ended.outcome is Outcome.OK:
        return ended
    if ended.trapped and expired:
        message = f"ran longer than {limits.timeout_ms} ms"
        return replace(ended, outcome=Outcome.TIMEOUT, message=message)
    if ended.trapped and left == 0:
        message = f"used more than {limits.fuel} units of fuel"
        return replace(ended, outcome=Outcome.FUEL_EXHAUSTED, message=message)
    if ended.outcome is Outcome.MEMORY_EXCEEDED or near_limit(peak, limits.memory_bytes):
        message = f"needed more than {limits.memory_bytes} bytes of memory"
        if ended.message:
            message += f" ({ended.message})"
        return replace(ended, outcome=Outcome.MEMORY_EXCEEDED, message=message)
    return ended


def checked(ended: Ended, frame: RunFrame, capture: Capture) -> Ended:
    """The same run once its output was looked at: too large, or not what the output schema says."""
    if ended.output is not None and len(ended.output) > frame.limits.stdout_bytes:
        message = f"returned {len(ended.output)} bytes, more than {frame.limits.stdout_bytes}"
        return replace(ended, outcome=Outcome.OUTPUT_EXCEEDED, message=message, output=None)
    if ended.outcome is not Outcome.OK or frame.output_schema is None:
        return ended
    output = ended.output if ended.output is not None else bytes(capture.output)
    try:
        value = schema.parse(output)
    except (ValueError, RecursionError):
        value = output.decode("utf-8", "replace")
    found = schema.violations(frame.output_schema, value, MAX_VIOLATIONS)
    if not found:
        return ended
    first = found[0]
    message = (
        f"the output breaks the tool's output_schema at {first.path or '/'} ({first.rule}): {first.message}"
    )
    return replace(ended, outcome=Outcome.INVALID_OUTPUT, message=message)


def near_limit(memory_bytes: int, limit: int) -> bool:
    """Whether a run that failed with so much memory probably failed for want of more.

    A failed ``memory.grow`` gives no signal (docs/security.md, 92), and a guest asks for more than is left.
    """
    return memory_bytes >= limit - max(limit // _MEMORY_SLACK_SHARE, 1 << 20)
