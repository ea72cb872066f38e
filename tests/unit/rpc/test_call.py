"""Request ids and addresses."""

import pytest

from clawbox.config import ServerSettings
from clawbox.errors import ClawboxError, Reason
from clawbox.rpc import call as rpc_call
from clawbox.rpc import server
from clawbox.rpc.call import Call, is_request_id, new_request_id, peer_address
from clawbox.rpc.methods import Method


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::/64"),
        ("ipv6:[2001:db8:1:2:3::4]:5000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5000", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
        ("unix:", "unix"),
        ("unix:/run/clawbox.sock", "unix"),
        ("unknown", "unknown"),
    ],
)
def test_an_address_has_no_port_and_ipv6_counts_by_network(peer, address) -> None:
    assert peer_address(peer) == address


def test_request_ids_are_unique_acceptable_and_versioned() -> None:
    made = {new_request_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(is_request_id(one) and len(one) == 32 and one[12] == "7" and one[16] in "89ab" for one in made)


def test_there_is_no_current_call_outside_of_calls() -> None:
    with pytest.raises(LookupError):
        rpc_call.current()


async def test_a_request_can_bring_its_own_id() -> None:
    call = Call("/a/B", Method(scopes=("x",)), "unix:", "made")
    assert call.adopt_request_id("") == "made"
    assert call.adopt_request_id("mine") == "mine"
    for bad in ("x" * 129, "a b", "a\n", "é"):
        with pytest.raises(ClawboxError) as caught:
            call.adopt_request_id(bad)
        assert caught.value.reason is Reason.INVALID_FIELD


async def test_a_public_call_has_no_principal() -> None:
    call = Call("/a/B", Method(), "unix:", "made")
    with pytest.raises(LookupError):
        _ = call.principal


def test_clients_may_ping_every_ten_seconds_without_calls() -> None:
    options = dict(server.channel_options(ServerSettings()))
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 10_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert "grpc.max_connection_age_ms" not in options


def test_an_aged_connection_lets_its_streams_live() -> None:
    options = dict(server.channel_options(ServerSettings(max_connection_age_ms=5_000)))
    assert options["grpc.max_connection_age_ms"] == 5_000
    assert options["grpc.max_connection_age_grace_ms"] == 2**31 - 1
