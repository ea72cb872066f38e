"""One row for one action, whatever becomes of it."""

from __future__ import annotations

import asyncio

import pytest

from clawbox.audit import recorded
from clawbox.errors import ClawboxError, Reason


class Rows:
    def __init__(self):
        self.rows = []

    def require(self):
        pass

    def append(self, kind, **row):
        self.rows.append({"kind": kind, **row})
        return len(self.rows)


@pytest.mark.parametrize(
    ("error", "decision", "reason"),
    [
        (ClawboxError(Reason.POLICY_DENIED, "no"), "denied", "POLICY_DENIED"),
        (ClawboxError(Reason.DEADLINE, "late"), "failed", "DEADLINE"),
        (KeyError("x"), "failed", "INTERNAL"),
        (asyncio.CancelledError(), "cancelled", None),
    ],
)
def test_a_row_says_how_it_failed(error, decision, reason):
    rows = Rows()

    def act():
        with recorded(rows, "k", principal="ann", request_id="r") as record:
            record.fields["done"] = 1
            raise error

    with pytest.raises(type(error)):
        act()

    (row,) = rows.rows
    assert (row["decision"], row.get("reason"), row["done"]) == (decision, reason, 1)


def test_a_stream_that_is_not_read_to_its_end_was_cancelled():
    rows = Rows()

    def stream():
        with recorded(rows, "k", principal="ann", request_id="r") as record:
            for number in range(3):
                record.fields["sent"] = number
                yield number

    reading = stream()
    assert [next(reading), next(reading)] == [0, 1]
    reading.close()

    (row,) = rows.rows
    assert (row["decision"], row["sent"], "reason" in row) == ("cancelled", 1, False)
