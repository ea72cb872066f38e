"""Signed heads: a log that was rewritten by whoever has no key does not pass."""

import asyncio
import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clawbox.audit import AuditLog, SignerGoneError, rows, signed_heads, signing, verify
from clawbox.signed_text import audit_head_text


class Key:
    """Signs, unless it is gone."""

    def __init__(self):
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()
        self.gone = False
        self.asked = []
        self.before = lambda: None

    async def sign(self, sequence, digest):
        self.asked.append(sequence)
        self.before()
        if self.gone:
            raise SignerGoneError("gone")
        return self._key.sign(audit_head_text(sequence, digest))


@pytest.fixture
def key():
    return Key()


def kinds(folder):
    paths = [*sorted(folder.glob("audit-0*.jsonl")), folder / "audit.jsonl"]
    return [json.loads(line)["kind"] for path in paths for line in path.read_text().splitlines()]


async def written(folder, key, count, **settings):
    async with AuditLog(folder, **settings) as log, signed_heads(log, key):
        await asyncio.sleep(0)  # what is signed at the start is signed
        for _ in range(count):
            log.append("execute", tool="echo")


def rewritten(folder, change):
    """Change rows as somebody would who knows the format but has no key: a good chain."""
    path = folder / "audit.jsonl"
    prev, lines = rows.FIRST_PREV, []
    kept = change([rows.decode(line)[0] for line in path.read_bytes().splitlines()])
    for sequence, row in enumerate(kept, start=1):
        fields = {name: getattr(row, name) for name in row.__struct_fields__}
        line, prev = rows.encode(rows.AuditRow(**fields | {"sequence": sequence, "prev": prev}))
        lines.append(line)
    path.write_bytes(b"".join(lines))


async def test_heads_are_signed_at_the_end_and_what_is_signed_is_not_signed_anew(tmp_path, key):
    await written(tmp_path, key, 3)
    await written(tmp_path, key, 2)
    assert kinds(tmp_path) == [
        *("execute", "execute", "execute", "audit_head"),
        *("execute", "execute", "audit_head"),
    ]
    verdict = verify(tmp_path, public_key=key.public)
    assert (verdict.ok, verdict.signatures, verdict.signed_sequence) == (True, "found", 6)
    assert verify(tmp_path).signatures == "absent"


async def test_what_a_crash_left_unsigned_is_signed_by_the_next_server(tmp_path, key):
    async with AuditLog(tmp_path) as log:
        log.append("execute")
    await written(tmp_path, key, 0)
    assert kinds(tmp_path) == ["execute", "audit_head"]


async def test_a_head_is_signed_again_and_again_but_only_of_what_is_new(tmp_path, key):
    async with AuditLog(tmp_path) as log, signed_heads(log, key, every_s=0.001):
        watch = log.watch(after_sequence=0, kinds=frozenset({"audit_head"}))
        log.append("execute")
        assert (await anext(watch)).fields["sequence"] == 1
        log.append("execute")
        assert (await anext(watch)).fields["sequence"] == 3
        await watch.aclose()
    assert kinds(tmp_path) == ["execute", "audit_head"] * 2


async def test_every_full_file_is_signed_without_waiting(tmp_path, key):
    async with AuditLog(tmp_path, max_file_bytes=1) as log, signed_heads(log, key, every_s=3600):
        watch = log.watch(after_sequence=0, kinds=frozenset({"audit_head"}))
        log.append("execute")
        assert (await anext(watch)).fields["sequence"] == 1
        await watch.aclose()


async def test_rows_written_while_a_head_is_signed_get_the_next_one(tmp_path, key):
    async with AuditLog(tmp_path) as log:
        log.append("execute")

        def meanwhile():
            key.before = lambda: None
            log.append("execute")

        key.before = meanwhile
        async with signed_heads(log, key, every_s=3600):
            watch = log.watch(after_sequence=0, kinds=frozenset({"audit_head"}))
            await anext(watch)
            await watch.aclose()
    assert kinds(tmp_path) == ["execute", "execute", "audit_head", "audit_head"]
    assert verify(tmp_path, public_key=key.public).signed_sequence == 3


async def test_without_a_signer_rows_are_written_and_signed_later(tmp_path, key):
    key.gone = True
    await written(tmp_path, key, 2)
    assert kinds(tmp_path) == ["execute"] * 2
    verdict = verify(tmp_path, public_key=key.public)
    assert (verdict.ok, verdict.bad, verdict.signatures) == (False, None, "not found")
    key.gone = False
    await written(tmp_path, key, 0)
    assert verify(tmp_path, public_key=key.public).signed_sequence == 2


async def test_a_signer_that_never_answers_does_not_hold_up_the_end(tmp_path, key, monkeypatch):
    monkeypatch.setattr(signing, "_LAST_S", 0.01)

    class Mute:
        async def sign(self, sequence, digest):
            await asyncio.Event().wait()

    await written(tmp_path, Mute(), 1)
    assert kinds(tmp_path) == ["execute"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda kept: [kept[0], *kept[2:]], "it is no signed head"),
        (lambda kept: [*kept[:2], kept[1], *kept[2:]], "row 3 is not the one that was signed"),
        (lambda kept: [kept[3]], "it is no signed head"),
        (lambda kept: [rows.AuditRow(**_named(kept[0], principal="eve")), *kept[1:]], "row 3 is not the one"),
    ],
    ids=["a row gone", "a row more", "a head alone", "a row changed"],
)
async def test_a_good_chain_without_the_key_is_bad(tmp_path, key, change, problem):
    await written(tmp_path, key, 3)
    rewritten(tmp_path, change)
    assert verify(tmp_path).ok
    verdict = verify(tmp_path, public_key=key.public)
    assert not verdict.ok
    assert verdict.bad is not None
    assert verdict.bad.problem.startswith(problem)


def _named(row, **changed):
    return {name: getattr(row, name) for name in row.__struct_fields__} | changed


async def test_a_log_whose_heads_were_taken_out_is_not_ok(tmp_path, key):
    await written(tmp_path, key, 3)
    rewritten(tmp_path, lambda kept: kept[:3])
    verdict = verify(tmp_path, public_key=key.public)
    assert (verify(tmp_path).ok, verdict.ok, verdict.signatures) == (True, False, "not found")


async def test_heads_of_another_key_are_bad(tmp_path, key):
    await written(tmp_path, key, 1)
    verdict = verify(tmp_path, public_key=Key().public)
    assert verdict.bad is not None
    assert verdict.bad.problem == "its signature is not this key's"


async def test_a_head_of_a_row_that_is_no_longer_kept_says_nothing_and_is_no_error(tmp_path, key):
    await written(tmp_path, key, 6, max_file_bytes=300)
    first, *_ = sorted(tmp_path.glob("audit-0*.jsonl"))
    first.unlink()
    verdict = verify(tmp_path, public_key=key.public)
    assert (verdict.ok, verdict.pruned, verdict.signatures) == (True, True, "found")


def test_what_is_no_public_key_is_said_to_be_none(tmp_path):
    with pytest.raises(ValueError, match="32 bytes"):
        verify(tmp_path, public_key=os.urandom(31))
