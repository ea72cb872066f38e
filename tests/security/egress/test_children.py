"""Sidecars, dialer and keeper: what each can still do once it is confined, and what it cannot.

The numbers are those of docs/security.md. The kinds here have the filters of the real ones, and do what
they are told.
"""

import array
import asyncio
import contextlib
import errno
import os
import socket

import msgspec
import pytest

from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.filters import dialing, keeping, serving
from clawbox.children.handing import hand
from clawbox.children.linux import CAP_SYS_ADMIN, CAP_SYS_CHROOT, has_capability
from clawbox.children.seccomp import build
from tests.security.test_workers import FORBIDDEN, limits_of, root_of, status_of
from tests.unit.children.conftest import Probe
from tests.unit.children.probe_kind import Note
from tests.unit.children.test_seccomp import ARM, KILL, X86, decide

REFUSED = f"errno {errno.EPERM}"
BYTES = b"0123456789abcdef" * 40_000

# What each may use of the calls that a worker may not.
SERVING = {"accept4", "recvfrom", "sendto"}
DIALING = {"socket", "connect", "bind", "sendmsg", "recvfrom", "sendto", "openat", "poll"}
KEEPING = {"recvfrom", "sendto"}


def forbidden(*allowed):
    return {name: number for name, number in FORBIDDEN.items() if name not in allowed}


@contextlib.contextmanager
def listening():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


async def kind(family, name):
    return await Probe.start(family, name)


async def handed(probe, descriptor):
    hand(probe.descriptors, Note("x"), descriptor)
    return await probe.ask("take")


# 61


@pytest.mark.parametrize(
    ("name", "allowed"), [("serving", SERVING), ("dialing", DIALING), ("keeping", KEEPING)]
)
async def test_rule_61_each_kind_has_the_calls_that_it_needs_and_no_others(family, name, allowed):
    probe = await kind(family, name)
    calls = forbidden(*allowed)
    results = {call: await probe.ask("syscall", number) for call, number in calls.items()}
    assert dict.fromkeys(calls, -errno.EPERM) == results
    await probe.close()


async def test_rule_61_a_sidecar_makes_no_socket_and_opens_no_file(family):
    probe = await kind(family, "serving")
    assert await probe.ask("socket") == [REFUSED] * 5
    assert await probe.ask("socketpair") == REFUSED
    assert await probe.ask("open") == REFUSED
    assert (await probe.ask("limits"))["nofile"] == 1200
    await probe.close()


@pytest.mark.parametrize("name", ["serving", "keeping"])
async def test_rule_61_a_sidecar_and_the_keeper_have_an_empty_network_and_root(family, name):
    probe = await kind(family, name)
    if has_capability(CAP_SYS_ADMIN):
        devices = (await probe.ask("net")).splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    if has_capability(CAP_SYS_CHROOT):
        assert root_of(probe.child.pid).endswith(" (deleted)")
    await probe.close()


@pytest.mark.parametrize("family_of", [socket.AF_INET, socket.AF_UNIX])
async def test_rule_61_a_sidecar_serves_what_it_is_handed(family, family_of, tmp_path):
    """On uvloop, and without a call that its filter refuses."""
    probe = await kind(family, "serving")
    with socket.socket(family_of) as listener, listening() as elsewhere:
        listener.bind(("127.0.0.1", 0) if family_of == socket.AF_INET else str(tmp_path / "socket"))
        listener.listen()
        dialed = socket.create_connection(elsewhere.getsockname())
        upstream, _ = await asyncio.get_running_loop().sock_accept(elsewhere)
        for given in (listener, dialed):
            assert await handed(probe, given.fileno()) == ["x", 0, False]
        dialed.close()
        probe.tell("relay")
        client = socket.socket(family_of)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
        up_reader, up_writer = await asyncio.open_connection(sock=upstream)
        reader, writer = await asyncio.open_connection(sock=client)
        for source, sink in ((up_reader, writer), (reader, up_writer)):
            sink.write(BYTES)
            sink.write_eof()
            async with asyncio.timeout(20):
                assert await source.read() == BYTES
        assert (await probe.next()).startswith("uvloop")
        for end in (up_writer, writer):
            end.close()
            await end.wait_closed()
    await probe.close()


async def test_rule_61_a_sidecar_hands_nothing_on_and_sets_no_option_beyond_a_few(family):
    probe = await kind(family, "serving")
    ours, theirs = socket.socketpair()
    with ours, theirs, listening() as listener:
        await handed(probe, theirs.fileno())
        assert await probe.ask("pass_on") == REFUSED
        with socket.create_connection(listener.getsockname()) as connection:
            await handed(probe, connection.fileno())
            assert await probe.ask("options", 1) == [REFUSED] * 4 + ["worked"]
    await probe.close()


async def test_rule_61_the_dialer_resolves_and_connects_where_the_server_is(family):
    probe = await kind(family, "dialing")
    with listening() as listener:
        assert "127.0.0.1" in await probe.ask("resolve")
        probe.tell("connect", listener.getsockname()[1])
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        with connection:
            connection.send(b"here")
        assert await probe.next() == "here"
    await probe.close()


async def test_rule_61_the_dialer_neither_listens_nor_writes_nor_speaks_to_this_machine(family):
    probe = await kind(family, "dialing")
    assert await probe.ask("listen") == REFUSED
    assert await probe.ask("write") == f"errno {errno.EACCES}"
    unknown = f"errno {errno.EAFNOSUPPORT}"
    assert await probe.ask("raw_socket") == [unknown] * 6 + ["worked"]
    assert await probe.ask("socketpair") == REFUSED
    await probe.close()


@pytest.mark.parametrize("architecture", [X86, ARM])
@pytest.mark.parametrize("rules", [serving, dialing, keeping])
def test_rule_80_another_architectures_numbers_kill_egress_children(architecture, rules):
    program = build(architecture, rules(7))
    assert decide(program, 0x40000003, 1) == KILL  # i386: where 102 is socketcall
    assert decide(program, X86.audit if architecture is ARM else ARM.audit, 1) == KILL
    if architecture is X86:
        assert decide(program, X86.audit, 0x40000000 | 41) == KILL


# 63


async def test_rule_63_the_keepers_memory_is_never_written_to_swap_where_it_can_be_helped(family):
    probe = await kind(family, "keeping")
    status, limits = status_of(probe.child.pid), limits_of(probe.child.pid)
    locked = int(status["VmLck"].split()[0])
    if family.status.memory_lock:  # weaker, and reported as such
        assert (locked, limits["Max locked memory"]) == (0, "0")
    else:
        assert locked > 0
        assert limits["Max locked memory"] == "unlimited"
    await probe.close()


# 64


@pytest.mark.parametrize("name", ["serving", "dialing", "keeping"])
async def test_rule_64_egress_children_have_no_privileges_and_execute_nothing(family, name):
    probe = await kind(family, name)
    status = status_of(probe.child.pid)
    assert {int(status[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    if can_have_own_uids():
        assert "0" not in status["Uid"].split()
    assert await probe.ask("exec") == REFUSED
    assert await probe.ask("fork") == REFUSED
    assert await probe.ask("kill", os.getpid()) == [REFUSED] * 2
    assert await probe.ask("executable_memory") == [REFUSED, "worked"]
    assert (await probe.ask("limits"))["core"] == 0
    assert set(await probe.ask("environment")) <= {"LC_CTYPE"}
    await probe.close()


async def test_rule_64_no_child_has_what_another_was_given(family):
    first = await kind(family, "serving")
    with listening() as listener:
        await handed(first, listener.fileno())
        await family.load("keeping", "tool", b"open")
        others = [await kind(family, name) for name in ("serving", "dialing", "keeping")]
        for other in others:
            assert await other.ask("own_descriptors") == await other.ask("descriptors")
    for probe in (first, *others):
        await probe.close()


@pytest.mark.parametrize("name", ["serving", "dialing", "keeping"])
async def test_rule_64_what_is_handed_is_a_duplicate_that_no_program_would_inherit(family, name):
    probe = await kind(family, name)
    descriptor = os.memfd_create("secret")
    os.write(descriptor, b"master key")
    os.lseek(descriptor, 0, os.SEEK_SET)
    assert await handed(probe, descriptor) == ["x", 0, False]
    os.close(descriptor)
    assert await probe.ask("read_handed") == "master key"
    await probe.close()


GOOD = msgspec.msgpack.encode(Note("x"))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        pytest.param(GOOD, 0, id="none"),
        pytest.param(GOOD, 2, id="two"),
        pytest.param(GOOD, 9, id="more than there is room for"),
        pytest.param(GOOD, 250, id="as many as the kernel takes"),
        pytest.param(b"", 1, id="an empty packet"),
        pytest.param(b"\xc1", 1, id="no msgpack"),
        pytest.param(b"\xa3\xed\xa0\x80", 1, id="half a surrogate pair"),
        pytest.param(msgspec.msgpack.encode({"purpose": 5}), 1, id="another type"),
        pytest.param(GOOD + b"x", 1, id="more than one message"),
        pytest.param(GOOD.ljust(9000, b"x"), 1, id="too large"),
    ],
)
async def test_rule_64_a_packet_that_is_not_one_message_and_one_descriptor_leaves_nothing(probe, text, count):
    before = await probe.ask("descriptors")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * count))] if count else []
    probe.descriptors.sendmsg([text], rights)
    assert (await probe.ask("take")).startswith("refused: ")
    assert await probe.ask("descriptors") == before
    assert await handed(probe, 0) == ["x", 0, False]
