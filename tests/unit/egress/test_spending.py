"""What was used of budgets is remembered for as long as its window lasts."""

from __future__ import annotations

from clawbox.egress import spending
from clawbox.egress.credentials import Budget, Credential, Secret
from clawbox.egress.limits import BudgetLedger
from clawbox.egress.messages import Spent
from clawbox.egress.spending import Spending


def test_what_was_told_last_is_known_until_its_window_ends():
    now = 100.0
    kept = Spending(lambda: now)
    kept.note("a", Spent("key", 1, 10, 60_000))
    kept.note("a", Spent("key", 2, 30, 60_000))
    kept.note("a", Spent("other", 1, 5, 1_000))
    now = 110.0
    assert kept.of("a") == (Spent("key", 2, 30, 50_000),)
    assert kept.of("b") == ()
    now = 160.0
    assert kept.of("a") == ()


def test_the_latest_sandboxes_are_known(monkeypatch):
    monkeypatch.setattr(spending, "SANDBOXES_KNOWN", 2)
    kept = Spending(lambda: 0.0)
    for sandbox in ("a", "b", "a", "c"):
        kept.note(sandbox, Spent("key", 1, 1, 1_000))
    assert [len(kept.of(sandbox)) for sandbox in "abc"] == [1, 0, 1]


def test_a_ledger_goes_on_where_another_ended():
    credential = Credential("key", Secret("x" * 20), ("a.test",), budget=Budget(3, 100, 60))
    first, second = BudgetLedger(), BudgetLedger()
    assert first.spent("key", 0.0) is None
    assert first.admit(credential, 0.0) is None
    assert first.admit(credential, 10.0) is None
    first.spend_bytes("key", 90, 10.0)
    assert first.spent("key", 20.0) == (2, 90, 40.0)
    second.restore("key", 2, 90, 60.0)
    assert second.admit(credential, 20.0) is None
    assert not second.spend_bytes("key", 11, 20.0)
    assert second.admit(credential, 25.0) == 35.0
    assert second.admit(credential, 60.0) is None
    late = BudgetLedger()
    late.restore("key", 3, 100, 60.0)
    assert late.admit(credential, 61.0) is None
    assert late.spent("key", 61.0) == (1, 0, 60.0)
