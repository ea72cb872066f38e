"""The keeper: who gets which secrets, what a bad file does, and that nobody can hold it up or ask it."""

from __future__ import annotations

import asyncio
import hmac
import socket
from pathlib import Path

import msgspec
import pytest

from clawbox.audit import AuditLog, SignerGoneError, signed_heads, verify
from clawbox.children.channel import ChannelClosedError, encode_frame
from clawbox.children.enforcement import can_have_own_uids
from clawbox.egress.credentials import (
    BasicAttachment,
    Budget,
    Credential,
    HeaderAttachment,
    QueryAttachment,
    SandboxSecrets,
    Secret,
)
from clawbox.egress.keeper import outbox as outbox_module
from clawbox.egress.keeper.bootstrap import read_public_key
from clawbox.egress.keeper.control import KeeperUnavailableError
from clawbox.egress.keeper.holdings import NOT_THERE
from clawbox.egress.keeper.messages import MAX_LABELS_CHARACTERS, AuthenticateLabels, HandOut
from clawbox.egress.keeper.outbox import Outbox, PeerGoneError
from clawbox.egress.keeper.secrets import Secrets
from clawbox.egress.vault import Fault, MasterKey, Vault
from clawbox.signed_text import container_labels_text
from tests.egress_world.supervised import suspend

from .keeping import HEX_KEY, credential, keeping, report_of

OLD = "the-first-VALUE-of-it"
NEW = "the-second-VALUE-of-it"
OTHER = "the-VALUE-of-another-one"


@pytest.fixture
def vault(tmp_path):
    vault = Vault(tmp_path / "credentials.enc", MasterKey(HEX_KEY))
    vault.put(credential("github", OLD))
    vault.put(credential("other", OTHER))
    return vault


@pytest.fixture
def own_network():
    """The network namespace of this process."""
    return Path("/proc/self/ns/net").readlink()


# Who gets what


async def test_rule_44_a_sidecar_gets_what_control_named_and_nothing_else(tmp_path, vault):
    async with keeping(tmp_path) as world:
        sidecar, _ = await world.sidecar("sandbox-1", "github")
        secrets = await sidecar.receive()
        assert list(secrets.sandbox_secrets().known()) == [("github", OLD)]
        assert OTHER.encode() not in msgspec.msgpack.encode(secrets)
        vault.put(credential("other", "another-VALUE-of-another"))
        vault.put(credential("github", NEW))
        while ("github", NEW) not in sidecar.known.known():
            assert OTHER.encode() not in msgspec.msgpack.encode(await sidecar.receive())
        assert {name for name, _ in sidecar.known.known()} == {"github"}


async def test_rule_44_a_sidecar_cannot_ask(tmp_path, vault):
    async with keeping(tmp_path) as world:
        sidecar, _ = await world.sidecar("sandbox-1", "github")
        await sidecar.receive()
        with pytest.raises(BrokenPipeError):
            sidecar.ends[0].send(encode_frame(HandOut(1, "sandbox-1", "ann", ("other",))))
        vault.put(credential("github", NEW))
        assert list((await sidecar.receive()).sandbox_secrets().credentials) == ["github"]


async def test_a_credential_is_handed_out_as_it_is(tmp_path):
    vault = Vault(tmp_path / "credentials.enc", MasterKey(HEX_KEY))
    made = {
        "a": credential("a", OLD, attachment=HeaderAttachment("X-Key", "Key ")),
        "b": credential("b", OLD, attachment=BasicAttachment("git"), budget=Budget(10, None, 60)),
        "c": credential("c", OLD, attachment=QueryAttachment("token"), methods=("GET",), ports=(443, 8443)),
        "d": Credential("d", Secret("1234567"), ("a.test", "b.test"), short=True, plain_http=True, env="A"),
    }
    for one in made.values():
        vault.put(one)
    async with keeping(tmp_path) as world:
        sidecar, recipient = await world.sidecar("sandbox-1", *made)
        assert (await sidecar.receive()).sandbox_secrets().credentials == made
        assert report_of(recipient).missing == {}


async def test_rule_36_each_sandbox_has_a_key_of_its_own_and_control_is_told_none(tmp_path, vault):
    async with keeping(tmp_path) as world:
        heard: list[bytes] = []
        protocol = world.process._protocol
        decode = protocol._decode

        def listen(data):
            heard.append(bytes(data))
            return decode(data)

        protocol._decode = listen
        one, _ = await world.sidecar("sandbox-1", "github")
        two, _ = await world.sidecar("sandbox-2")
        first, second = await one.receive(), await two.receive()
        keys = [secrets._authority[:32] for secrets in (first, second)]
        assert keys[0] != keys[1]
        assert first.authority().ca_pem != second.authority().ca_pem
        assert heard
        for secret in (*keys, OLD.encode()):
            assert all(secret not in data for data in heard)
        assert repr(first) == "Secrets(…)"
        await world.crash()
        await one.delivered(2)
        assert (await one.receive()).authority().ca_pem == first.authority().ca_pem


def test_rule_62_what_holds_secrets_shows_none():
    known = SandboxSecrets({"github": credential("github", OLD)}, {}, (("github", NEW),))
    secrets = Secrets.of(known.credentials.values(), {}, known.retired, b"the key of a CA")
    for text in (repr(known), str(known), f"{known}", repr(secrets), str(secrets), f"{secrets!r}"):
        assert "VALUE" not in text
        assert "CA" not in text


# What a bad file does


async def why(world):
    sidecar, recipient = await world.sidecar("sandbox-1", "github")
    secrets = (await sidecar.receive()).sandbox_secrets()
    assert not secrets.credentials
    assert secrets.broken == report_of(recipient).missing
    return secrets.broken["github"]


async def test_rule_42_a_damaged_file_gives_no_credential_and_says_why(tmp_path, vault):
    data = bytearray(vault.path.read_bytes())
    data[40] ^= 1
    vault.path.write_bytes(data)
    async with keeping(tmp_path) as world:
        assert await why(world) == Fault.OTHER_KEY.value


async def test_rule_42_a_file_of_another_key_gives_no_credential_and_says_why(tmp_path, vault):
    async with keeping(tmp_path, "ab" * 32) as world:
        assert await why(world) == Fault.OTHER_KEY.value


async def test_rule_42_a_file_that_others_can_read_gives_no_credential_until_it_is_private(tmp_path, vault):
    vault.path.chmod(0o644)
    async with keeping(tmp_path) as world:
        assert Fault.NOT_PRIVATE.value in await why(world)
        vault.path.chmod(0o600)
        sidecar = world.sidecars[0]
        assert list((await sidecar.receive()).sandbox_secrets().known()) == [("github", OLD)]
        vault.path.chmod(0o640)
        secrets = (await sidecar.receive()).sandbox_secrets()
        assert Fault.NOT_PRIVATE.value in secrets.broken["github"]
        assert not secrets.credentials
        assert secrets.retired == (("github", OLD),)  # and is still looked for


@pytest.mark.parametrize(
    ("key", "text"), [("", Fault.NO_KEY.value), ("not hexadecimal", Fault.BAD_KEY.value)]
)
async def test_rule_42_without_a_good_key_there_is_no_credential(tmp_path, vault, key, text):
    async with keeping(tmp_path, key) as world:
        assert await why(world) == text


async def test_rule_42_a_credential_that_is_not_there_is_said_not_to_be(tmp_path):
    async with keeping(tmp_path) as world:
        assert await why(world) == NOT_THERE
        world.vault.put(credential("github", NEW))
        sidecar = world.sidecars[0]
        assert list((await sidecar.receive()).sandbox_secrets().known()) == [("github", NEW)]


# Rotation


async def test_rule_76_rotated_and_removed_values_stay_known_where_they_were(tmp_path, vault):
    async with keeping(tmp_path) as world:
        had, _ = await world.sidecar("sandbox-1", "github")
        await had.receive()
        vault.put(credential("github", NEW))
        secrets = (await had.receive()).sandbox_secrets()
        assert secrets.credentials["github"].value.reveal() == NEW
        assert secrets.retired == (("github", OLD),)
        vault.remove("github")
        secrets = (await had.receive()).sandbox_secrets()
        assert secrets.retired == (("github", OLD), ("github", NEW))
        # A sandbox that never had them is not told.
        later, _ = await world.sidecar("sandbox-2", "github")
        assert not list((await later.receive()).sandbox_secrets().known())
        # The next sidecar of one that had them is.
        again, _ = await world.sidecar("sandbox-1", "github")
        assert list((await again.receive()).sandbox_secrets().known()) == [("github", OLD), ("github", NEW)]
        world.keeper.forget("sandbox-1")
        after, _ = await world.sidecar("sandbox-1", "github")
        assert not list((await after.receive()).sandbox_secrets().known())


async def test_rule_76_a_keeper_that_died_makes_no_sidecar_forget(tmp_path, vault):
    async with keeping(tmp_path) as world:
        sidecar, _ = await world.sidecar("sandbox-1", "github")
        await sidecar.receive()
        vault.put(credential("github", NEW))
        await sidecar.receive()
        await world.crash()
        await sidecar.delivered(2)
        assert (await sidecar.receive()).sandbox_secrets().retired == ()
        assert list(sidecar.known.known()) == [("github", NEW), ("github", OLD)]


# What is written down


async def test_rule_62_each_hand_out_is_a_row_with_names_and_no_value(tmp_path, vault):
    async with keeping(tmp_path) as world:
        sidecar, _ = await world.sidecar("sandbox-1", "github", "absent", owner="bob")
        await sidecar.receive()
        vault.put(credential("github", NEW))
        await sidecar.receive()
        await world.keeper.sign(1, "0" * 64)  # asked and answered in order: what was before it was told
        kind, row = world.rows.rows[0]
        assert kind == "hand_out"
        assert row == {
            "principal": "bob",
            "decision": "failed",
            "sandbox": "sandbox-1",
            "credentials": ["github"],
            "missing": {"absent": NOT_THERE},
        }
        assert world.rows.rows[1:] == [(kind, row)]


async def test_rule_62_the_keeper_signs_heads_that_verify_with_the_identity_keys_public_half(tmp_path):
    async with keeping(tmp_path) as world:
        async with AuditLog(tmp_path / "audit") as log, signed_heads(log, world.keeper):
            log.append("execute")
        public_key = world.keeper.public_key
    assert public_key == read_public_key(tmp_path)
    verdict = verify(tmp_path / "audit", public_key=public_key)
    assert (verdict.ok, verdict.signed_sequence) == (True, 1)


async def test_what_a_dead_keeper_was_asked_to_sign_is_refused(tmp_path):
    async with keeping(tmp_path) as world:
        await suspend(world.process.pid)  # it never answers
        signing = asyncio.create_task(world.keeper.sign(1, "0" * 64))
        await asyncio.sleep(0)
        await world.crash()
        with pytest.raises(SignerGoneError):
            await signing
        assert len(await world.keeper.sign(1, "0" * 64)) == 64


# The labels of containers


async def test_rule_83_the_mac_over_labels_is_the_keepers_and_stays_with_its_identity_key(tmp_path):
    async with keeping(tmp_path) as world:
        mac = await world.keeper.authenticate_labels('{"clawbox.policy":"full"}')
        assert len(mac) == 32
        assert mac != await world.keeper.authenticate_labels('{"clawbox.policy":"none"}')
        await world.crash()
        assert await world.keeper.authenticate_labels('{"clawbox.policy":"full"}') == mac
    identity = tmp_path / "identity.key"
    plain = hmac.digest(identity.read_bytes(), container_labels_text('{"clawbox.policy":"full"}'), "sha256")
    assert mac != plain  # of a key for this purpose alone
    identity.unlink()
    async with keeping(tmp_path) as world:
        assert await world.keeper.authenticate_labels('{"clawbox.policy":"full"}') != mac


async def test_rule_83_labels_as_large_as_they_get_hold_up_nobody(tmp_path):
    text = "\N{GRINNING FACE}" * MAX_LABELS_CHARACTERS
    async with keeping(tmp_path) as world:
        macs = [asyncio.create_task(world.keeper.authenticate_labels(text)) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(await world.keeper.sign(1, "0" * 64)) == 64
        first, *others = await asyncio.gather(*macs)
        assert others == [first, first]
        world.keeper._send(AuthenticateLabels(text + "x"))  # control does not: the keeper refuses it, too
        await world.keeper._changed.wait()
        assert await world.keeper.authenticate_labels(text) == first


async def test_rule_83_a_dead_keeper_made_no_mac(tmp_path):
    async with keeping(tmp_path) as world:
        await suspend(world.process.pid)  # it never answers
        asking = asyncio.create_task(world.keeper.authenticate_labels("{}"))
        given_up = asyncio.create_task(world.keeper.authenticate_labels("{}"))
        await asyncio.sleep(0)
        given_up.cancel()
        await world.crash()
        with pytest.raises(KeeperUnavailableError):
            await asking
        assert len(await world.keeper.authenticate_labels("{}")) == 32


# Nobody holds it up


def large(value):
    """More than a socket holds."""
    return {f"c{number}": credential(f"c{number}", value * 160) for number in range(500)}


async def test_rule_63_a_sidecar_that_reads_nothing_holds_nobody_up(tmp_path):
    vault = Vault(tmp_path / "credentials.enc", MasterKey(HEX_KEY))
    vault._write(_entries(large("0123456789ab")))
    async with keeping(tmp_path) as world:
        deaf, _ = await world.sidecar("sandbox-1", *large("0123456789ab"))
        other, _ = await world.sidecar("sandbox-2", "c0")
        await other.receive()
        for value in ("abcdef012345", "456789abcdef"):
            vault._write(_entries(large(value)))
            await other.receive()
        # When it reads at last, it gets what it was being sent, and then the latest alone.
        begun, last = await deaf.receive(), await deaf.receive()
        values = [one.sandbox_secrets().credentials["c0"].value.reveal()[:12] for one in (begun, last)]
        assert values == ["0123456789ab", "456789abcdef"]
        assert not deaf.closed


def _entries(credentials):
    return [
        {
            "name": one.name,
            "value": one.value.reveal(),
            "domain": one.hosts[0],
            "header_name": "Authorization",
            "header_prefix": "Bearer ",
        }
        for one in credentials.values()
    ]


def test_rule_63_what_waits_is_bounded_and_what_is_never_read_is_given_up():
    ours, theirs = socket.socketpair()
    with theirs:
        outbox = Outbox(ours.detach())
        sent = Secrets.of(large("0123456789ab").values(), {}, (), b"")
        outbox.put(sent, now=100.0)
        assert outbox.stalls_at == 100.0 + outbox_module.STALL_SECONDS
        for _ in range(50):
            outbox.put(sent, now=110.0)
        assert len(outbox._begun) + len(outbox._next or b"") <= 2 * len(encode_frame(sent))
        assert outbox.stalls_at == 100.0 + outbox_module.STALL_SECONDS
        theirs.recv(1 << 20)
        outbox.flush(now=120.0)
        assert outbox.stalls_at == 120.0 + outbox_module.STALL_SECONDS
        outbox.close()


def test_rule_63_a_peer_that_is_gone_is_an_error_and_no_signal():
    ours, theirs = socket.socketpair()
    theirs.close()
    outbox = Outbox(ours.detach())
    with pytest.raises(PeerGoneError):
        outbox.put(Secrets.of((), {}, (), b""), now=0.0)
    outbox.close()


async def test_rule_63_a_sidecar_that_died_is_told_and_costs_nothing(tmp_path, vault):
    async with keeping(tmp_path) as world:
        before = world.open_files()
        sidecar, recipient = await world.sidecar("sandbox-1", "github")
        gone = asyncio.Event()
        recipient.closed = lambda why: gone.set()
        sidecar.close()
        await gone.wait()
        assert world.open_files() == before


async def test_one_that_is_dismissed_gets_nothing_any_more(tmp_path, vault):
    async with keeping(tmp_path) as world:
        sidecar, recipient = await world.sidecar("sandbox-1", "github")
        await sidecar.receive()
        world.keeper.dismiss(recipient)
        vault.put(credential("github", NEW))
        await sidecar.ended()
        assert not sidecar.closed


async def test_rule_63_the_keeper_is_alone_without_network_or_privileges_and_dumps_no_core(
    tmp_path, own_network
):
    async with keeping(tmp_path) as world:
        proc = world.proc
        lines = (proc / "status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert (status["Name"], status["NoNewPrivs"], status["Seccomp"]) == ("clawbox-keeper", "1", "2")
        assert {int(status[which], 16) for which in ("CapEff", "CapPrm")} == {0}
        limits = (proc / "limits").read_text().splitlines()
        assert next(line for line in limits if line.startswith("Max core")).split()[4:6] == ["0", "0"]
        assert (proc / "environ").read_bytes() == b""
        if can_have_own_uids():
            assert status["Uid"].split() == ["900000"] * 4
            assert (proc / "ns/net").readlink() != own_network
            assert int(status["CapBnd"], 16) == 0
            assert list((proc / "root").iterdir()) == []
        assert (proc / "environ").stat().st_uid == 0  # root's, because the process is not dumpable
        assert world.launcher.status is not None
        if not world.launcher.status.memory_lock:
            assert status["VmLck"].split()[0] != "0"
        assert world.open_files() == 6  # /dev/null thrice, its loop, and both ways to control: no key


async def test_many_sidecars_are_all_served_by_the_keeper_that_follows(tmp_path, vault):
    async with keeping(tmp_path) as world:
        made = await asyncio.gather(*(world.sidecar(f"sandbox-{number}", "github") for number in range(300)))
        await world.crash()
        for sidecar, _ in made:
            await sidecar.delivered(2)
            assert list((await sidecar.receive()).sandbox_secrets().known()) == [("github", OLD)]
        assert world.keeper.restarts == 1


async def test_a_sidecar_that_is_gone_before_it_gets_anything_is_an_error_and_the_next_is_served(
    tmp_path, vault
):
    async with keeping(tmp_path) as world:

        def deliver(end):
            raise ChannelClosedError

        with pytest.raises(KeeperUnavailableError, match="gone"):
            await world.keeper.hand_out("sandbox-1", "ann", ("github",), deliver)
        sidecar, _ = await world.sidecar("sandbox-1", "github")
        await sidecar.receive()


async def test_sidecars_and_signatures_wait_for_the_keeper_that_follows(tmp_path, vault):
    async with keeping(tmp_path) as world:
        sidecar, recipient = await world.sidecar("sandbox-1", "github")
        await sidecar.receive()
        process = world.process
        process.kill()
        await process.gone()
        late = asyncio.create_task(world.sidecar("sandbox-2", "other"))
        await sidecar.delivered(2)
        assert list((await sidecar.receive()).sandbox_secrets().known()) == [("github", OLD)]
        other, _ = await late
        assert list((await other.receive()).sandbox_secrets().known()) == [("other", OTHER)]
        assert world.keeper.restarts == 1
        assert report_of(recipient).credentials == ("github",)
