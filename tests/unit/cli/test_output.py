from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.cli.errors import CliError, ExitCode, describe
from clawbox.cli.output import escape, json_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 🎉", "plain é 漢 🎉"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[2J\r\x00\x7f", "\\x1b[2J\\r\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\ud800", "\\ud800"),
        ("a\u2028b\u200bc", "a\\u2028b\\u200bc"),
    ],
)
def test_escape(text, shown):
    assert escape(text) == shown


@given(st.text())
def test_what_is_escaped_is_one_printable_line_when_nothing_is_kept(text):
    assert all(
        char.isprintable() or char in "\u200d\u00a0\u3000" or char.isspace() for char in escape(text, keep="")
    )
    assert "\n" not in escape(text, keep="")
    assert "\x1b" not in escape(text, keep="")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(_JSON)
def test_json_reads_back_as_it_was(value):
    text = json_text(value, indent=2)
    assert json.loads(text) == value
    assert "\x1b" not in text
    assert "\x9b" not in text
    text.encode()


def test_every_exit_code_has_a_meaning():
    assert all(code.meaning for code in ExitCode)


def test_an_error_is_one_line_whatever_it_says():
    assert str(describe(CliError("a\nb", hint="c?"))) == "clawbox: a\\nb. c?"
    assert describe(KeyError("x")).code is ExitCode.INTERNAL
