"""Compiling what is not trusted, and what may be loaded afterwards.

The numbers are those of docs/security.md.
"""

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import pytest
import wasmtime

from clawbox.children.enforcement import can_have_own_uids
from clawbox.errors import ClawboxError, Code, Reason
from clawbox.wasm.cache import ArtifactCache
from clawbox.wasm.compiler import Compiler
from clawbox.wasm.engine import new_engine
from clawbox.wasm.model import Abi
from tests.unit.compiler.conftest import COMMAND, FIRST_UID, bomb, command
from tests.unit.compiler.test_cache import rewrite
from tests.unit.compiler.test_compiler import children, one_child, refusal, status_of


def seen_by_root(pid: int) -> tuple[bool, bytes, str]:
    """Whether it shares this process's network, its environment, and its limits."""
    same = Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    return same, Path(f"/proc/{pid}/environ").read_bytes(), Path(f"/proc/{pid}/limits").read_text()


# 90


async def test_rule_90_a_module_that_takes_too_long_to_compile_is_stopped(tmp_path):
    async with Compiler(tmp_path / "cache", timeout_ms=500, memory_bytes=4 << 30) as compiler:
        error = await refusal(compiler, bomb(functions=100, locals_=1000, blocks=1000))
    assert (error.reason, error.code) == (Reason.COMPILE_LIMIT, Code.RESOURCE_EXHAUSTED)
    assert error.metadata == {"allowed_ms": "500"}
    assert children() == []


async def test_rule_90_a_module_that_takes_too_much_memory_to_compile_is_stopped(compiler):
    binary = bomb(functions=1, locals_=4000, blocks=4000)
    assert len(binary) < 64 << 10
    error = await refusal(compiler, binary)
    assert error.reason is Reason.COMPILE_LIMIT
    assert error.metadata == {"memory_mb": "1024"}


async def test_rule_90_an_upload_has_less_time_than_the_servers_own_files(tmp_path):
    async with Compiler(tmp_path / "cache", timeout_ms=60_000) as compiler:
        with pytest.raises(ClawboxError) as refused:
            await compiler.compile(bomb(functions=100, locals_=1000, blocks=1000), timeout_ms=300)
    assert refused.value.metadata == {"allowed_ms": "300"}


async def test_rule_90_the_compile_process_has_no_privileges(compiler):
    slow = asyncio.create_task(compiler.compile(bomb(functions=100, locals_=1000, blocks=1000)))
    status = await one_child(confined=True)
    pid = int(status["Pid"])
    assert status["NoNewPrivs"] == "1"
    assert all(int(status[caps], 16) == 0 for caps in ("CapEff", "CapPrm", "CapInh", "CapAmb"))
    assert status["Threads"] == "1"
    if os.geteuid() == 0:
        assert status["Uid"].split() == [str(FIRST_UID)] * 4
        assert status["Gid"].split() == [str(FIRST_UID)] * 4
        assert int(status["CapBnd"], 16) == 0
        assert status["Groups"].split() == []
        same_network, environment, limits = seen_by_root(pid)
        assert not same_network
        assert environment == b""
        assert f"Max data size             {1 << 30}" in limits
        assert "Max core file size        0 " in limits
    slow.cancel()
    await asyncio.wait([slow])


async def test_rule_64_each_compile_process_has_a_uid_of_its_own(compiler):
    bombs = [bomb(functions=100, locals_=1000, blocks=1000 + n) for n in range(2)]
    slow = [asyncio.create_task(compiler.compile(binary)) for binary in bombs]
    seen: set[str] = set()
    different = 2 if can_have_own_uids() else 1  # weaker, and reported as such
    async with asyncio.timeout(30):
        while len(seen) < different:
            statuses = [status_of(pid) for pid in children()]
            seen |= {status["Uid"] for status in statuses if status.get("Seccomp") == "2"}
            await asyncio.sleep(0.005)
    for task in slow:
        task.cancel()
    await asyncio.wait(slow)
    # They came back: four more at three uids.
    for n in range(4):
        assert (await compiler.compile(command(n))).abi is Abi.COMMAND_MODULE


async def test_rule_90_the_server_names_the_artifact_by_the_bytes_that_it_read(compiler):
    artifact = await compiler.compile(COMMAND)
    assert artifact.digest == hashlib.sha256(COMMAND).hexdigest()
    assert artifact.path.name.startswith(f"{artifact.digest}.")


def test_rule_90_what_could_not_be_written_whole_is_not_there(tmp_path, monkeypatch):
    cache = ArtifactCache(tmp_path / "cache")
    cache.open()
    written: list[int] = []

    def write_on_a_full_disk(descriptor, data):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(os.pwrite(descriptor, data[:100], 0))
        return written[0]

    monkeypatch.setattr(os, "write", write_on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        cache.store("ab" * 32, Abi.COMPONENT, 1, bytes(1000))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


# 91


async def test_rule_91_artifacts_are_0444_in_a_folder_of_0700(compiler):
    artifact = await compiler.compile(COMMAND)
    folder = artifact.path.parent
    assert folder.stat().st_mode & 0o7777 == 0o700
    assert {path.stat().st_mode & 0o7777 for path in folder.glob("*.*")} == {0o444}
    assert (folder / "key").stat().st_mode & 0o7777 == 0o600


async def test_rule_91_the_compiler_compiles_anew_what_was_patched(tmp_path):
    async with Compiler(tmp_path / "cache") as compiler:
        first = await compiler.compile(COMMAND)
        contents = bytearray(first.path.read_bytes())
        contents[len(contents) // 2] ^= 0xFF
        rewrite(first.path, bytes(contents))
        second = await compiler.compile(COMMAND)
        assert compiler.stats.compiled == 2
        assert second.path != first.path
        assert second.path.read_bytes() != contents


# 92


@pytest.mark.parametrize(
    "text",
    [
        "(module (memory 1) (memory 1))",
        "(module (memory i64 1))",
        "(module (memory 1 1 shared))",
        "(module (memory 1 (pagesize 1)))",
        "(module (tag) (func throw 0))",
        "(module (type (struct)))",
    ],
)
def test_rule_92_what_is_switched_off_does_not_compile(text):
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module(new_engine(), text)
