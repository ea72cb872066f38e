"""The catalog follows its folder: what loads, what does not and why; a bad file takes nothing away."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from clawbox.errors import ClawboxError, Reason
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.model import Abi
from clawbox.wasm.tool_entry import ToolState
from tests.integration.catalog.conftest import (
    ADMIN,
    ALICE,
    MAX_TOOL_BYTES,
    digest_of,
    entry_of,
    manifest,
    until,
)
from tests.unit.compiler.conftest import COMMAND, bomb, command, wasm

NO_START = wasm('(module (memory (export "memory") 1))')


async def test_a_module_in_the_folder_is_a_tool_of_the_operator(world):
    world.put("echo", COMMAND)
    async with world.catalog() as catalog:
        entry = await catalog.ready("echo", ALICE)
    assert (entry.state, entry.load_error, entry.owner, entry.published) == (ToolState.READY, "", "", True)
    assert entry.code is not None
    assert (entry.code.abi, entry.size_bytes) == (Abi.COMMAND_MODULE, len(COMMAND))
    assert entry.manifest.tool.description == "Auto-loaded WASM tool"
    assert not entry.has_manifest
    assert entry.manifest.network_rules == ()


async def test_its_manifest_is_read(world):
    schema = {"type": "object"}
    world.put("echo", COMMAND, manifest("echo", input_schema=schema, credentials={"available": ["github"]}))
    async with world.catalog() as catalog:
        entry = await catalog.ready("echo", ALICE)
    assert entry.has_manifest
    assert entry.code is not None
    assert (entry.code.input_schema, entry.code.output_schema) == (b'{"type": "object"}', None)
    assert entry.manifest.credential_names == ("github",)


async def test_starting_waits_for_nothing_to_compile(world):
    world.put("slow", bomb(functions=10, locals_=1000, blocks=1000))
    world.put("echo", COMMAND)
    async with world.catalog() as catalog:
        assert entry_of(catalog, "slow").state is ToolState.COMPILING
        assert (await catalog.ready("echo", ALICE)).code is not None
        assert entry_of(catalog, "slow").state is ToolState.COMPILING
        assert catalog.runnable() == 1


async def test_a_bad_file_is_reported_and_stops_nothing(world):
    world.put("bad", NO_START)
    world.put("echo", COMMAND)
    async with world.catalog() as catalog:
        with pytest.raises(ClawboxError) as refused:
            await catalog.ready("bad", ALICE)
        assert refused.value.reason is Reason.TOOL_NOT_READY
        assert "exports no _start" in refused.value.message
        assert (await catalog.ready("echo", ALICE)).code is not None
        report = await catalog.reload(ADMIN)
    assert report.tools == ("echo",)
    assert [(failure.name, failure.previous_in_service) for failure in report.failures] == [("bad", False)]
    assert sorted(world.loads)[:2] == ["loaded", "refused"]


@pytest.mark.parametrize(
    ("described", "says"),
    [
        ("{", "not JSON"),
        ('{"tool": {"name": "other", "description": ""}}', "tool.name is other"),
        ('{"tool": {"name": "echo", "description": ""}, "netwrok": {}}', "did you mean network?"),
    ],
)
async def test_a_bad_manifest_keeps_its_module_out_of_service(world, described, says):
    world.put("echo", COMMAND)
    (world.tools / "echo.json").write_text(described)
    async with world.catalog() as catalog:
        with pytest.raises(ClawboxError) as refused:
            await catalog.ready("echo", ALICE)
    assert says in refused.value.message
    assert "echo.json" in refused.value.message


async def test_odd_files_are_refused_with_a_reason(world, tmp_path):
    world.put("large", b"\0" * (MAX_TOOL_BYTES + 1))
    (tmp_path / "elsewhere.wasm").write_bytes(COMMAND)
    (world.tools / "link.wasm").symlink_to(tmp_path / "elsewhere.wasm")
    (world.tools / "folder.wasm").mkdir()
    os.mkfifo(world.tools / "pipe.wasm")
    world.put("bad name", COMMAND)
    world.put("lonely", None, manifest("lonely"))
    (world.tools / "README.md").write_text("not a tool")
    async with world.catalog() as catalog:
        report = await catalog.reload(ADMIN)
        assert [entry.name for entry in catalog.list(ADMIN)] == ["folder", "large", "link", "pipe"]
    errors = {failure.name: failure.error for failure in report.failures}
    assert errors.keys() == {"large", "link", "folder", "pipe", "bad name", "lonely"}
    assert "more than" in errors["large"]
    assert "symbolic link" in errors["link"]
    assert "not a regular file" in errors["folder"]
    assert "not a regular file" in errors["pipe"]
    assert "1 to 64" in errors["bad name"]
    assert "no lonely.wasm" in errors["lonely"]
    assert report.tools == ()


async def test_a_file_that_does_not_compile_keeps_the_version_before_it(world):
    world.put("echo", command(1))
    async with world.catalog(watch=True) as catalog:
        first = await catalog.ready("echo", ALICE)
        world.put("echo", NO_START)
        await until(lambda: entry_of(catalog, "echo").load_error)
        kept = await catalog.ready("echo", ALICE)
        assert (kept.code, kept.state, kept.update_time) == (first.code, ToolState.READY, first.update_time)
        assert "exports no _start" in kept.load_error
        (failure,) = (await catalog.reload(ADMIN)).failures
        assert (failure.name, failure.previous_in_service) == ("echo", True)
        assert "refused" in world.loads
        world.put("echo", command(2))
        await until(lambda: not entry_of(catalog, "echo").load_error)
        assert entry_of(catalog, "echo").code != first.code


async def test_changes_are_seen_without_being_told(world):
    async with world.catalog(watch=True) as catalog:
        assert catalog.list(ALICE) == ()
        world.put("echo", command(1))
        await until(lambda: catalog.runnable() == 1)
        digest = digest_of(catalog, "echo")
        world.put("echo", command(2))
        await until(lambda: digest_of(catalog, "echo") != digest)
        world.put("echo", None, manifest("echo"))
        await until(lambda: entry_of(catalog, "echo").has_manifest)
        (world.tools / "echo.wasm").unlink()
        await until(lambda: catalog.list(ALICE) == ())


async def test_of_many_quick_writes_the_last_is_in_service(world):
    """The original lost what was written within 500 ms of another write."""
    async with world.catalog(watch=True) as catalog:
        for constant in range(20):
            world.put("echo", command(constant))
        world.put("last", command(99))
        written = hashlib.sha256(command(19)).hexdigest()
        await until(lambda: catalog.runnable() == 2 and digest_of(catalog, "echo") == written)
        fresh = await catalog.reload(ADMIN)
        assert fresh.reloaded == 0
        assert digest_of(catalog, "echo") == written


async def test_a_file_that_is_being_written_does_not_take_the_old_one_out(world):
    world.put("echo", command(1))
    whole = command(2)
    async with world.catalog(watch=True) as catalog:
        first = await catalog.ready("echo", ALICE)
        with (world.tools / "echo.wasm").open("wb", buffering=0) as file:
            for index in range(len(whole)):
                file.write(whole[index : index + 1])
                await catalog.reload(ADMIN) if index == len(whole) // 2 else None
                assert (await catalog.ready("echo", ALICE)).code == first.code
        await until(lambda: entry_of(catalog, "echo").code != first.code)
        assert entry_of(catalog, "echo").load_error == ""


async def test_reload_reads_what_changed(world):
    world.put("one", command(1))
    world.put("two", command(2))
    async with world.catalog() as catalog:
        await catalog.reload(ADMIN)
        world.put("two", command(3))
        world.put("three", command(4))
        report = await catalog.reload(ADMIN)
        assert (report.reloaded, report.tools, report.failures) == (2, ("one", "three", "two"), ())
        (world.tools / "one.wasm").unlink()
        report = await catalog.reload(ADMIN)
        assert report.tools == ("three", "two")


async def test_what_a_manifest_asks_too_much_is_said_and_the_tool_loads(world):
    asked = manifest(
        "echo", network={"allowlist": ["api.github.com", "evil.org"]}, resources={"max_fuel": 10_001}
    )
    world.put("echo", COMMAND, asked)
    async with world.catalog() as catalog:
        entry = await catalog.ready("echo", ALICE)
    assert entry.warnings == (
        "network.allowlist[1]: the server does not allow evil.org",
        "resources.max_fuel: 10001 is more than the server's 10000",
    )


async def test_a_compile_bomb_in_the_folder_is_stopped(world):
    world.put("bomb", bomb(functions=10, locals_=1000, blocks=1000))
    async with world.catalog(compile_timeout_ms=400) as catalog:
        with pytest.raises(ClawboxError) as refused:
            await catalog.ready("bomb", ALICE)
    assert "compiling took longer than 400 ms" in refused.value.message


async def test_pages_are_by_name(world):
    for name in ("b", "a", "c", "aa"):
        world.put(name, COMMAND)
    async with world.catalog() as catalog:
        assert [entry.name for entry in catalog.list(ALICE, limit=2)] == ["a", "aa"]
        assert [entry.name for entry in catalog.list(ALICE, after="aa", limit=9)] == ["b", "c"]
        assert [entry.name for entry in catalog.list(ALICE, name_prefix="a")] == ["a", "aa"]


async def test_what_ships_is_there_and_can_be_taken_over_by_the_folder(world):
    world.builtin.mkdir()
    (world.builtin / "python.wasm").write_bytes(command(1))
    (world.builtin / "python.json").write_text('{"tool": {"name": "python", "description": "Runs Python."}}')
    async with world.catalog() as catalog:
        shipped = await catalog.ready("python", ALICE)
        assert (shipped.builtin, shipped.manifest.tool.description) == (True, "Runs Python.")
        with pytest.raises(ClawboxError) as refused:
            await catalog.delete("python", ADMIN)
        assert refused.value.reason is Reason.WRONG_STATE
        world.put("python", command(2))
        await catalog.reload(ADMIN)
        own = await catalog.ready("python", ALICE)
        assert (own.builtin, own.has_manifest) == (False, False)
        assert own.code != shipped.code
        await catalog.delete("python", ADMIN)
        assert (await catalog.ready("python", ALICE)).code == shipped.code


async def test_the_operator_can_lower_the_limits_of_what_ships(world):
    world.builtin.mkdir()
    (world.builtin / "python.wasm").write_bytes(command(1))
    (world.builtin / "python.json").write_text('{"tool": {"name": "python", "description": "Runs Python."}}')
    world.put("python", None, manifest("python", resources={"max_fuel": 5}))
    async with world.catalog() as catalog:
        entry = await catalog.ready("python", ALICE)
        assert (entry.builtin, entry.manifest.max_fuel) == (True, 5)


async def test_a_manifest_for_what_ships_can_be_registered_and_deleted_again(world):
    world.builtin.mkdir()
    (world.builtin / "python.wasm").write_bytes(command(1))
    (world.builtin / "python.json").write_text('{"tool": {"name": "python", "description": "Runs Python."}}')
    own = Manifest.parse(json.dumps(manifest("python", resources={"max_fuel": 5})).encode())
    async with world.catalog() as catalog:
        await catalog.ready("python", ALICE)
        await catalog.register(own, ADMIN, published=False)
        assert (await catalog.ready("python", ADMIN)).manifest.max_fuel == 5
        await catalog.delete("python", ADMIN)
        shipped = await catalog.ready("python", ALICE)
        assert (shipped.manifest.tool.description, shipped.published) == ("Runs Python.", True)
        with pytest.raises(ClawboxError) as refused:
            await catalog.delete("python", ADMIN)
        assert refused.value.reason is Reason.WRONG_STATE


async def test_a_second_start_compiles_nothing(world):
    world.put("echo", COMMAND)
    async with world.catalog() as catalog:
        first = await catalog.ready("echo", ALICE)
    async with world.catalog() as catalog:
        again = await catalog.ready("echo", ALICE)
        assert again.code == first.code
        assert world.compiler.stats.compiled == 0
