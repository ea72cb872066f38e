"""What is printed of a container's output."""

from __future__ import annotations

import pytest
from clawbox_client import Gap

from clawbox.cli.container_output import StreamPrinter


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (5, "clawbox: 5 bytes of stderr are no longer kept.\n"),
        (0, "clawbox: some of stderr is no longer kept.\n"),
    ],
)
def test_a_gap_of_unknown_length_is_not_said_to_be_empty(capsys, length, said):
    StreamPrinter().gap(Gap("stderr", 7, length))
    assert capsys.readouterr().err == said
