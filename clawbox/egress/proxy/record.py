"""The one row of a request, filled while it runs and written when it has ended, however it ends (55)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from clawbox.egress.findings import Finding, Place
from clawbox.egress.messages import Found, Row
from clawbox.egress.patterns import Kind
from clawbox.network_rules import ShapeAction

if TYPE_CHECKING:
    from collections.abc import Collection

    from clawbox.egress.leaks import LeakDetector
    from clawbox.egress.refusal import Refusal
    from clawbox.egress.target import Target

_MAX_LISTED: Final = 64
_MAX_NAME: Final = 100
_MAX_PATH: Final = 1024
_VALUE: Final = re.compile(r"=[^&;]*")
HIDDEN: Final = "[REDACTED]"


@dataclass(slots=True)
class Record:
    """What the row will say."""

    way: str
    began: float
    call: str = ""
    method: str = ""
    target: Target | None = None
    rule: int | None = None
    address: str = ""
    status: int | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    sent_at: float | None = None
    """When the head had gone upstream. While None, nothing has."""
    answered_at: float | None = None
    credential: str = ""
    removed: tuple[str, ...] = ()
    refusal: Refusal | None = None
    found: Counter[Finding] = field(default_factory=Counter)

    searched: bool = False
    """Whether the request's head was searched for secrets."""
    known_leak_sent: bool = False
    """Whether a known secret was in the request itself."""

    def note(self, findings: Collection[Finding], *, sent: bool) -> None:
        """Add what the leak scanner found in what the sandbox ``sent``, or in the answer."""
        if not findings:
            return
        self.found.update(findings)
        if sent:
            self.known_leak_sent |= any(one.kind is Kind.KNOWN for one in findings)

    def asked(self, target: Target) -> str:
        """All that a request's first line says, to be searched."""
        return f"{self.method} {target.url}" + ("" if target.query is None else f"?{target.query}")

    def row(self, now: float, detector: LeakDetector) -> Row:
        """As it is written down: without the query's values, and without what has a secret in it."""
        target = self.target
        if target is not None and not self.searched:
            # It was refused before; what it was refused with is written down all the same.
            self.note(detector.outbound_head(self.asked(target), (), ShapeAction.BLOCK).findings, sent=False)
        found = self.found
        secret_path = bool(found) and any(one.place is Place.URL for one in found)
        upstream = None
        if self.sent_at is not None and self.answered_at is not None:
            upstream = max(int((self.answered_at - self.sent_at) * 1e6), 0)
        decision = "allowed"
        if self.refusal is not None:
            decision = "denied" if self.sent_at is None and self.refusal.decided else "failed"
        return Row(
            way=self.way,
            decision=decision,
            reason=self.refusal.code if self.refusal is not None else "",
            method=HIDDEN if secret_path and detector.mentions(self.method) else self.method[:32],
            scheme=target.scheme if target else "",
            host=HIDDEN if target and secret_path and detector.mentions(target.host) else _host(target),
            port=target.port if target else 0,
            path=HIDDEN if secret_path else _shown_path(target),
            rule=self.rule,
            address=self.address,
            status=self.status,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            duration_us=max(int((now - self.began) * 1e6), 0),
            upstream_us=upstream,
            credential=self.credential,
            removed=tuple(
                HIDDEN if detector.mentions(name) else name[:_MAX_NAME] for name in self.removed[:_MAX_LISTED]
            ),
            found=tuple(
                Found(one.name, one.kind, one.place, one.action, count)
                for one, count in found.most_common(_MAX_LISTED)
            )
            if found
            else (),
            call=self.call,
        )


def _host(target: Target | None) -> str:
    return target.host if target is not None else ""


def _shown_path(target: Target | None) -> str:
    if target is None:
        return ""
    if target.query is None:
        return target.path[:_MAX_PATH]
    names = "&".join(
        _VALUE.sub("=" + HIDDEN, part) if "=" in part else HIDDEN for part in target.query.split("&") if part
    )
    return f"{target.path}?{names}"[:_MAX_PATH]
