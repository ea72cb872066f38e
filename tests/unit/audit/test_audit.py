"""The audit log: every row is chained, survives crashes and rotation, and tampering is found out."""

import asyncio
import errno
import json
import os
import stat
import time

import pytest

from clawbox.audit import AuditLog, counting, files, verify
from clawbox.audit import log as log_module
from clawbox.audit import watch as watch_module
from clawbox.audit.room import ROOM_BYTES
from clawbox.errors import ClawboxError, Reason


def rows(folder):
    paths = [*sorted(folder.glob("audit-0*.jsonl")), folder / "audit.jsonl"]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


async def written(folder, count, **settings):
    async with AuditLog(folder, **settings) as log:
        for number in range(count):
            log.append("execute", principal="ann", request_id=f"r{number}", decision="ok", tool="echo")
        return log.head


async def test_a_row_says_what_happened_and_is_chained(tmp_path):
    folder = tmp_path / "logs" / "audit"
    head = await written(folder, 3)
    first, second, third = rows(folder)
    assert first["sequence"] == 1
    assert (first["kind"], first["principal"], first["decision"]) == ("execute", "ann", "ok")
    assert first["fields"] == {"tool": "echo"}
    assert first["time"].endswith("Z")
    assert len(first["time"]) == len("2026-01-01T00:00:00.000000Z")
    assert first["prev"] == "0" * 64
    assert (second["prev"], third["prev"]) == (first["hash"], second["hash"])
    assert head == f"3:{third['hash']}"
    assert verify(folder, head).ok
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "audit.jsonl").stat().st_mode) == 0o600


async def test_the_chain_goes_on_after_a_restart(tmp_path):
    await written(tmp_path, 2)
    head = await written(tmp_path, 2)
    verdict = verify(tmp_path, head)
    assert (verdict.ok, verdict.rows, verdict.last_sequence, verdict.expected_head) == (True, 4, 4, "found")


async def test_the_chain_goes_on_in_the_next_file_and_after_a_restart_at_its_begin(tmp_path):
    await written(tmp_path, 50, max_file_bytes=4096)
    closed = sorted(path.name for path in tmp_path.glob("audit-0*.jsonl"))
    assert len(closed) > 2
    assert closed[0] == "audit-00000000000000000001.jsonl"
    assert all((tmp_path / name).stat().st_size < 5000 for name in closed)
    await written(tmp_path, 30, max_file_bytes=4096)
    verdict = verify(tmp_path)
    assert (verdict.ok, verdict.rows, verdict.pruned) == (True, 80, False)
    assert [row["sequence"] for row in rows(tmp_path)] == list(range(1, 81))


async def test_a_restart_with_an_empty_newest_file_finds_the_chain(tmp_path):
    async with AuditLog(tmp_path, max_file_bytes=1) as log:  # every row fills a file
        log.append("a")
        log.append("b")
    assert (tmp_path / "audit.jsonl").stat().st_size == 0
    await written(tmp_path, 1)
    assert (verify(tmp_path).ok, verify(tmp_path).last_sequence) == (True, 3)


async def test_rule_75_full_files_are_removed_by_age_never_by_number_alone(tmp_path):
    await written(tmp_path, 60, max_file_bytes=4096, keep_files=1)
    closed = sorted(tmp_path.glob("audit-0*.jsonl"))
    assert len(closed) > 3
    old = time.time() - files.MIN_AGE_S - 60
    for path in closed[:-2]:
        os.utime(path, (old, old))
    await written(tmp_path, 1, keep_files=1)
    assert sorted(tmp_path.glob("audit-0*.jsonl")) == closed[-2:]
    verdict = verify(tmp_path)
    assert (verdict.ok, verdict.pruned) == (True, True)
    assert verdict.first_sequence > 1


# Crashes


@pytest.mark.parametrize(
    "torn", [b'{"sequence":4,"time":"20', b"\0" * 700, b"\0\0\n\0\0", b'{"sequence":4}\n']
)
async def test_what_a_crash_left_is_set_aside_and_recorded(tmp_path, torn):
    await written(tmp_path, 3)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(torn)
    await written(tmp_path, 1)
    gap = rows(tmp_path)[3]
    assert (gap["sequence"], gap["kind"]) == (4, "audit_gap")
    assert gap["fields"]["bytes"] == len(torn)
    assert (tmp_path / gap["fields"]["file"]).read_bytes() == torn
    verdict = verify(tmp_path)
    assert (verdict.ok, verdict.rows, verdict.gaps) == (True, 5, (4,))


async def test_a_log_whose_end_is_nothing_but_rubbish_is_not_continued(tmp_path):
    await written(tmp_path, 3)
    (tmp_path / "audit.jsonl").write_bytes(b"x" * (1 << 20))
    with pytest.raises(ClawboxError, match="verify it") as caught:
        await written(tmp_path, 1)
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE


# Tampering


async def tampered(folder, change):
    head = await written(folder, 5)
    path = folder / "audit.jsonl"
    path.write_bytes(change(path.read_bytes()))
    return verify(folder, head)


async def test_a_changed_row_is_named(tmp_path):
    verdict = await tampered(tmp_path, lambda data: data.replace(b'"r2"', b'"r9"'))
    assert not verdict.ok
    assert verdict.bad is not None
    assert (verdict.bad.file, verdict.bad.line, verdict.bad.sequence) == ("audit.jsonl", 3, 3)
    assert "hash" in verdict.bad.problem


async def test_a_row_that_was_taken_out_is_missed(tmp_path):
    verdict = await tampered(
        tmp_path,
        lambda data: b"".join(line for n, line in enumerate(data.splitlines(keepends=True)) if n != 2),
    )
    assert verdict.bad is not None
    assert verdict.bad.problem == "rows 3 to 3 are missing"


async def test_rows_that_changed_places_are_noticed(tmp_path):
    def swap(data):
        lines = data.splitlines(keepends=True)
        lines[1], lines[2] = lines[2], lines[1]
        return b"".join(lines)

    verdict = await tampered(tmp_path, swap)
    assert verdict.bad is not None
    assert verdict.bad.line == 2


async def test_a_log_that_was_cut_short_lacks_the_expected_head(tmp_path):
    verdict = await tampered(tmp_path, lambda data: b"".join(data.splitlines(keepends=True)[:3]))
    assert verdict.bad is None
    assert (verdict.ok, verdict.expected_head) == (False, "not found")


async def test_rule_75_a_log_that_was_written_anew_lacks_the_expected_head(tmp_path):
    head = await written(tmp_path / "a", 5)
    await written(tmp_path / "b", 6)
    verdict = verify(tmp_path / "b", head)
    assert (verdict.ok, verdict.bad, verdict.expected_head) == (False, None, "not found")


async def test_a_file_missing_in_the_middle_is_tampering_and_at_the_beginning_pruning(tmp_path):
    head = await written(tmp_path, 60, max_file_bytes=4096)
    closed = sorted(tmp_path.glob("audit-0*.jsonl"))
    first_head = verify(tmp_path).head
    assert first_head == head
    old = rows(tmp_path)[0]
    closed[0].unlink()
    verdict = verify(tmp_path, f"1:{old['hash']}")
    assert (verdict.ok, verdict.pruned, verdict.expected_head) == (True, True, "pruned")
    closed[2].unlink()
    verdict = verify(tmp_path)
    assert not verdict.ok
    assert verdict.bad is not None
    assert "are missing" in verdict.bad.problem


def test_a_head_that_is_none_is_said(tmp_path):
    with pytest.raises(ValueError, match="SEQUENCE:HASH"):
        verify(tmp_path, "7")


# The folder


async def test_two_servers_cannot_write_one_log(tmp_path):
    async with AuditLog(tmp_path):
        with pytest.raises(ClawboxError, match="a server that is running writes there") as caught:
            await written(tmp_path, 1)
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    await written(tmp_path, 1)


async def test_a_folder_that_others_can_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ClawboxError, match="chmod go-w"):
        await written(tmp_path, 1)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClawboxError) as caught:
        await written(tmp_path / "file" / "audit", 1)
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE


# Contents


async def test_rule_75_long_values_are_cut_to_1_kib_and_odd_ones_are_written(tmp_path):
    async with AuditLog(tmp_path) as log:
        log.append(
            "execute",
            principal="p" * 5000,
            text="é" * 5000,
            big=10**40,
            data=b"\xff",
            lone="\ud800",
            nested={"a": ["b" * 5000]},
            small={"a": [1, None, True]},
        )
    [row] = rows(tmp_path)
    fields = row["fields"]
    for value in (row["principal"], fields["text"], fields["nested"]):
        assert 1000 < len(value.encode()) <= 1024
        assert value.endswith("…")
    assert fields["big"] == str(10**40)
    assert fields["small"] == {"a": [1, None, True]}
    assert verify(tmp_path).ok


async def test_rule_75_beyond_a_rate_rows_of_strangers_are_counted_in_one(tmp_path):
    async with AuditLog(tmp_path) as log:
        for number in range(1000):
            log.append_counted("token_refused", decision="denied", peer=f"10.0.0.{number % 256}")
        log.append_counted("other_kind", decision="denied")
    found = rows(tmp_path)
    assert len(found) == counting.BURST + 2
    assert found[-1]["kind"] == "token_refused"
    assert found[-1]["decision"] == "denied"
    assert found[-1]["fields"] == {"count": 1000 - counting.BURST, "window_s": 60.0}


async def test_counted_rows_are_written_when_their_window_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "WINDOW_S", 0.01)
    async with AuditLog(tmp_path) as log:
        for _ in range(counting.BURST + 5):
            log.append_counted("token_refused", decision="denied")
        async for row in log.watch(after_sequence=counting.BURST):
            assert row.fields["count"] == 5
            break


# When it cannot be written


class FullDisk:
    """``os.write`` and ``os.posix_fallocate`` of a disk with room for so many bytes."""

    def __init__(self, monkeypatch, room):
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "posix_fallocate", self.allocate)

    def write(self, fd, data):
        if len(data) > self.room:
            if self.room > 0:
                return self._write(fd, data[: self.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return self._write(fd, data)

    def allocate(self, fd, offset, size):
        if size > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_rule_99_on_a_full_disk_running_calls_are_recorded_and_new_ones_refused(tmp_path, monkeypatch):
    async with AuditLog(tmp_path) as log:
        log.require()
        disk = FullDisk(monkeypatch, room=0)
        unlink = type(tmp_path).unlink

        def free(path):
            unlink(path)
            disk.room = 3000

        monkeypatch.setattr(type(tmp_path), "unlink", free)
        assert log.append("execute", decision="ok") == 1
        monkeypatch.undo()
        FullDisk(monkeypatch, room=3000)
        with pytest.raises(ClawboxError) as caught:
            log.require()
        assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
        assert "No space left" in caught.value.message
        assert log.append("execute") == 2  # of a call that ran on while others were refused
        monkeypatch.undo()
        monkeypatch.setattr(log_module, "_RETRY_EVERY_S", 0)
        log._next_try = 0
        log.require()
        assert log.append("execute") == 3
    assert verify(tmp_path).ok


async def test_rows_that_were_lost_are_told_once_it_works_again(tmp_path, monkeypatch):
    failures = []
    monkeypatch.setattr(log_module, "_RETRY_EVERY_S", 0)
    async with AuditLog(tmp_path, on_failure=lambda: failures.append(1)) as log:
        log.append("execute")
        with monkeypatch.context() as broken:
            FullDisk(broken, room=20)  # the beginning of a row gets through
            log._writer.has_reserve = False
            for _ in range(3):
                assert log.append("execute") == 0
            assert log.lost == 3
            assert log.failure
            assert not log.available()
        log.require()
        assert (log.lost, log.failure) == (0, "")
        log.append("execute", tool="after")
    assert len(failures) == 3
    kinds = [(row["kind"], row["fields"].get("lost")) for row in rows(tmp_path)]
    assert kinds == [("execute", None), ("audit_gap", 3), ("execute", None)]
    assert verify(tmp_path).ok


async def test_where_the_operator_wants_to_continue_nothing_is_refused(tmp_path, monkeypatch):
    async with AuditLog(tmp_path, on_error="continue") as log:
        FullDisk(monkeypatch, room=0)
        log._writer.has_reserve = False
        assert log.append("execute") == 0
        log.require()
        assert "No space left" in log.failure


async def test_a_file_that_vanishes_under_the_server_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "_RETRY_EVERY_S", 3600)
    async with AuditLog(tmp_path) as log:
        log.append("execute")
        log._next_try = time.monotonic() + 3600
        (tmp_path / "audit.jsonl").unlink()
        with pytest.raises(ClawboxError, match="removed or replaced"):
            log.require()
        log._next_try = 0
        log.require()
        assert log.append("execute") == 2
    assert (verify(tmp_path).ok, verify(tmp_path).pruned) == (True, True)


# Watching


async def take(stream, count):
    found = []
    async for row in stream:
        found.append(row)
        if len(found) == count:
            break
    await stream.aclose()
    return found


async def test_a_watcher_gets_new_rows(tmp_path):
    async with AuditLog(tmp_path) as log:
        log.append("before")
        watching = asyncio.create_task(take(log.watch(), 2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        log.append("execute", tool="a")
        log.append("execute", tool="b")
        assert [(row.sequence, row.fields) for row in await watching] == [
            (2, {"tool": "a"}),
            (3, {"tool": "b"}),
        ]


async def test_a_watcher_gets_what_is_kept_and_then_what_is_new_without_gap_or_repeat(tmp_path):
    async with AuditLog(tmp_path, max_file_bytes=4096) as log:
        for _ in range(700):
            log.append("execute")
        stream = log.watch(after_sequence=5)
        sequences = []
        async for row in stream:
            sequences.append(row.sequence)
            if row.sequence % 7 == 0 and log.head.partition(":")[0] < "950":
                log.append("execute")  # rows keep coming while history is read
            if row.sequence >= 700 and row.sequence == int(log.head.partition(":")[0]):
                break
        await stream.aclose()
    assert sequences == list(range(6, sequences[-1] + 1))
    assert len(sequences) > 700


async def test_a_watcher_gets_only_what_it_asked_for(tmp_path):
    async with AuditLog(tmp_path) as log:
        for kind in ("execute", "tool_upload"):
            for who in ("ann", "bob"):
                log.append(kind, principal=who)
        found = await take(log.watch(after_sequence=0, principal="bob"), 2)
        assert [row.sequence for row in found] == [2, 4]
        found = await take(log.watch(after_sequence=0, principal="bob", kinds=frozenset({"tool_upload"})), 1)
        assert [row.sequence for row in found] == [4]


async def test_a_watcher_of_rows_that_are_gone_gets_those_that_are_kept(tmp_path):
    await written(tmp_path, 60, max_file_bytes=4096)
    min(tmp_path.glob("audit-0*.jsonl")).unlink()
    first = verify(tmp_path).first_sequence
    async with AuditLog(tmp_path) as log:
        found = await take(log.watch(after_sequence=0), 61 - first)
    assert [row.sequence for row in found] == list(range(first, 61))


async def test_a_watcher_that_is_too_slow_is_cut(tmp_path):
    async with AuditLog(tmp_path) as log:
        stream = log.watch(after_sequence=0)
        log.append("execute")
        assert (await anext(stream)).sequence == 1
        for _ in range(watch_module.MAX_BUFFERED_ROWS + 1):
            log.append("execute")
        last = [await anext(stream) for _ in range(watch_module.MAX_BUFFERED_ROWS)][-1]
        with pytest.raises(ClawboxError) as caught:
            await anext(stream)
        assert caught.value.reason is Reason.SLOW_READER
        found = await take(log.watch(after_sequence=last.sequence), 1)
        assert found[0].sequence == last.sequence + 1


async def test_watching_ends_when_the_log_is_closed(tmp_path):
    async with AuditLog(tmp_path) as log:
        log.append("execute")
        stream = log.watch(after_sequence=0)
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_rule_99_a_full_file_gives_its_room_back_and_the_next_one_has_room(tmp_path):
    def blocks(file):
        return file.stat().st_blocks * 512

    async with AuditLog(tmp_path, max_file_bytes=4096) as log:
        log.append("execute")
        if log.reserve_problem:
            pytest.skip(f"this file system keeps no blocks behind the end of a file: {log.reserve_problem}")
        assert blocks(tmp_path / "audit.jsonl") >= ROOM_BYTES
        while not log.rotated.is_set():
            log.append("execute")
        (full,) = tmp_path.glob("audit-0*.jsonl")
        assert blocks(full) < ROOM_BYTES // 8
        assert blocks(tmp_path / "audit.jsonl") >= ROOM_BYTES
    assert verify(tmp_path).ok
