"""TLS sessions as machines: what goes in on one side comes out on the other, and ends are told apart."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawbox.egress.refusal import Denial
from clawbox.egress.tls.authority import derive_authority
from clawbox.egress.tls.session import TlsError
from clawbox.egress.tls.upstream import UpstreamTls
from tests.egress_world.answers import pattern
from tests.unit.tls.machines import shake

AUTHORITY = derive_authority(b"s" * 32, "box")
UPSTREAM = UpstreamTls([AUTHORITY.ca_pem], system=False)
HOST = "api.example.com"


def pair():
    client, server = UPSTREAM.session(HOST, 443), AUTHORITY.session(HOST)
    shake(client, server)
    return client, server


def test_names_and_protocol_are_known_after_the_handshake():
    client, server = pair()
    assert (HOST, "http/1.1") == (server.server_name, server.alpn)
    assert (HOST, "http/1.1") == (client.server_name, client.alpn)


def test_the_client_speaks_first_and_each_byte_is_given_once():
    client = UPSTREAM.session(HOST, 443)
    assert client.pending().startswith(b"\x16\x03")
    assert client.pending() == b""
    assert not client.handshake_done


@settings(max_examples=20, deadline=None)
@example([300_000], 50_000)
@given(st.lists(st.integers(0, 70_000), max_size=4), st.integers(100, 50_000))
def test_any_size_in_any_pieces_arrives_whole(sizes, piece):
    for sender, receiver in (pair(), pair()[::-1]):
        data = [pattern(size) for size in sizes]
        wire = b"".join(map(sender.send, data))
        pieces = (memoryview(wire)[at : at + piece] for at in range(0, len(wire), piece))
        assert b"".join(data) == b"".join(map(receiver.receive, pieces))


def test_the_handshake_may_come_byte_by_byte_with_data_right_behind():
    client, server = UPSTREAM.session(HOST, 443), AUTHORITY.session(HOST)
    for byte in client.pending():
        assert server.receive(bytes([byte])) == b""
    for byte in server.pending():
        client.receive(bytes([byte]))
    assert server.receive(client.send(b"at once")) == b"at once"


def test_a_clean_end_and_a_cut_are_told_apart():
    for left, right in (pair(), pair()[::-1]):
        assert right.receive(left.send(b"last") + left.close()) == b"last"
        assert right.clean_close
        assert not left.clean_close
        # The other direction is still open: what was under way arrives.
        assert left.receive(right.close()) == b""
        assert left.clean_close


def test_closing_before_the_handshake_raises_nothing():
    AUTHORITY.session(HOST).close()
    UPSTREAM.session(HOST, 443).close()


@pytest.mark.parametrize("side", [0, 1])
def test_changed_bytes_are_an_error_with_an_alert(side):
    denial = [Denial.CLIENT_TLS_FAILED, Denial.TLS_FAILED][side]
    sender, receiver = pair() if side == 0 else pair()[::-1]
    wire = bytearray(sender.send(b"something"))
    wire[-1] ^= 1
    with pytest.raises(TlsError) as caught:
        receiver.receive(wire)
    assert caught.value.refusal.denial is denial
    assert receiver.pending() != b""


def test_what_is_no_tls_is_an_error_on_both_sides():
    for session in (AUTHORITY.session(HOST), UPSTREAM.session(HOST, 443)):
        with pytest.raises(TlsError):
            session.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n")
