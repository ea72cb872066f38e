"""Shapes: each finds its issuer's format whole, and what lacks the checksum is told apart."""

import pytest

from clawbox.egress.patterns import PatternSet
from clawbox.egress.shapes import CREDENTIAL_SHAPES, GENERIC_SHAPES
from tests.unit.egress.shape_examples import EXAMPLES

patterns = PatternSet(CREDENTIAL_SHAPES)
shapes = pytest.mark.parametrize("name", EXAMPLES)


def test_there_is_an_example_and_a_source_for_each_of_some_thirty_shapes():
    assert [pattern.name for pattern in CREDENTIAL_SHAPES] == list(EXAMPLES)
    assert len(CREDENTIAL_SHAPES) >= 30
    assert all(len(pattern.source) > 10 for pattern in CREDENTIAL_SHAPES)


@shapes
@pytest.mark.parametrize("around", [b"%b", b'{"key": "%b"}', b"a=b&t=%b&c=d", b"x\n%b\ny", b"\xff%b\xff"])
def test_the_whole_of_an_example_is_found_wherever_it_stands(name, around):
    example = EXAMPLES[name].encode()
    data = around % example
    match = next(match for match in patterns.find(data) if match.pattern.name == name)
    found = data[match.start : match.end]
    assert found.rstrip() == example
    assert match.checksum_holds(data)


@pytest.mark.parametrize("name", [pattern.name for pattern in CREDENTIAL_SHAPES if pattern.check])
def test_one_changed_character_breaks_the_checksum(name):
    example = EXAMPLES[name]
    place = 1 if name == "discord_bot_token" else len(example) - 12
    other = "Q" if example[place].upper() != "Q" else "P"
    data = (example[:place] + other + example[place + 1 :]).encode()
    matches = [match for match in patterns.find(data) if match.pattern.name == name]
    assert [match.checksum_holds(data) for match in matches] == [False]


def test_githubs_own_example_has_the_right_checksum():
    # Of GitHub's blog and of the reports about it.
    data = b"ghp" + b"_zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ0mLq17"
    assert [match.checksum_holds(data) for match in patterns.find(data)] == [True]


@pytest.mark.parametrize(
    "url",
    [
        b"https://s3.example.com/x?X-Amz-Credential=%b%%2F20260101%%2Fus-east-1",
        b"https://s3.example.com/x?AWSAccessKeyId=%b&Expires=1",
        b"AWS4-HMAC-SHA256 Credential=%b/20260101/us-east-1/s3/aws4_request",
    ],
)
def test_the_signer_that_a_signed_url_names_is_no_finding(url):
    assert patterns.find(url % EXAMPLES["aws_access_key_id"].encode()) == []


def test_patterns_of_ordinary_logins_are_not_for_requests():
    generic = {pattern.name for pattern in GENERIC_SHAPES}
    assert generic == {"bearer_token", "api_key_assignment", "secret_assignment"}
    assert patterns.find(b"password=hunter2hunter2hunter2&api_key=abcdefghijklmnopqrstuvwx") == []
    assert patterns.find(b"Authorization: Bearer abcdefghijklmnopqrstuvwxyz012345") == []
