"""The ends of long lines in a log that does not tell them."""

import pytest

from clawbox.containers.backend import LogEntry, Stream
from clawbox.containers.docker.frames import PIECE_BYTES, LineEnds

OUT, ERR = Stream.STDOUT, Stream.STDERR
FULL = b"x" * PIECE_BYTES


def mended(*entries):
    ends = LineEnds()
    return [ends.mended(LogEntry(*entry)).data for entry in entries]


@pytest.mark.parametrize("rest", [b"rest", b""])
def test_the_last_piece_of_a_long_line_ends_it(rest):
    read = mended((OUT, 5, FULL), (OUT, 5, FULL), (OUT, 5, rest), (OUT, 6, b"next\n"))
    assert read == [FULL, FULL, rest + b"\n", b"next\n"]


def test_what_is_written_last_without_a_line_end_gets_none():
    assert mended((OUT, 5, b"line\n"), (OUT, 6, b"no end")) == [b"line\n", b"no end"]
    assert mended((OUT, 5, FULL)) == [FULL]
    assert mended((OUT, 5, FULL), (OUT, 5, b"rest"), (OUT, 6, b"no end"))[-1] == b"no end"


def test_streams_do_not_end_each_others_lines():
    read = mended((OUT, 5, FULL), (ERR, 5, b"no end"), (OUT, 5, b"rest"))
    assert read == [FULL, b"no end", b"rest\n"]


def test_a_line_that_has_its_end_gets_no_other():
    assert mended((OUT, 5, FULL), (OUT, 5, b"rest\n"), (OUT, 6, b"next\n"))[1] == b"rest\n"
