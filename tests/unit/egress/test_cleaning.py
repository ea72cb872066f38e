"""Control's side of output cleaning: nobody waits for ever, and nothing goes out uncleaned."""

from __future__ import annotations

import pytest

from clawbox.egress.cleaning import OutputCleaner
from clawbox.egress.messages import Cleaned
from clawbox.errors import ClawboxError, Reason


class Silent:
    """A process that takes everything and never answers."""

    alive = True

    def __init__(self):
        self.told = []

    def send(self, message):
        self.told.append(message)


async def test_a_process_that_never_answers_keeps_nobody_waiting():
    process, cleaner = Silent(), OutputCleaner(0.01)
    with pytest.raises(ClawboxError) as caught:
        await cleaner.clean(process, 1, b"output", end=True, shapes=False)
    assert caught.value.reason is Reason.REDACTION_UNAVAILABLE
    # Its answer may come yet: it is nobody's, and the next one is not taken for it.
    cleaner.answered(Cleaned(1, b"late", end=True, found=()))
    assert not cleaner._asked
