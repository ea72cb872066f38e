"""What all requests of one sandbox share: its grant, its secrets, its limits."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from clawbox.egress.attach import choose_credential, credentials_of
from clawbox.egress.leaks import LeakDetector
from clawbox.egress.limits import BudgetLedger, Rate, Slots
from clawbox.egress.messages import Spent
from clawbox.egress.refusal import Denial, RefusedError
from clawbox.policy import NetworkGrant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clawbox.egress.credentials import Credential, SandboxSecrets
    from clawbox.egress.messages import Grant
    from clawbox.egress.proxy.ports import Rows
    from clawbox.egress.proxy.record import Record
    from clawbox.egress.proxy.upstream import Upstreams
    from clawbox.egress.target import Target

KNOWN_LEAKS_TOLERATED: Final = 3
"""Requests with a known secret in them after which credentials are attached no more (68): each probe tells a
little, so there must be few."""


class SandboxState:
    """One sandbox. Changes while it lives: secrets when they are rotated, tokens with calls."""

    def __init__(
        self,
        grant: Grant,
        secrets: SandboxSecrets,
        upstreams: Upstreams,
        rows: Rows,
        clock: Callable[[], float],
    ) -> None:
        self.grant = grant
        self.upstreams = upstreams
        self.rows = rows
        self.clock = clock
        self.requests = Slots(grant.limits.max_concurrent)
        self.tunnels = Slots(grant.limits.max_tunnels)
        self.budgets = BudgetLedger()
        self.suspended = False
        """Whether credentials are attached no more."""
        self._known_leaks = 0
        self._rate = Rate(grant.limits.requests_per_second, grant.limits.burst)
        self._tokens: dict[bytes, str] = {}
        self.network = NetworkGrant(grant.rules, grant.limits.max_concurrent)
        self.replace_secrets(secrets)

    def replace_secrets(self, secrets: SandboxSecrets) -> None:
        """Use these from the next request on; what was known stays known to the scanner (76)."""
        self.secrets = secrets
        self.detector = LeakDetector(secrets.known())

    def admit(self, digest: bytes, call: str) -> None:
        """Accept requests with this token."""
        self._tokens[digest] = call

    def revoke(self, digest: bytes) -> None:
        """Accept none any more."""
        self._tokens.pop(digest, None)

    def call_of(self, token: bytes) -> tuple[bytes, str]:
        """The token's digest, and the call that it belongs to. Raises RefusedError.

        Digests are compared, so that the time it takes tells nothing of a token.
        """
        digest = hashlib.sha256(token).digest()
        call = self._tokens.get(digest)
        if call is None:
            raise RefusedError(Denial.TOKEN_INVALID)
        return digest, call

    def count_request(self) -> None:
        """Count one against the rate. Raises RefusedError."""
        if self._rate.take(self.clock()) is not None:
            raise RefusedError(Denial.RATE_LIMITED)

    def credential_for(self, target: Target, method: str) -> Credential | None:
        """What is to be attached to a request, or None; see :func:`clawbox.egress.attach.choose_credential`.

        Raises RefusedError also where what was found may not be attached any more.
        """
        found = choose_credential(self.grant.credentials, self.secrets, target, method)
        if found is None:
            return None
        if self.suspended:
            raise RefusedError(Denial.CREDENTIALS_SUSPENDED)
        return found

    def credentials_of(self, host: str) -> tuple[Credential, ...]:
        """Those that the sandbox has for a host, whether or not they fit a request there."""
        return credentials_of(self.grant.credentials, self.secrets, host)

    def tell_spent(self, credential: str) -> None:
        """Have it known, if there is a budget, what was used of it, whatever becomes of this process (56)."""
        now = self.clock()
        spent = self.budgets.spent(credential, now)
        if spent is not None:
            requests, count, left = spent
            self.rows.spent(Spent(credential, requests, count, max(int(left * 1000), 0)))

    def restore_spent(self, spent: Iterable[Spent]) -> None:
        """Begin with what was used already."""
        now = self.clock()
        for one in spent:
            self.budgets.restore(one.credential, one.requests, one.bytes, now + one.left_ms / 1000)

    def write_down(self, record: Record) -> None:
        """Write the row of a request that has ended; several with a known secret suspend credentials (68)."""
        self.rows.write(record.row(self.clock(), self.detector))
        if record.credential:
            self.tell_spent(record.credential)
        if record.known_leak_sent:
            self._known_leaks += 1
            if self._known_leaks == KNOWN_LEAKS_TOLERATED:
                self.suspended = True
                self.rows.suspended()
