"""The end of a log, read from its folder."""

from __future__ import annotations

import shutil

import pytest

from clawbox.audit import AuditLog
from clawbox.audit.tail import last_rows, rows_after


@pytest.fixture
async def folder(tmp_path):
    """Sixty rows in several files."""
    async with AuditLog(tmp_path, max_file_bytes=4096) as log:
        for number in range(60):
            log.append("egress" if number % 2 else "execute", decision="allowed", number=number)
    assert len(list(tmp_path.glob("audit-0*.jsonl"))) > 1
    return tmp_path


def everything(_row) -> bool:
    return True


@pytest.mark.parametrize("count", [0, 1, 7, 40, 60, 100])
def test_the_last_rows_and_where_the_log_ends(folder, count):
    rows, last = last_rows(folder, count, everything)
    assert [row.sequence for row in rows] == list(range(61 - min(count, 60), 61))
    assert last == 60


def test_only_wanted_rows_are_counted(folder):
    rows, last = last_rows(folder, 25, lambda row: row.kind == "execute")
    assert [row.sequence for row in rows] == list(range(11, 61, 2))
    assert last == 60


def test_a_file_that_is_closed_meanwhile_is_counted_once(folder):
    # What a reader sees who opened the file before it got its other name, and lists the folder after.
    newest = max(folder.glob("audit-0*.jsonl"))
    shutil.copy(folder / "audit.jsonl", newest.with_name("audit-00000000000000000059.jsonl"))
    rows, _ = last_rows(folder, 100, everything)
    assert [row.sequence for row in rows] == list(range(1, 61))


def test_lines_that_are_no_rows_are_passed_over(folder):
    path = folder / "audit.jsonl"
    path.write_bytes(b"no row\n" + path.read_bytes() + b'{"torn')
    rows, last = last_rows(folder, 3, everything)
    assert ([row.sequence for row in rows], last) == ([58, 59, 60], 60)


def test_an_empty_folder_has_no_rows(tmp_path):
    assert last_rows(tmp_path, 10, everything) == ([], 0)
    assert list(rows_after(tmp_path, 0, lambda: False)) == []


def test_rows_after_one_go_over_files_and_wait_at_the_end(folder):
    waited: list[None] = []

    def wait() -> bool:
        waited.append(None)
        return len(waited) < 3

    assert [row.sequence for row in rows_after(folder, 30, wait)] == list(range(31, 61))
    assert len(waited) == 3
