"""Files of a stream, and reading them, against a model that keeps everything in memory."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbox.containers.backend import Stream
from clawbox.containers.output import checkpoint
from clawbox.containers.output.checkpoint import Checkpoint, StreamPoint
from clawbox.containers.output.place import Finder, LogPlace, Verdict, since
from clawbox.containers.output.reading import Chunk, Gap, Offsets, Oldest, Since, TailLines, begin, take
from clawbox.containers.output.segments import SEGMENTS, StreamFiles, segment_bytes

OUT, ERR = Stream.STDOUT, Stream.STDERR
SIZE = 32  # of a segment, in these tests
SECOND = 10**9

writes = st.lists(
    st.tuples(st.sampled_from([OUT, ERR]), st.text("ab\n", min_size=1, max_size=12).map(str.encode)),
    max_size=60,
)


def files_in(folder, size=SIZE):
    return {stream: StreamFiles(Path(folder), stream.value, size) for stream in (OUT, ERR)}


def everything(files, at, *, follow=False):
    cursors = begin(files, at, follow=follow)
    events = []
    while (event := take(cursors)) is not None:
        events.append(event)
    return events


def data(events, stream):
    return b"".join(one.data for one in events if isinstance(one, Chunk) and one.stream is stream)


def fill(files, written):
    """Write each a second after the one before; returns all bytes of each stream."""
    whole = {OUT: b"", ERR: b""}
    for second, (stream, text) in enumerate(written, 1):
        files[stream].append(text, second * SECOND)
        whole[stream] += text
    return whole


@given(writes)
@settings(max_examples=60, deadline=None)
def test_what_is_read_is_the_end_of_what_was_written(written):
    with tempfile.TemporaryDirectory() as folder:
        files = files_in(folder)
        whole = fill(files, written)
        events = everything(files, Oldest())
        for stream in (OUT, ERR):
            kept = data(events, stream)
            assert whole[stream].endswith(kept)
            assert files[stream].end == len(whole[stream])
            assert len(kept) >= min(len(whole[stream]), (SEGMENTS - 1) * SIZE)
            assert len(kept) < SEGMENTS * (SIZE + 12)
            position = files[stream].begin
            for chunk in (one for one in events if one.stream is stream):
                assert chunk.offset == position
                position += len(chunk.data)
        times = [chunk.time_ns for chunk in events]
        assert times == sorted(times)


@given(writes, st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_a_reader_goes_on_behind_what_it_has_or_is_told_what_it_missed(written, out, err):
    with tempfile.TemporaryDirectory() as folder:
        files = files_in(folder)
        whole = fill(files, written)
        events = everything(files, Offsets(out, err), follow=True)
        for stream, offset in ((OUT, out), (ERR, err)):
            missed = max(files[stream].begin - offset, 0)
            gaps = [one for one in events if isinstance(one, Gap) and one.stream is stream]
            assert gaps == ([Gap(stream, offset, missed)] if missed else [])
            assert data(events, stream) == whole[stream][offset + missed :]


@given(writes, st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_reader_begins_with_the_piece_of_a_time(written, second):
    with tempfile.TemporaryDirectory() as folder:
        files = files_in(folder, 1 << 20)
        fill(files, written)
        events = everything(files, Since(second * SECOND))
        for stream in (OUT, ERR):
            expected = [text for at, (one, text) in enumerate(written, 1) if one is stream and at >= second]
            assert data(events, stream) == b"".join(expected)


@given(writes, st.integers(0, 40), st.booleans())
@settings(max_examples=80, deadline=None)
def test_so_many_lines_of_one_stream_are_its_last_ones(written, lines, rotated):
    written = [(OUT, text) for _, text in written]
    with tempfile.TemporaryDirectory() as folder:
        files = files_in(folder, SIZE if rotated else 1 << 20)
        fill(files, written)
        kept = data(everything(files, Oldest()), OUT).splitlines(keepends=True)
        assert data(everything(files, TailLines(lines)), OUT) == b"".join(
            kept[len(kept) - lines :] if lines < len(kept) else kept if lines else []
        )


def test_lines_of_both_streams_are_counted_by_time(tmp_path):
    files = files_in(tmp_path)
    fill(files, [(OUT, b"1\n"), (ERR, b"2\n"), (OUT, b"3\n"), (ERR, b"4\n"), (OUT, b"5")])
    assert [one.data for one in everything(files, TailLines(3))] == [b"3\n", b"4\n", b"5"]


@given(writes, st.data())
@settings(max_examples=60, deadline=None)
def test_a_process_that_died_at_any_byte_leaves_files_that_go_on(written, more):
    with tempfile.TemporaryDirectory() as folder:
        files = files_in(folder)
        whole = fill(files, written)
        for stream in (OUT, ERR):
            if files[stream].segments and files[stream].segments[-1].size:
                # The last write was not finished: of its bytes some are missing, or all.
                path = max(Path(folder).glob(f"{stream.value}-*.data"))
                lost = more.draw(st.integers(0, files[stream].segments[-1].size))
                path.write_bytes(path.read_bytes()[: path.stat().st_size - lost])
                whole[stream] = whole[stream][: len(whole[stream]) - lost]
        again = files_in(folder)
        for stream in (OUT, ERR):
            again[stream].load()
            assert again[stream].end == len(whole[stream])
            again[stream].append(b"more\n", 10**12)
            kept = data(everything(again, Oldest()), stream)
            assert (whole[stream] + b"more\n").endswith(kept)
            assert kept.endswith(b"more\n")


def test_a_reader_that_is_slower_than_the_files_go_is_told_so(tmp_path):
    files = files_in(tmp_path)
    files[OUT].append(b"x" * SIZE, 1)
    cursors = begin({OUT: files[OUT]}, Oldest(), follow=True)
    assert take(cursors) == Chunk(OUT, b"x" * SIZE, 0, 1)
    for number in range(2, 9):
        files[OUT].append(b"y" * SIZE, number * SECOND)
    assert take(cursors) == Gap(OUT, SIZE, 3 * SIZE)
    assert take(cursors) == Chunk(OUT, b"y" * SIZE, 4 * SIZE, 5 * SECOND)


def test_what_never_came_is_a_gap_of_unknown_length(tmp_path):
    files = files_in(tmp_path)
    files[OUT].append(b"before\n", 1)
    files[OUT].mark_lost(2)
    files[OUT].append(b"after\n", 3 * SECOND)
    files[ERR].mark_lost(4 * SECOND)
    for at in (Oldest(), TailLines(2), Since(0)):
        assert everything(files, at) == [
            Chunk(OUT, b"before\n", 0, 1),
            Gap(OUT, 7, 0),
            Chunk(OUT, b"after\n", 7, 3 * SECOND),
            Gap(ERR, 0, 0),
        ]
    again = files_in(tmp_path)
    again[OUT].load()
    assert everything({OUT: again[OUT]}, Offsets(7))[0] == Gap(OUT, 7, 0)


def test_bytes_that_a_dead_machine_lost_are_a_gap(tmp_path):
    files = files_in(tmp_path)
    files[OUT].append(b"on disk\n", 1)
    files[OUT].begin_at(20)
    files[OUT].append(b"later\n", 2)
    assert everything(files, Oldest()) == [
        Chunk(OUT, b"on disk\n", 0, 1),
        Gap(OUT, 8, 12),
        Chunk(OUT, b"later\n", 20, 2),
    ]


@pytest.mark.parametrize("max_output_bytes", [1, 1 << 20, 4 << 20, 64 << 20])
def test_twice_what_may_be_asked_for_is_kept_though_the_oldest_has_just_gone(max_output_bytes):
    assert (SEGMENTS - 1) * segment_bytes(max_output_bytes) >= 2 * max_output_bytes


def test_a_checkpoint_that_was_half_written_is_not_believed(tmp_path):
    path = tmp_path / "checkpoint"
    assert checkpoint.read(path) is None
    first = Checkpoint(1, StreamPoint(10, LogPlace(5, 1), (("im_start", "marked", 2),)), ended=False)
    second = Checkpoint(2, StreamPoint(20, LogPlace(6, 3)), ended=True)
    for one in (first, second):
        checkpoint.write(path, one)
        assert checkpoint.read(path) == one
    torn = bytearray(path.read_bytes())
    torn[10] ^= 1  # within the newer, whose number is even
    path.write_bytes(torn)
    assert checkpoint.read(path) == first


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30).map(sorted), st.data())
def test_a_place_is_found_again_in_a_log(times, more):
    at = more.draw(st.integers(0, len(times)))
    place = LogPlace()
    for time_ns in times[:at]:
        place = place.after(time_ns)
    finder = Finder(place, since(place))
    verdicts = [finder.see(time_ns) for time_ns in times]
    assert verdicts == [Verdict.SKIP] * at + [Verdict.TAKE] * (len(times) - at)


def test_a_place_that_is_not_in_the_log_any_more_is_a_gap():
    finder = Finder(LogPlace(5, 2), 0)
    assert [finder.see(time_ns) for time_ns in (4, 5, 9, 9)] == [
        Verdict.SKIP,
        Verdict.SKIP,
        Verdict.TAKE_BEHIND_GAP,
        Verdict.TAKE,
    ]


def test_a_silent_stream_does_not_have_the_whole_log_read_again():
    silent, latest = LogPlace(1, 1), LogPlace(100 * SECOND, 1)
    assert since(silent, latest) == 99 * SECOND
    assert Finder(silent, 99 * SECOND).see(100 * SECOND) is Verdict.TAKE
    assert since(LogPlace(), LogPlace()) == 0
