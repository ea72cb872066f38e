"""Reading a log that a server writes to: whatever it does meanwhile, each row is read, once and in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawbox.audit import AuditLog, files, verify
from clawbox.audit.files import CURRENT, HistoryReader


def sequences(rows):
    return [row.sequence for row in rows]


@pytest.fixture
async def log(tmp_path):
    async with AuditLog(tmp_path, max_file_bytes=1000) as log:
        log.append("first")
        yield log


async def test_rows_that_end_a_file_just_when_its_end_was_read_are_read(tmp_path, log, monkeypatch):
    reader = HistoryReader(tmp_path, 0)
    assert sequences(reader.read(10)) == [1]
    listed = files.closed_files

    def written_first(folder):
        monkeypatch.setattr(files, "closed_files", listed)
        while len(listed(folder)) < 2:
            log.append("meanwhile")
        log.append("last")
        return listed(folder)

    monkeypatch.setattr(files, "closed_files", written_first)
    assert sequences(reader.read(1000)) == list(range(2, int(log.head.split(":")[0]) + 1))
    reader.close()


async def test_a_log_whose_file_is_being_replaced_verifies(tmp_path, log, monkeypatch):
    while not files.closed_files(tmp_path):
        log.append("more")
    opened = Path.open

    def not_there_yet(path, *args):
        if path.name == CURRENT:
            monkeypatch.undo()
            raise FileNotFoundError
        return opened(path, *args)

    monkeypatch.setattr(Path, "open", not_there_yet)
    verdict = verify(tmp_path)
    assert (verdict.ok, verdict.last_sequence) == (True, int(log.head.split(":")[0]))
