"""Which uids a server's children get (docs/security.md, 64)."""

from __future__ import annotations

import os

import pytest

from clawbox.children.uids import UidsExhaustedError, claimed


def test_rule_64_two_servers_of_a_machine_share_no_uid(tmp_path):
    claims = tmp_path / "claims" / "uids"
    with claimed(900_000, 4_000, claims) as one, claimed(900_000, 4_000, claims) as other:
        taken = [{uids.take() for _ in range(500)} for uids in (one, other)]
        assert not taken[0] & taken[1]
        # A range that is configured otherwise, and overlaps.
        with claimed(899_700, 1_000, claims) as third:
            assert third.take() not in range(900_000, 901_000)


def test_a_server_that_ended_leaves_its_uids_to_the_next(tmp_path):
    claims = tmp_path / "uids"
    with claimed(900_000, 4_000, claims) as uids:
        first = uids.take()
    with claimed(900_000, 4_000, claims) as uids:
        assert uids.take() == first


def test_a_server_too_many_is_told_what_to_change(tmp_path):
    claims = tmp_path / "uids"
    with (
        claimed(900_000, 16, claims),
        pytest.raises(UidsExhaustedError, match=r"900000 to 900015; see children\.uid_first"),
        claimed(900_000, 16, claims),
    ):
        pass


def test_where_nothing_can_be_claimed_a_server_says_so_and_runs(tmp_path, caplog):
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "uids").symlink_to(elsewhere)
    with claimed(900_000, 16, tmp_path / "uids") as uids:
        assert uids.take() == 900_000
    assert "do not run a second server here as root" in caplog.text
    assert not os.path.lexists(elsewhere)
