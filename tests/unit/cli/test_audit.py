"""``clawbox audit``: what people and scripts see of a log that is good, pruned, bad or growing."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from clawbox_client.v1 import system_pb2

from clawbox.audit import AuditLog, signed_heads
from clawbox.egress.keeper.identity import IDENTITY_BYTES, Identity


async def written(folder, count, first=0, **settings):
    async with AuditLog(folder, **settings) as log:
        for number in range(first, first + count):
            log.append(
                "egress" if number % 2 else "execute",
                principal="ann" if number % 3 else "bob",
                request_id=f"r{number}",
                decision="denied" if number % 4 == 3 else "allowed",
                host=f"h{number}.example.com",
            )
        return log.head


@pytest.fixture
def folder(home):
    return home / "audit"


async def test_a_good_log(cli, folder):
    head = await written(folder, 5)
    ended = await cli("audit", "verify", "--dir", str(folder), "--expected-head", head)
    assert ended.code == 0
    assert "verdict        good\n" in ended.out
    assert "good rows      5, numbers 1 to 5\n" in ended.out
    assert f"head           {head}\n" in ended.out
    assert "expected head  found\n" in ended.out
    answer = json.loads((await cli("audit", "verify", "--dir", str(folder), "--json")).out)
    assert (answer["ok"], answer["rows"], answer["head"], answer["bad"]) == (True, 5, head, None)


async def test_the_folder_comes_from_the_settings(cli, folder, home):
    await written(folder, 2)
    (home / "clawbox.toml").write_text('[logging]\naudit_dir = "audit"\n')
    assert "numbers 1 to 2" in (await cli("audit", "verify", "--config", "clawbox.toml")).out
    assert len((await cli("audit", "tail", "--config", "clawbox.toml")).out.splitlines()) == 2


async def test_the_first_bad_row_is_named(cli, folder):
    await written(folder, 5)
    path = folder / "audit.jsonl"
    path.write_text(path.read_text().replace("h2.example.com", "h9.example.com"))
    ended = await cli("audit", "verify", "--dir", str(folder))
    assert ended.code == 1
    assert "verdict     BAD\n" in ended.out
    assert "bad row     audit.jsonl line 3, row 3: its hash does not fit its content\n" in ended.out
    assert "good rows   2, numbers 1 to 2 (those after the bad one were not looked at)\n" in ended.out
    answer = json.loads((await cli("audit", "verify", "--dir", str(folder), "--json")).out)
    assert answer["ok"] is False
    assert answer["bad"]["sequence"] == 3


async def test_pruned_is_not_bad(cli, folder):
    head = await written(folder, 60, max_file_bytes=4096, keep_files=100)
    oldest = min(folder.glob("audit-0*.jsonl"))
    first_head = json.loads(oldest.read_text().splitlines()[0])
    oldest.unlink()
    ended = await cli("audit", "verify", "--dir", str(folder), "--expected-head", head)
    assert ended.code == 0
    assert "pruned         rows before" in ended.out
    old = f"{first_head['sequence']}:{first_head['hash']}"
    ended = await cli("audit", "verify", "--dir", str(folder), "--expected-head", old)
    assert (ended.code, "expected head  pruned\n" in ended.out) == (0, True)


async def test_a_log_that_was_cut_short_is_bad_by_its_expected_head(cli, folder):
    head = await written(folder, 5)
    path = folder / "audit.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert (await cli("audit", "verify", "--dir", str(folder))).code == 0
    ended = await cli("audit", "verify", "--dir", str(folder), "--expected-head", head)
    assert (ended.code, "expected head  not found\n" in ended.out) == (1, True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--dir", "nowhere"), "there is no audit log: nowhere is no folder"),
        (("--dir", ".", "--expected-head", "5"), "--expected-head: a head is SEQUENCE:HASH"),
        ((), "there is no audit log: "),
    ],
)
async def test_what_cannot_be_read_is_a_usage_error(cli, args, said):
    ended = await cli("audit", "verify", *args)
    assert ended.code == 2
    assert said in ended.err
    assert ended.out == ""


async def test_tail_shows_the_last_rows(cli, folder):
    await written(folder, 60, max_file_bytes=4096)
    lines = (await cli("audit", "tail", "--dir", str(folder), "-n", "40")).out.splitlines()
    assert [int(line.split()[1]) for line in lines] == list(range(21, 61))
    assert lines[-1].split()[2:] == ["egress", "denied", "ann", "host=h59.example.com", "request_id=r59"]
    rows = (await cli("audit", "tail", "--dir", str(folder), "-n", "1", "--json")).out.splitlines()
    row = json.loads(rows[0])
    assert (row["sequence"], row["kind"], row["fields"]) == (60, "egress", {"host": "h59.example.com"})
    assert row["time"].endswith("Z")


@pytest.mark.parametrize(
    ("args", "sequences"),
    [
        (("--kind", "execute", "-n", "3"), [1, 3, 5]),
        (("--kind", "execute", "--kind", "egress", "-n", "2"), [5, 6]),
        (("--principal", "bob"), [1, 4]),
        (("--decision", "denied"), [4]),
        (("--after", "4"), [5, 6]),
        (("--after", "0", "--principal", "bob"), [1, 4]),
        (("-n", "0"), []),
    ],
)
async def test_tail_filters(cli, folder, args, sequences):
    await written(folder, 6)
    lines = (await cli("audit", "tail", "--dir", str(folder), *args)).out.splitlines()
    assert [int(line.split()[1]) for line in lines] == sequences


async def test_nothing_in_a_row_steers_the_terminal(cli, folder):
    async with AuditLog(folder) as log:
        log.append("egress", principal="\x1b[2J", decision="a\nb", host="x\u202ey", path="/a b=c")
    ended = await cli("audit", "tail", "--dir", str(folder))
    assert len(ended.out.splitlines()) == 1
    assert "\\x1b[2J" in ended.out
    assert "host=x\\u202ey" in ended.out
    assert 'path="/a b=c"' in ended.out


async def test_following_goes_on_across_files(home, folder):
    await written(folder, 3)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "clawbox", "audit", "tail", "--dir", str(folder), "-n", "1", "-f", "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            seen = [json.loads(await process.stdout.readline())["sequence"]]
            await written(folder, 60, max_file_bytes=4096)
            while seen[-1] < 63:
                seen.append(json.loads(await process.stdout.readline())["sequence"])
    finally:
        process.terminate()
        await process.communicate()
    assert seen == list(range(3, 64))
    assert len(list(folder.glob("audit-0*.jsonl"))) > 1


def remote_row(sequence, kind="execute", principal="ann"):
    row = system_pb2.AuditRow(sequence=sequence, kind=kind, principal=principal, decision="allowed")
    row.time.FromJsonString("2026-01-02T03:04:05.000006Z")
    row.fields.update({"tool": "echo", "port": 443})
    return row


async def test_a_server_sends_rows(cli, server):
    server.audit_rows = [remote_row(1), remote_row(2, principal="bob"), remote_row(3)]
    ended = await cli("audit", "tail", "--follow", "--principal", "ann", "--kind", "execute", "--after", "0")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        f"2026-01-02T03:04:05.000006Z {number} execute allowed ann port=443 tool=echo" for number in (1, 3)
    ]
    request = server.calls("WatchAudit")[0].request
    assert (list(request.kinds), request.after_sequence) == (["execute"], 0)


async def test_a_server_is_only_followed(cli, server):
    ended = await cli("audit", "tail")
    assert (ended.code, "Say --follow" in ended.err) == (2, True)
    assert server.calls("WatchAudit") == []


class Keyholder:
    """Signs heads as the keeper does."""

    def __init__(self, identity: bytes) -> None:
        self.identity = Identity(identity)

    async def sign(self, sequence: int, digest: str) -> bytes:
        return self.identity.sign_head(sequence, digest)


@pytest.fixture
async def signed(home, folder):
    """A log with signed heads, and the public key they are signed with."""
    identity = bytes(range(IDENTITY_BYTES))
    key = home / ".clawbox/identity.key"
    key.parent.mkdir(mode=0o700)
    key.touch(0o600)
    key.write_bytes(identity)
    async with AuditLog(folder) as log, signed_heads(log, Keyholder(identity)):
        for _ in range(3):
            log.append("execute", decision="allowed")
    return Identity(identity).public_key.hex()


async def test_signed_heads_are_checked_with_the_key(cli, folder, signed, home):
    assert (await cli("audit", "key")).out == f"{signed}\n"
    (home / "key").write_text(f"{signed}\n")
    for given in (signed, "key"):
        ended = await cli("audit", "verify", "--dir", str(folder), "--public-key", given)
        assert ended.code == 0
        assert "signatures  good: rows up to 3 are of who has the key\n" in ended.out
    ended = await cli("audit", "verify", "--dir", str(folder))
    assert "signatures  not checked (--public-key)\n" in ended.out


async def test_a_log_without_a_signature_by_the_key_is_bad(cli, home, folder, signed):
    await written(home / "other", 3)
    ended = await cli("audit", "verify", "--dir", "other", "--public-key", signed)
    assert ended.code == 1
    assert "signatures  NONE with this key" in ended.out
    ended = await cli("audit", "verify", "--dir", str(folder), "--public-key", "11" * 32)
    assert ended.code == 1


@pytest.mark.parametrize("given", ["audit.toml", "ab", "none"])
async def test_a_public_key_that_is_none_is_a_usage_error(cli, home, folder, given):
    await written(folder, 1)
    (home / "audit.toml").write_text("[audit]\n")
    ended = await cli("audit", "verify", "--dir", str(folder), "--public-key", given)
    assert ended.code == 2
    assert given in ended.err


async def test_there_is_no_key_before_a_server_ran(cli):
    ended = await cli("audit", "key")
    assert ended.code == 4
    assert "no server has run with these settings" in ended.err
