"""On which terms one request goes: what was decided about it, and where that is noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clawbox.egress.refusal import Denial, RefusedError, Side

if TYPE_CHECKING:
    from clawbox.egress.attach import Attached
    from clawbox.egress.credentials import Credential
    from clawbox.egress.proxy.record import Record
    from clawbox.egress.proxy.state import SandboxState
    from clawbox.network_rules import ShapeAction


class Terms(msgspec.Struct, frozen=True):
    """One request that may go."""

    state: SandboxState
    record: Record
    outgoing: Attached
    """What goes upstream, credential and all."""
    credential: Credential | None
    on_shape: ShapeAction
    guarding: tuple[Credential, ...] = ()
    """All that the sandbox has for the host: no other authentication goes there (69)."""

    def count_up(self, count: int) -> None:
        """Count bytes of the request's body. Raises RefusedError."""
        most = self.state.grant.limits.max_request_bytes
        self.record.bytes_up += count
        if most is not None and self.record.bytes_up > most:
            raise RefusedError(Denial.BODY_TOO_LARGE, f"more than {most} bytes")
        self.spend(count)

    def count_down(self, count: int) -> None:
        """Count bytes of the answer's body. Raises RefusedError."""
        self.record.bytes_down += count
        self.expect_down(self.record.bytes_down)
        self.spend(count)

    def expect_down(self, size: int) -> None:
        """The answer's body has, or will have, so many bytes. Raises RefusedError."""
        most = self.state.grant.limits.max_response_bytes
        if most is not None and size > most:
            raise RefusedError(Denial.BODY_TOO_LARGE, f"more than {most} bytes", Side.UPSTREAM)

    def spend(self, count: int) -> None:
        """Count bytes, either way, against the credential's budget. Raises RefusedError."""
        credential = self.credential
        if credential is None or credential.budget is None:
            return
        if not self.state.budgets.spend_bytes(credential.name, count, self.state.clock()):
            raise RefusedError(Denial.BUDGET_SPENT, credential.name)
