"""``make leak-report`` counts what is found, names what is not, and fails when a promise is broken."""

import pytest

from clawbox.egress.leaks import LeakDetector
from tests.unit.egress.spellings import SECRETS
from tools import leak_report


@pytest.fixture(autouse=True)
def one_secret(monkeypatch):
    monkeypatch.setattr(leak_report, "SECRETS", {"token": SECRETS["token"]})


def test_rule_77_the_report_counts_and_names_what_passes(capsys):
    assert leak_report.recall(LeakDetector(SECRETS.items()))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["raw", "URL", "1/1", "name", "1/1", "value", "1/1"] == next(
        line[:7] for line in lines if line[0] == "raw"
    )
    assert ["reversed", "0/1"] in lines


def test_rule_77_a_promise_that_is_not_kept_fails_the_report(monkeypatch, capsys):
    monkeypatch.setattr(leak_report, "ENCODINGS", {"reversed": lambda secret: secret[::-1].encode()})
    assert not leak_report.recall(LeakDetector(SECRETS.items()))
    assert "body out 0/" in capsys.readouterr().out
