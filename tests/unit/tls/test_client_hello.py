"""Reading a TLS client's first flight: what is in it, however it is cut, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbox.egress.refusal import Denial, RefusedError
from clawbox.egress.tls.client_hello import (
    MAX_CLIENT_HELLO,
    MAX_FLIGHT,
    ClientHello,
    begins_tls,
    read_client_hello,
)
from tests.unit.tls.flights import alpn, extension, hello, message, real_hello, record, server_name, vector

NAMED = server_name(b"api.example.com")
GREASE = extension(0x8A8A, b"\0")
ECH = extension(0xFE0D, b"\0\0\1\0\1\x2a" + vector(b"k" * 32, 2) + vector(b"p" * 144, 2))


def read_in_pieces(data: bytes, cuts: list[int]) -> ClientHello | None:
    """What is read as soon as it can be, when ``data`` comes cut so."""
    for cut in [*sorted(cuts), len(data)]:
        found = read_client_hello(data[:cut])
        if found is not None:
            return found
    return None


def refusal_of(data: bytes) -> Denial | None:
    """Why it is refused; None where it is read, or may be when more has come. Nothing else is raised."""
    try:
        read_client_hello(data)
    except RefusedError as error:
        return error.refusal.denial
    return None


@pytest.mark.parametrize("name", ["api.example.com", None])
@pytest.mark.parametrize("protocols", [[], ["http/1.1"], ["h2", "http/1.1"]])
def test_what_openssl_sends_is_read(name, protocols):
    data = real_hello(name, protocols)
    assert begins_tls(data)
    assert ClientHello(name, tuple(p.encode() for p in protocols)) == read_client_hello(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (hello(NAMED), ClientHello("api.example.com", ())),
        (hello(), ClientHello(None, ())),
        (record(message(None)), ClientHello(None, ())),  # TLS 1.0 had no extensions
        (hello(GREASE, NAMED, ECH, alpn(b"h2")), ClientHello("api.example.com", (b"h2",))),
        (hello(alpn(b"\x0a\x0a", b"http/1.1")), ClientHello(None, (b"\x0a\x0a", b"http/1.1"))),
        (hello(NAMED) + record(b"later", kind=23), ClientHello("api.example.com", ())),
        (hello(server_name(b"API.example.com")), ClientHello("API.example.com", ())),
    ],
)
def test_what_is_in_it_is_found(data, expected):
    assert expected == read_client_hello(data)
    assert expected == read_client_hello(bytearray(data))


def test_every_split_and_every_fragment_reads_the_same():
    expected = ClientHello("api.example.com", (b"http/1.1",))
    whole = message(NAMED + alpn(b"http/1.1"))
    for at in range(1, len(whole)):
        data = record(whole[:at]) + record(whole[at:])
        assert expected == read_client_hello(data)
        assert all(read_client_hello(data[:cut]) is None for cut in (at, at + 5, len(data) - 1))
    data = record(whole)
    assert [None] * len(data) == [read_client_hello(data[:cut]) for cut in range(len(data))]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 200), max_size=20),
    st.lists(st.integers(0, 400), max_size=10),
    st.sampled_from([NAMED, GREASE + NAMED + ECH, alpn(b"h2") + NAMED]),
)
def test_fragments_and_cuts_do_not_matter(fragments, cuts, extensions):
    whole = message(extensions)
    data, rest = b"", whole
    for length in fragments:
        if rest:
            data += record(rest[:length])
            rest = rest[length:]
    data += record(rest) if rest else b""
    assert read_client_hello(record(whole)) == read_in_pieces(data, [cut for cut in cuts if cut < len(data)])


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_anything_is_read_or_refused_and_nothing_else(data):
    for candidate in (data, record(data) if data else data, record(message(data[:500]))):
        assert refusal_of(candidate) in (None, Denial.NOT_TLS)


@settings(deadline=None)
@given(st.data())
def test_a_changed_hello_is_read_or_refused_and_nothing_else(data):
    original = bytearray(hello(GREASE, NAMED, ECH, alpn(b"h2", b"http/1.1")))
    for _ in range(data.draw(st.integers(1, 4))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(original[: data.draw(st.integers(0, len(original)))])
    assert refusal_of(changed) in (None, Denial.NOT_TLS)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x02\x00",
        b"\x80\x2e\x01\x00\x02",  # SSL 2
        record(b"\x01", kind=23),
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",  # a record of 16385
        record(message(b"", kind=2)),
        record(b"\x02"),
        record(b"\x01" + (MAX_CLIENT_HELLO - 3).to_bytes(3, "big")),
        record(message(b"", after=b"x")),
        record(message(b"\0")),
        record(b"\1" + vector(b"\3\3", 3)),
        hello(NAMED, NAMED),
        hello(server_name(b"")),
        hello(server_name("é.example".encode())),
        hello(server_name(b"api.example.com", kind=1)),
        hello(extension(0, b"")),
        hello(extension(0, vector(b"", 2))),
        hello(extension(0, vector((b"\0" + vector(b"a.example", 2)) * 2, 2))),
        hello(extension(0, vector(b"\0" + vector(b"a.example", 2), 2) + b"x")),
        hello(extension(16, b"")),
        hello(extension(16, vector(b"", 2))),
        hello(alpn(b"")),
        hello(extension(16, vector(b"\5h2", 2))),
        b"".join(record(bytes([byte])) for byte in message(NAMED)),  # a byte a record
    ],
)
def test_what_is_no_client_hello_is_refused(data):
    assert refusal_of(data) is Denial.NOT_TLS


def test_no_more_is_asked_for_than_the_limit():
    longest = message(extension(21, bytes(MAX_CLIENT_HELLO - 85)))
    assert len(longest) == MAX_CLIENT_HELLO
    assert read_client_hello(record(longest)) is not None
    pieces = [longest[at : at + 256] for at in range(0, MAX_CLIENT_HELLO, 256)]
    data = b"".join(map(record, pieces))
    assert len(data) == MAX_FLIGHT
    assert read_client_hello(data) is not None
    assert read_client_hello(data[:-1]) is None
