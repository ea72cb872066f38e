"""What sidecars tell of their sandboxes' requests, as audit rows and metrics.

A sidecar is not trusted: what it says becomes a row of its own sandbox and owner alone, numbers are bounded,
and a word that is no known one is written as ``other`` where it would be a label.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from clawbox.children.channel import FrameError
from clawbox.egress.findings import Action
from clawbox.egress.limits import Rate
from clawbox.egress.patterns import Kind
from clawbox.egress.proxy.state import KNOWN_LEAKS_TOLERATED
from clawbox.egress.refusal import Denial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clawbox.egress.messages import Found, Grant, Row

DENIALS_WITH_ROWS: Final = 60
"""Denied requests of one sandbox that have a row each in one window; the rest are counted
(docs/security.md, 75)."""
WINDOW_SECONDS: Final = 60.0
CALLS_KNOWN: Final = 4096
"""Names of calls, the latest ones, that a sandbox's rows may carry."""
LATE_SECONDS: Final = 30.0
"""How late rows may come, all at once. A sidecar that was taken over could else fill the disk: what is denied
is counted, and what is sent is as much as the grant says."""
LIVES_AT_ONCE: Final = 8
"""Processes, one after the other, each of which begins with the whole burst; more crashes are not allowed."""
SANDBOXES_KNOWN: Final = 65_536
"""Sandboxes, the latest ones, whose leaks are counted."""

_MOST: Final = 1 << 53
_DECISIONS: Final = frozenset({"allowed", "denied", "failed"})
_WAYS: Final = frozenset({"absolute", "connect", "tunnel", "intercept", "call", "local"})
_OTHER: Final = "other"
_REASONS: Final = frozenset(
    {"", *(prefix + denial.code for denial in Denial for prefix in ("", "upstream_"))}
)


class Audit(Protocol):
    """Where rows go: :class:`clawbox.audit.AuditLog`."""

    def append(
        self, kind: str, *, principal: str = "", request_id: str = "", decision: str = "", **fields: Any
    ) -> int:
        """Write a row."""


class EgressMetrics(Protocol):
    """Where requests are counted: :class:`clawbox.telemetry.Metrics`."""

    def egress_request(
        self, *, decision: str, reason: str, bytes_up: int, bytes_down: int, upstream_us: int | None
    ) -> None:
        """A request ended."""

    def egress_refused(self, reason: str, count: int) -> None:
        """So many requests were refused that have no row of their own."""

    def leak_found(self, *, kind: str, action: str, count: int) -> None:
        """The leak scanner found something."""

    def credentials_suspended(self) -> None:
        """A sandbox's credentials are attached no more."""


@dataclass(frozen=True, slots=True)
class EgressUsage:
    """What one sandbox did outside, over all lives of its sidecar."""

    allowed: int = 0
    """Requests that were let through, whether or not an answer came."""
    denied: int = 0
    """Requests that were refused."""
    sent_bytes: int = 0
    """To upstreams."""
    received_bytes: int = 0


class LeakLedger:
    """How many requests of each sandbox held a known secret, over all of its sidecars' lives (68).

    A sandbox that has its sidecar crash, or waits until it ended idle, begins no new count.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}  # the latest last

    def add(self, sandbox: str) -> None:
        """One more."""
        self._counts[sandbox] = self._counts.pop(sandbox, 0) + 1
        if len(self._counts) > SANDBOXES_KNOWN:
            del self._counts[next(iter(self._counts))]

    def suspended(self, sandbox: str) -> bool:
        """Whether there were so many that its credentials are attached no more."""
        return self._counts.get(sandbox, 0) >= KNOWN_LEAKS_TOLERATED


class SandboxRecorder:
    """Writes down what the sidecar of one sandbox tells, until it is closed."""

    def __init__(
        self,
        grant: Grant,
        audit: Audit,
        metrics: EgressMetrics,
        ledger: LeakLedger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = grant.limits
        late = LATE_SECONDS * limits.requests_per_second + limits.max_concurrent + limits.max_tunnels
        self._room = Rate(limits.requests_per_second, LIVES_AT_ONCE * limits.burst + late)
        self._clock = clock
        self._ledger = ledger or LeakLedger()
        self._suspension_told = False
        self._grant = grant
        self._audit = audit
        self._metrics = metrics
        self._calls: dict[str, None] = {}  # as an ordered set
        self._rows_of_denials = 0
        self._counted: Counter[str] = Counter()
        self._window: asyncio.TimerHandle | None = None
        self.usage = EgressUsage()
        """Since this was made."""

    def expect(self, call: str) -> None:
        """Rows may name ``call`` from now on, also when it has ended."""
        self._calls.pop(call, None)
        self._calls[call] = None
        if len(self._calls) > CALLS_KNOWN:
            del self._calls[next(iter(self._calls))]

    def row(self, row: Row) -> None:
        """A request ended. Raises FrameError for one that no sidecar of this grant can have sent."""
        decision = _known(row.decision, _DECISIONS)
        reason = _known(row.reason, _REASONS)
        up, down = _bounded(row.bytes_up), _bounded(row.bytes_down)
        upstream_us = None if row.upstream_us is None else _bounded(row.upstream_us)
        self._metrics.egress_request(
            decision=decision, reason=reason, bytes_up=up, bytes_down=down, upstream_us=upstream_us
        )
        if decision != "denied" and self._room.take(self._clock()) is not None:
            raise FrameError("it tells of more requests than its grant lets it send")
        self._count(decision, up, down)
        self.cleaned(row.found)
        sent = (one.action is Action.REFUSED and one.kind is Kind.KNOWN for one in row.found)
        if reason == Denial.LEAK.code and any(sent):
            self._ledger.add(self._grant.sandbox)
        if decision == "denied" and not self._has_room():
            self._counted[reason] += 1
            return
        self._append(
            decision,
            reason,
            call=row.call if row.call in self._calls else "",
            way=_known(row.way, _WAYS),
            method=row.method,
            scheme=row.scheme,
            host=row.host,
            port=_bounded(row.port),
            path=row.path,
            rule=self._rule(row.rule),
            address=row.address,
            status=row.status,
            bytes_up=up,
            bytes_down=down,
            duration_us=_bounded(row.duration_us),
            upstream_us=upstream_us,
            credential=row.credential,
            removed=list(row.removed),
            found=_listed(row.found),
        )

    def cleaned(self, found: Iterable[Found]) -> None:
        """The leak scanner found this, in a request, its answer, or the sandbox's output."""
        for one in found:
            count = max(_bounded(one.count), 1)
            self._metrics.leak_found(kind=one.kind.value, action=one.action.value, count=count)

    def unwritten(self, count: int) -> None:
        """So many requests were refused by the sidecar because control did not take their rows in time."""
        count = _bounded(count)
        if count:
            self._count("denied", 0, 0, count)
            reason = Denial.AUDIT_UNAVAILABLE.code
            self._metrics.egress_refused(reason, count)
            self._begin_window()
            self._counted[reason] += count

    def stranger(self) -> None:
        """A process that is not the sandbox's connected to its Unix socket, and was not served (74)."""
        if self._has_room():
            self.event("egress_peer", "denied", "who connected is no process of the sandbox")
        else:
            self._counted["stranger"] += 1

    @property
    def suspends(self) -> bool:
        """Whether this sandbox's credentials are to be attached no more."""
        return self._ledger.suspended(self._grant.sandbox)

    def suspended(self) -> None:
        """This sandbox's credentials are attached no more (docs/security.md, 68): told once."""
        if not self._suspension_told:
            self._suspension_told = True
            self._metrics.credentials_suspended()
            self.event("egress_suspended", "denied", Denial.CREDENTIALS_SUSPENDED.code)

    def event(self, kind: str, decision: str, reason: str, **fields: Any) -> None:
        """Write a row about the sidecar itself."""
        self._audit.append(
            kind,
            principal=self._grant.owner,
            decision=decision,
            sandbox=self._grant.sandbox,
            reason=reason,
            **fields,
        )

    def close(self) -> None:
        """Nothing more comes: what was counted is written."""
        self._end_window()

    def _count(self, decision: str, up: int, down: int, count: int = 1) -> None:
        before, denied = self.usage, decision == "denied"
        self.usage = EgressUsage(
            allowed=before.allowed + (0 if denied else count),
            denied=before.denied + (count if denied else 0),
            sent_bytes=before.sent_bytes + up,
            received_bytes=before.received_bytes + down,
        )

    def _append(self, decision: str, reason: str, *, call: str = "", **fields: Any) -> None:
        self._audit.append(
            "egress",
            principal=self._grant.owner,
            request_id=call,
            decision=decision,
            sandbox=self._grant.sandbox,
            reason=reason,
            **{name: value for name, value in fields.items() if value not in (None, "", [])},
        )

    def _rule(self, index: int | None) -> str | None:
        if index is None or not 0 <= index < len(self._grant.rules):
            return None
        return str(self._grant.rules[index])

    def _has_room(self) -> bool:
        self._begin_window()
        if self._rows_of_denials >= DENIALS_WITH_ROWS:
            return False
        self._rows_of_denials += 1
        return True

    def _begin_window(self) -> None:
        if self._window is None:
            loop = asyncio.get_running_loop()
            self._window = loop.call_later(WINDOW_SECONDS, self._end_window)

    def _end_window(self) -> None:
        if self._window is not None:
            self._window.cancel()
            self._window = None
        self._rows_of_denials = 0
        counted, self._counted = self._counted, Counter()
        if counted:
            self._append(
                "denied",
                "counted",
                count=counted.total(),
                window_s=WINDOW_SECONDS,
                reasons=dict(counted.most_common()),
            )


def _known(word: str, words: frozenset[str]) -> str:
    return word if word in words else _OTHER


def _bounded(number: int) -> int:
    return min(max(number, 0), _MOST)


def _listed(found: Iterable[Found]) -> list[dict[str, object]]:
    return [
        {
            "name": one.name,
            "kind": one.kind.value,
            "place": one.place.value,
            "action": one.action.value,
            "count": _bounded(one.count),
        }
        for one in found
    ]
