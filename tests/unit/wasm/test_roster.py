"""Which workers get calls."""

from types import SimpleNamespace
from typing import Any

from clawbox.wasm.roster import Roster


async def test_one_that_died_is_never_between_two_calls():
    """What it said before it died is read after that, the end of its call too."""
    roster = Roster(2, 6, None)
    worker: Any = SimpleNamespace(killed=False, calls=1, child=SimpleNamespace(alive=False))
    roster.rest(worker, prepares=True)
    assert roster.idle == []
