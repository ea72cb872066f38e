"""One row for one action, whatever becomes of the action."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from clawbox.errors import ClawboxError, Code

if TYPE_CHECKING:
    from collections.abc import Iterator


class Audit(Protocol):
    """What rows are written to: :class:`clawbox.audit.AuditLog`."""

    def require(self) -> None:
        """Raise AUDIT_UNAVAILABLE when nothing may happen because it could not be written down."""

    def append(
        self, kind: str, *, principal: str = "", request_id: str = "", decision: str = "", **fields: Any
    ) -> int:
        """Write a row."""


@dataclass(slots=True)
class Record:
    """What the row of an action will say."""

    decision: str = "allowed"
    fields: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def recorded(audit: Audit, kind: str, *, principal: str, request_id: str, **fields: Any) -> Iterator[Record]:
    """Write exactly one row when the body ends: what it left in the record, or how it failed.

    A ClawboxError about permission is ``denied``, any other error ``failed``, a cancellation ``cancelled``,
    and so is a stream that nobody reads to its end; the reason goes with it. Raises AUDIT_UNAVAILABLE, before
    the body begins, when no row can be written.
    """
    audit.require()
    record = Record(fields=fields)
    try:
        yield record
    except (asyncio.CancelledError, GeneratorExit):
        record.decision = "cancelled"
        raise
    except ClawboxError as error:
        denied = error.code is Code.PERMISSION_DENIED
        record.decision = "denied" if denied else "failed"
        record.fields["reason"] = error.reason.name
        if denied:
            record.fields["refused"] = error.metadata
        raise
    except BaseException:
        record.decision = "failed"
        record.fields["reason"] = "INTERNAL"
        raise
    finally:
        audit.append(
            kind, principal=principal, request_id=request_id, decision=record.decision, **record.fields
        )
