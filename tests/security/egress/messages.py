"""Reading messages in pieces, and the corpus of them in ``tests/data/egress``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox.egress.http.reader import RequestReader, ResponseReader
from clawbox.egress.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CORPUS = Path(__file__).parents[2] / "data" / "egress"
REQUESTS = sorted((CORPUS / "requests").iterdir())
RESPONSES = sorted((CORPUS / "responses").iterdir())
Event = object


def cut(data: bytes, positions: Iterable[int]) -> list[bytes]:
    """``data`` cut at the positions."""
    edges = [0, *sorted(positions), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def merged(events: Iterable[Event]) -> list[Event]:
    """Events with adjacent payload joined: what does not depend on how the bytes came."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += event
        else:
            found.append(event)
    return found


def read_request(pieces: Sequence[bytes], *, eof: bool = True) -> list[Event]:
    """The events of one request."""
    reader = RequestReader()
    events: list[Event] = []
    for piece in pieces:
        events += reader.feed(piece)
    refusal = reader.eof() if eof else None
    return merged([*events, *([refusal] if refusal else [])])


def read_response(pieces: Sequence[bytes], method: str = "GET", *, clean: bool = True) -> list[Event]:
    """The events of one response, and of the connection's end."""
    reader = ResponseReader()
    reader.expect(method)
    events: list[Event] = []
    for piece in pieces:
        events += reader.feed(piece)
    return merged([*events, *reader.eof(clean=clean)])


def reason_of(events: Sequence[Event]) -> str:
    """How the file of a message that is read so begins: ``ok``, or the code of its refusal."""
    assert not [event for event in events[:-1] if isinstance(event, Refusal)]
    last = events[-1]
    return last.code if isinstance(last, Refusal) else "ok"
