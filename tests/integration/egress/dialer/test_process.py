"""The dialer as a process: confined, with the machine's own resolver, told and handed things by control."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clawbox.egress.dialer.messages import Closed, Dismiss, Why
from clawbox.egress.messages import Grant
from clawbox.egress.refusal import Denial
from tests.integration.egress.dialer.process import dialer_process
from tests.security.egress.dialing import Upstream, reached, refused

ROOT = Path(__file__).parents[4]


@pytest.fixture
def upstream():
    made = Upstream()
    with made.socket:
        yield made


@pytest.fixture(scope="module")
def said():
    """What came of each dial in a network with a name server of the test's."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.integration.egress.dialer.own_network"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


async def test_rule_61_a_connection_is_made_by_another_process_than_the_one_that_uses_it(upstream):
    async with dialer_process() as process:
        client = process.client({"host": "localhost", "ports": [upstream.port]})
        dialed = await client.dial("localhost", upstream.port)
        with dialed.socket, await upstream.accepted() as accepted:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(accepted, b"hello")
            assert await loop.sock_recv(dialed.socket, 5) == b"hello"


async def test_rule_19_the_process_ignores_the_environments_proxies(upstream, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with dialer_process() as process:
        client = process.client({"host": "127.0.0.1", "ports": [upstream.port]})
        assert await reached(client, "127.0.0.1", upstream.port) == "127.0.0.1"


async def test_control_hears_of_peers_that_are_gone_and_dismisses_others(upstream):
    async with dialer_process() as process:
        first = process.enrol(Grant("one", "owner"))
        second = process.enrol(Grant("two", "owner"))
        first.close()
        assert await process.hears() == Closed(1, Why.GONE)

        process.channel.send(Dismiss(2))

        second.setblocking(False)
        async with asyncio.timeout(20):
            with second:
                assert await asyncio.get_running_loop().sock_recv(second, 1) == b""
        assert process.heard.empty()


async def test_it_ends_with_its_channel(upstream):
    async with dialer_process() as process:
        client = process.client({"host": "127.0.0.1", "ports": [upstream.port]})
        assert await reached(client, "127.0.0.1", upstream.port)
        process.channel.close()
        async with asyncio.timeout(20):
            await process.child.dead()
        assert await refused(client, "127.0.0.1", upstream.port) is Denial.CONNECT_FAILED


async def test_a_descriptor_that_is_no_socket_ends_it_and_nothing_is_dialled():
    async with dialer_process() as process:
        socket.send_fds(process.descriptors, [b"\xc1"], [process.descriptors.fileno()])
        async with asyncio.timeout(20):
            await process.child.dead()


def test_names_have_the_addresses_that_the_name_server_says(said):
    assert said["both.test"] == said["alias.test"]
    assert said["both.test"][0] in {"127.0.0.1", "::1"}
    assert said["many.test"][0].startswith("127.0.0.")


def test_the_hosts_file_comes_first_where_nsswitch_says_so(said):
    assert said["pinned.test"] == ["127.0.0.5"]
    assert "pinned.test" not in said["asked"]


def test_names_without_an_address_or_of_nothing_are_told_apart(said):
    assert said["empty.test"] == ["NO_ADDRESS"]
    assert said["nowhere.test"] == ["DNS_FAILED"]


def test_rule_13_an_answer_with_one_bad_address_of_either_family_is_refused(said):
    assert said["mixed.test"] == ["ADDRESS_REFUSED"]
    assert said["mixed6.test"] == ["ADDRESS_REFUSED"]


def test_rule_14_a_name_that_changes_between_look_ups_is_refused_when_it_is_bad(said):
    assert said["rebinding.test"] == ["127.0.0.1", "ADDRESS_REFUSED"]
    # Once for each family and connection.
    assert said["asked"].count("rebinding.test") == 4


def test_rule_16_a_name_outside_the_grant_never_gets_to_the_name_server(said):
    assert said["forbidden.test"] == ["HOST_NOT_ALLOWED"]
    assert "forbidden.test" not in said["asked"]


def test_rule_17_a_name_server_that_does_not_answer_is_waited_for_no_longer_than_the_grant_says(said):
    assert said["silent.test"] == ["DNS_TIMEOUT"]
