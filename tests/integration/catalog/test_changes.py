"""Uploads, manifests and deletion over the API: who may, wholly or not at all, and nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from pathlib import Path

import pytest

from clawbox.errors import ClawboxError, Code, Reason
from clawbox.network_rules import NetworkRule
from clawbox.policy import NOTHING, ToolCeiling, narrow_tool
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.tool_entry import ToolState
from clawbox.wasm.uploads import UploadStart
from tests.integration.catalog.conftest import (
    ADMIN,
    ALICE,
    BOB,
    CAROL,
    CEILING,
    MAX_TOOL_BYTES,
    entry_of,
    in_pieces,
    manifest,
    until,
    upload,
)
from tests.unit.compiler.conftest import COMMAND, bomb, command, wasm
from tests.unit.compiler.test_compiler import children


async def refusal(call) -> ClawboxError:
    with pytest.raises(ClawboxError) as refused:
        await call
    return refused.value


async def test_an_upload_is_there_with_its_manifest_and_survives_a_restart(world):
    described = manifest("echo", network={"allowlist": ["api.github.com"]})
    async with world.catalog() as catalog:
        entry = await upload(
            catalog, "echo", COMMAND, described=described, sha256=hashlib.sha256(COMMAND).hexdigest().upper()
        )
        assert (entry.state, entry.owner, entry.published) == (ToolState.READY, "alice", False)
        assert entry.code is not None
        assert entry.manifest == Manifest.from_value(described)
        assert world.files() == {"echo.wasm", "echo.json"}
        assert world.loads == ["loaded"]
        assert (await catalog.reload(ADMIN)).reloaded == 0
    async with world.catalog() as catalog:
        again = await catalog.ready("echo", ALICE)
        assert (again.code, again.owner, again.manifest) == (entry.code, "alice", entry.manifest)


@pytest.mark.parametrize(
    ("start", "data", "reason"),
    [
        (UploadStart("echo", len(COMMAND)), COMMAND[:-1], Reason.INVALID_UPLOAD),
        (UploadStart("echo", len(COMMAND)), b"", Reason.INVALID_UPLOAD),
        (UploadStart("echo", len(COMMAND)), COMMAND + b"x", Reason.INVALID_UPLOAD),
        (UploadStart("echo", len(COMMAND), sha256="0" * 64), COMMAND, Reason.INVALID_UPLOAD),
        (UploadStart("echo", len(COMMAND), sha256="xyz"), COMMAND, Reason.INVALID_FIELD),
        (UploadStart("echo", 0), b"", Reason.INVALID_FIELD),
        (UploadStart("../echo", len(COMMAND)), COMMAND, Reason.INVALID_FIELD),
        (UploadStart("echo\n", len(COMMAND)), COMMAND, Reason.INVALID_FIELD),
        (UploadStart("echo", len(COMMAND), Manifest.automatic("other")), COMMAND, Reason.INVALID_FIELD),
        (UploadStart("echo", MAX_TOOL_BYTES + 1), b"", Reason.TOOL_TOO_LARGE),
        (UploadStart("echo", 5), b"hello", Reason.INVALID_MODULE),
        (UploadStart("echo", len(COMMAND) - 3), COMMAND[:-3], Reason.INVALID_MODULE),
        (UploadStart("echo", len(COMMAND), published=True), COMMAND, Reason.SCOPE_MISSING),
    ],
)
async def test_an_upload_that_cannot_be_taken_leaves_nothing(world, catalog, start, data, reason):
    error = await refusal(catalog.upload(start, in_pieces(data), ALICE))
    assert error.reason is reason
    assert world.files() == set()
    assert catalog.list(ADMIN) == ()
    assert (await upload(catalog, "echo", COMMAND)).code is not None


async def test_a_truncated_upload_says_how_far_it_came(catalog):
    error = await refusal(catalog.upload(UploadStart("echo", 100), in_pieces(COMMAND[:10]), ALICE))
    assert error.metadata == {"received_bytes": "10", "size_bytes": "100"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('(module (memory (export "memory") 1))', "exports no _start"),
        (
            '(module (import "env" "foo" (func)) (memory (export "memory") 1) (func (export "_start")))',
            "env.foo",
        ),
    ],
)
async def test_an_upload_that_cannot_run_says_why(world, catalog, text, says):
    error = await refusal(upload(catalog, "echo", wasm(text)))
    assert (error.reason, error.code) == (Reason.INVALID_MODULE, Code.INVALID_ARGUMENT)
    assert says in error.message
    assert world.files() == set()
    assert world.loads == ["refused"]


async def test_a_compile_bomb_leaves_nothing(world):
    async with world.catalog(compile_timeout_ms=400) as catalog:
        error = await refusal(upload(catalog, "bomb", bomb(functions=10, locals_=1000, blocks=1000)))
    assert (error.reason, error.code) == (Reason.COMPILE_LIMIT, Code.RESOURCE_EXHAUSTED)
    assert world.files() == set()
    assert children() == []


async def test_a_name_that_is_taken_is_not_given_twice(catalog):
    first = await upload(catalog, "echo", command(1))
    for who in (ALICE, BOB, ADMIN):
        error = await refusal(upload(catalog, "echo", command(2), who))
        assert (error.reason, error.code) == (Reason.TOOL_EXISTS, Code.ALREADY_EXISTS)
    assert (
        await refusal(upload(catalog, "echo", command(2), BOB, replace=True))
    ).reason is Reason.TOOL_EXISTS
    assert entry_of(catalog, "echo").code == first.code


async def test_of_two_uploads_of_one_name_at_once_the_second_is_refused(world, catalog):
    gate, begun = asyncio.Event(), asyncio.Event()

    async def slowly(data: bytes):
        yield data[:4]
        begun.set()
        await gate.wait()
        yield data[4:]

    one = command(1)
    first = asyncio.create_task(catalog.upload(UploadStart("echo", len(one)), slowly(one), ALICE))
    await begun.wait()
    assert (await refusal(upload(catalog, "echo", command(2), BOB))).reason is Reason.TOOL_EXISTS
    gate.set()
    assert (await first).owner == "alice"
    assert world.files() == {"echo.wasm"}


async def test_an_upload_whose_caller_goes_away_leaves_nothing(world, catalog):
    begun, never = asyncio.Event(), asyncio.Event()

    async def half(data: bytes):
        yield data[:4]
        begun.set()
        await never.wait()

    gone = asyncio.create_task(catalog.upload(UploadStart("echo", len(COMMAND)), half(COMMAND), ALICE))
    await begun.wait()
    assert world.files() != set()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert world.files() == set()
    assert (await upload(catalog, "echo", COMMAND, BOB)).owner == "bob"


async def test_an_upload_cancelled_while_it_compiles_leaves_neither_file_nor_process(world, catalog):
    slow = asyncio.create_task(upload(catalog, "bomb", bomb(functions=10, locals_=1000, blocks=1000)))
    await until(children)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert world.files() == set()
    assert children() == []


async def test_replacing_is_whole_and_keeps_the_owner(world, catalog):
    await upload(
        catalog, "echo", command(1), described=manifest("echo", network={"allowlist": ["api.github.com"]})
    )
    entry = await upload(catalog, "echo", command(2), ADMIN, replace=True)
    assert (entry.owner, entry.published) == ("alice", False)
    assert not entry.has_manifest
    assert entry.manifest.network_rules == ()
    assert world.files() == {"echo.wasm"}
    assert (world.tools / "echo.wasm").read_bytes() == command(2)
    assert (await catalog.reload(ADMIN)).reloaded == 0


async def test_a_replacement_that_does_not_compile_changes_nothing(world, catalog):
    described = manifest("echo", credentials={"available": ["github"]})
    before = await upload(catalog, "echo", command(1), described=described)
    error = await refusal(upload(catalog, "echo", b"\0asm\x01\0\0\0junk", replace=True))
    assert error.reason is Reason.INVALID_MODULE
    assert entry_of(catalog, "echo") == before
    assert (world.tools / "echo.wasm").read_bytes() == command(1)


async def test_a_deleted_tool_is_gone_and_runs_under_way_keep_their_version(world, catalog):
    entry = await upload(catalog, "echo", COMMAND, described=manifest("echo"))
    await catalog.delete("echo", ALICE)
    assert world.files() == set()
    assert (await refusal(catalog.ready("echo", ALICE))).reason is Reason.TOOL_NOT_FOUND
    assert (await refusal(catalog.delete("echo", ALICE))).reason is Reason.TOOL_NOT_FOUND
    assert entry.code is not None
    assert await asyncio.to_thread(Path(entry.code.artifact).read_bytes)
    assert (await upload(catalog, "echo", COMMAND, BOB)).owner == "bob"


async def test_an_administrators_tool_is_published_unless_said_otherwise(catalog):
    assert (await upload(catalog, "open", command(1), ADMIN)).published
    assert not (await upload(catalog, "closed", command(2), ADMIN, published=False)).published
    assert [entry.name for entry in catalog.list(BOB)] == ["open"]


async def test_the_operators_files_are_changed_by_administrators_alone(world):
    world.put("echo", COMMAND)
    async with world.catalog() as catalog:
        await catalog.ready("echo", ALICE)
        described = Manifest.from_value(manifest("echo"))
        nameless = type(ALICE)("", frozenset({"sandbox:write"}))
        for who in (ALICE, nameless):
            assert (await refusal(catalog.delete("echo", who))).reason is Reason.SCOPE_MISSING
            assert (await refusal(catalog.register(described, who))).reason is Reason.SCOPE_MISSING
        entry, created = await catalog.register(described, ADMIN)
        assert (entry.owner, entry.has_manifest, created) == ("", True, True)


async def test_registering_writes_the_manifest_beside_the_module(world):
    world.put("echo", COMMAND)
    described = manifest("echo", resources={"max_fuel": 7})
    async with world.catalog() as catalog:
        await catalog.ready("echo", ADMIN)
        entry, _ = await catalog.register(Manifest.from_value(described), ADMIN)
        assert entry.manifest.max_fuel == 7
        assert json.loads((world.tools / "echo.json").read_text())["resources"] == {"max_fuel": 7}
        assert world.files() == {"echo.wasm", "echo.json"}
        missing = Manifest.automatic("nothing")
        assert (await refusal(catalog.register(missing, ADMIN))).reason is Reason.TOOL_NOT_FOUND
    async with world.catalog() as catalog:
        assert (await catalog.ready("echo", ADMIN)).manifest.max_fuel == 7


async def test_a_manifest_that_asks_too_much_is_refused_over_the_api(world, catalog):
    described = manifest("echo", network={"allowlist": ["api.github.com", "evil.org"]})
    error = await refusal(upload(catalog, "echo", COMMAND, described=described))
    assert (error.reason, error.code) == (Reason.POLICY_DENIED, Code.PERMISSION_DENIED)
    assert [violation.field for violation in error.violations] == ["manifest.network.allowlist[1]"]
    assert world.files() == set()
    await upload(catalog, "echo", COMMAND)
    error = await refusal(catalog.register(Manifest.from_value(described), ALICE))
    assert error.reason is Reason.POLICY_DENIED
    assert not entry_of(catalog, "echo").has_manifest


async def test_a_manifest_is_bounded_by_the_token_of_whose_tool_it_is(catalog):
    described = manifest("echo", network={"allowlist": ["api.github.com"]})
    error = await refusal(upload(catalog, "echo", COMMAND, CAROL, described))
    assert "the tool's owner does not allow api.github.com" in error.message
    await upload(catalog, "echo", COMMAND, CAROL)
    # Not even an administrator lifts the tool of a token beyond what the token may.
    error = await refusal(catalog.register(Manifest.from_value(described), ADMIN))
    assert error.reason is Reason.POLICY_DENIED


async def test_the_tools_of_a_revoked_token_reach_nothing(world, catalog):
    described = manifest("echo", network={"allowlist": ["api.github.com"]})
    entry = await upload(catalog, "echo", COMMAND, described=described)
    grant = narrow_tool(None, entry.manifest, ADMIN.limits, catalog.owner_terms(entry), CEILING)
    assert [rule.host for rule in grant.network.rules] == ["api.github.com"]
    del world.principals["alice"]
    assert catalog.owner_terms(entry) is NOTHING
    grant = narrow_tool(None, entry.manifest, ADMIN.limits, catalog.owner_terms(entry), CEILING)
    assert grant.network.rules == ()


async def test_a_file_that_comes_back_is_still_its_owners(world, catalog):
    await upload(catalog, "mine", COMMAND)
    (world.tools / "mine.wasm").unlink()
    await catalog.reload(ADMIN)
    assert catalog.list(ADMIN) == ()
    world.put("mine", command(5))
    await catalog.reload(ADMIN)
    assert catalog.list(BOB) == ()
    assert entry_of(catalog, "mine").owner == "alice"


async def test_a_damaged_record_of_owners_publishes_nothing(world):
    async with world.catalog() as catalog:
        await upload(catalog, "mine", COMMAND)
    record = world.tools / ".clawbox" / "owners.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700
    record.write_bytes(b'{"tools": {"mine"')
    for _ in range(2):
        async with world.catalog() as catalog:
            await catalog.ready("mine", ADMIN)
            assert catalog.list(BOB) == ()
            assert catalog.list(ALICE) == ()
    async with world.catalog() as catalog:
        await catalog.ready("mine", ADMIN)
        await catalog.register(Manifest.automatic("mine"), ADMIN, published=True)
        assert [entry.name for entry in catalog.list(BOB)] == ["mine"]


async def test_what_a_crashed_server_left_half_done_is_removed(world):
    staging = world.tools / ".clawbox" / "staging"
    staging.mkdir(parents=True)
    (staging / "0123").write_bytes(COMMAND)
    async with world.catalog() as catalog:
        assert world.files() == set()
        assert catalog.list(ADMIN) == ()


async def test_a_full_disk_changes_nothing(world, catalog, monkeypatch):
    before = await upload(catalog, "echo", command(1), described=manifest("echo"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("clawbox.wasm.tool_files.StagedFile.move_to", full)
        with pytest.raises(OSError, match="No space"):
            await upload(
                catalog,
                "echo",
                command(2),
                described=manifest("echo", resources={"max_fuel": 5}),
                replace=True,
            )
    await catalog.reload(ADMIN)
    assert entry_of(catalog, "echo").code == before.code
    assert entry_of(catalog, "echo").manifest == before.manifest
    assert world.files() == {"echo.wasm", "echo.json"}


async def test_leaving_while_tools_compile_leaves_no_process(world):
    world.put("slow", bomb(functions=10, locals_=1000, blocks=1000))
    async with world.catalog(watch=True) as catalog:
        await until(children)
        assert entry_of(catalog, "slow").state is ToolState.COMPILING
    assert children() == []


async def test_a_server_that_allows_every_host_by_name_accepts_manifests_that_do(world):
    world.put("echo", COMMAND, manifest("echo", network={"allowlist": ["*"]}))
    async with world.catalog() as catalog:
        assert (await refusal(catalog.ready("echo", ADMIN))).reason is Reason.TOOL_NOT_READY
    open_server = ToolCeiling(1, 1, 1, 1, 1, 1, network=(NetworkRule("*"),))
    async with world.catalog(ceiling=open_server) as catalog:
        assert (await catalog.ready("echo", ADMIN)).manifest.network_rules == (NetworkRule("*"),)
