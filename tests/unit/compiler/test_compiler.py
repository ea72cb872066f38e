"""Compiling what is not trusted: once each, confined, within limits, with a reason where it is refused."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import pytest
import wasmtime
from wasmtime import component

from clawbox.children import program
from clawbox.errors import ClawboxError, Code, Reason
from clawbox.wasm.compiler import Compiler, warm_builtin
from clawbox.wasm.engine import new_engine
from clawbox.wasm.host import Host
from clawbox.wasm.interface import check_module
from clawbox.wasm.model import Abi
from tests.unit.compiler.conftest import COMMAND, bomb, command, wasm

HOST = """
  (import "clawbox:tool/host@1.0.0" (instance
    (type $level' (enum "debug" "info" "warn" "error")) (export "level" (type $level (eq $level')))
    (export "log" (func (param "level" $level) (param "message" string)))
    (type $header' (record (field "name" string) (field "value" string)))
    (export "header" (type $header (eq $header')))
    (type $request' (record (field "method" string) (field "url" string)
      (field "headers" (list $header)) (field "body" (option (list u8)))))
    (export "request" (type $request (eq $request')))
    (type $response' (record (field "status" u16) (field "headers" (list $header)) (field "body" (list u8))))
    (export "response" (type $response (eq $response')))
    (export "http-request" (func (param "request" $request) (result (result $response (error string)))))
    (export "call" (func (param "method" string) (param "params" string)
      (result (result string (error string)))))))
"""
RUN = """
  (core module $m (memory (export "m") 1)
    (func (export "run") (param i32 i32) (result i32) i32.const 0)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 0))
  (core instance $i (instantiate $m))
  (func (export "run") (param "params" string) (result (result string (error string)))
    (canon lift (core func $i "run") (memory (core memory $i "m")) (realloc (core func $i "realloc"))))
"""
COMMAND_COMPONENT = """
  (core module $m (func (export "run") (result i32) i32.const 0))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $exported (export "run" (func $run)))
  (export "wasi:cli/run@0.2.3" (instance $exported))
"""


def children() -> list[int]:
    """Compile processes that this one started and has not reaped: another test's server may be there, too."""
    here = os.getpid()
    started = [int(pid) for pid in Path(f"/proc/{here}/task/{here}/children").read_text().split()]
    return [pid for pid in started if is_compiler_or_dead(pid)]


def is_compiler_or_dead(pid: int) -> bool:
    """Dead but not reaped counts: its command line is empty."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # reaped in this instant, by a thread
        return False
    return not command or b"compile_child" in command


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def one_child(*, confined: bool) -> dict[str, str]:
    """Waits for a compile process, and until its filter is in place; its /proc status."""
    while True:
        for pid in children():
            status = status_of(pid)
            if not confined or status.get("Seccomp") == "2":
                return status
        await asyncio.sleep(0.005)


async def refusal(compiler: Compiler, binary: bytes) -> ClawboxError:
    with pytest.raises(ClawboxError) as refused:
        await compiler.compile(binary)
    return refused.value


def test_the_worker_links_what_the_compiler_lets_through():
    text = "".join(
        f'(import "clawbox" "{name}" (func (param {"i32 " * count}) (result i32)))'
        for name, count in (("host_call", 4), ("host_call_read", 3))
    )
    engine = new_engine()
    module = wasmtime.Module(engine, wasm(f"(module {text} {_MEMORY} {_START})"))
    assert check_module(engine, module) is Abi.COMMAND_MODULE
    Host().core_linker(engine).instantiate_pre(module)


async def test_what_comes_back_runs(compiler):
    artifact = await compiler.compile(COMMAND)
    assert (artifact.abi, artifact.wasm_bytes) == (Abi.COMMAND_MODULE, len(COMMAND))
    assert artifact.digest == hashlib.sha256(COMMAND).hexdigest()
    engine = new_engine()
    module = wasmtime.Module.deserialize_file(engine, str(artifact.path))
    store = wasmtime.Store(engine)
    store.set_fuel(100)
    store.set_epoch_deadline(1)
    start = wasmtime.Instance(store, module, []).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    start(store)
    assert store.get_fuel() < 100


@pytest.mark.parametrize(
    ("text", "abi", "exports"),
    [
        (f"(component {HOST} {RUN})", Abi.COMPONENT, {"run"}),
        (f"(component {COMMAND_COMPONENT})", Abi.COMMAND_COMPONENT, {"wasi:cli/run@0.2.3"}),
    ],
)
async def test_components_are_told_apart(compiler, text, abi, exports):
    artifact = await compiler.compile(wasm(text))
    assert artifact.abi is abi
    engine = new_engine()
    loaded = component.Component.deserialize_file(engine, str(artifact.path))
    assert loaded.type.exports(engine).keys() == exports


async def test_the_second_time_nothing_is_compiled(compiler):
    first = await compiler.compile(COMMAND)
    assert await compiler.compile(COMMAND) == first
    assert (compiler.stats.compiled, compiler.stats.from_cache) == (1, 1)


async def test_those_who_ask_at_once_wait_for_one_process(compiler):
    found = await asyncio.gather(*(compiler.compile(COMMAND) for _ in range(5)))
    assert len(set(found)) == 1
    assert (compiler.stats.compiled, compiler.stats.from_cache) == (1, 0)


_MEMORY = '(memory (export "memory") 1)'
_START = '(func (export "_start"))'


@pytest.mark.parametrize(
    ("binary", "says"),
    [
        (b"", "not WebAssembly"),
        (b"hello, world", "not WebAssembly"),
        (b"(module)", "not WebAssembly"),
        (b"\0asm\x02\0\0\0", "not WebAssembly"),
        (b"\0asm\x01\0\0\0junk", "not WebAssembly"),
        (COMMAND[:-3], "unexpected end"),
        (wasm(f"(module {_MEMORY})"), "exports no _start"),
        (wasm(f"(module {_START})"), "exports no memory"),
        (wasm(f'(module {_MEMORY} (func (export "_start") (param i32)))'), "_start that is not"),
        (wasm(f'(module {_MEMORY} (global (export "_start") i32 (i32.const 0)))'), "_start that is not"),
        (
            wasm(f'(module (import "env" "foo" (func)) {_MEMORY} {_START})'),
            "imports env.foo, which clawbox does not",
        ),
        (
            wasm(f'(module (import "env" "m" (memory 1)) (export "memory" (memory 0)) {_START})'),
            "imports env.m",
        ),
        (
            wasm(f'(module (import "clawbox" "exec" (func)) {_MEMORY} {_START})'),
            "imports clawbox.exec, which clawbox does not provide",
        ),
        (
            wasm(f'(module (import "clawbox" "host_call" (func)) {_MEMORY} {_START})'),
            "imports clawbox.host_call as () -> ()",
        ),
        (
            wasm(f'(module (import "wasi_snapshot_preview1" "sock_open" (func)) {_MEMORY} {_START})'),
            "imports wasi_snapshot_preview1.sock_open",
        ),
        (
            wasm(f'(module (import "wasi_snapshot_preview1" "fd_write" (func)) {_MEMORY} {_START})'),
            "imports wasi_snapshot_preview1.fd_write as",
        ),
        (wasm(f'(module (memory (export "memory") i64 1) {_START})'), "memory64"),
        (wasm(f"(module {_MEMORY} (memory 1) {_START})"), "multiple memories"),
        (wasm("(component)"), "exports neither run"),
        (wasm('(component (import "wasi:http/types@0.2.0" (instance)))'), "imports wasi:http/types@0.2.0"),
        (wasm('(component (import "wasi:cli/telepathy@0.2.0" (instance)))'), "imports wasi:cli/telepathy"),
        (wasm('(component (import "wasi:io/poll@0.3.0" (instance)))'), "imports wasi:io/poll@0.3.0"),
        (wasm('(component (import "other:thing/x" (instance)))'), "imports other:thing/x"),
        (
            wasm('(component (import "clawbox:tool/host@1.0.0" (instance (export "exec" (func)))))'),
            "imports clawbox:tool/host@1.0.0#exec",
        ),
        (
            wasm('(component (import "clawbox:tool/host@1.0.0" (instance (export "call" (func)))))'),
            "host@1.0.0#call as func()",
        ),
    ],
)
async def test_what_cannot_run_is_refused_with_what_is_wrong(compiler, binary, says):
    error = await refusal(compiler, binary)
    assert (error.reason, error.code) == (Reason.INVALID_MODULE, Code.INVALID_ARGUMENT)
    assert says in error.message
    assert not list(compiler._cache._folder.glob("*.cwasm"))


async def test_a_cancelled_compile_leaves_no_process(compiler):
    slow = asyncio.create_task(compiler.compile(bomb(functions=100, locals_=1000, blocks=1000)))
    await one_child(confined=False)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert children() == []


async def test_one_who_gives_up_does_not_stop_the_others(compiler):
    binary = bomb(functions=2, locals_=500, blocks=500)
    one, other = (asyncio.create_task(compiler.compile(binary)) for _ in range(2))
    await one_child(confined=False)
    one.cancel()
    assert (await other).abi is Abi.COMMAND_MODULE
    assert one.cancelled()
    assert compiler.stats.compiled == 1


async def test_leaving_the_compiler_ends_what_it_runs(tmp_path):
    async with Compiler(tmp_path / "cache", timeout_ms=60_000) as compiler:
        slow = asyncio.create_task(compiler.compile(bomb(functions=100, locals_=1000, blocks=1000)))
        await one_child(confined=False)
    assert children() == []
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_the_loop_is_free_while_something_compiles(compiler):
    slow = asyncio.create_task(compiler.compile(bomb(functions=100, locals_=1000, blocks=1000)))
    await one_child(confined=False)
    assert (await compiler.compile(command(7))).abi is Abi.COMMAND_MODULE
    assert not slow.done()
    slow.cancel()
    await asyncio.wait([slow])


async def test_a_child_that_ends_its_answer_and_lives_on_is_ended_with_its_time(tmp_path, monkeypatch):
    code = "import os, time; [os.close(number) for number in range(3)]; time.sleep(1000)"
    monkeypatch.setattr(program, "command", lambda *_: [sys.executable, "-c", code])
    async with asyncio.timeout(60), Compiler(tmp_path / "cache", timeout_ms=1000) as compiler:
        assert (await refusal(compiler, COMMAND)).reason is Reason.COMPILE_LIMIT
    assert children() == []


async def test_a_bad_module_after_a_good_one_is_still_refused_when_asked_twice(compiler):
    bad = wasm(f"(module {_MEMORY})")
    assert (await refusal(compiler, bad)).message == (await refusal(compiler, bad)).message
    assert compiler.stats.failed == 2


async def test_setup_fills_the_cache_once_and_says_so(tmp_path):
    folder = tmp_path / "builtin"
    folder.mkdir()
    (folder / "echo.wasm").write_bytes(COMMAND)
    lines: list[str] = []
    assert await warm_builtin(tmp_path / "cache", lines.append, folder=folder) == 1
    assert [line.split(" in ")[0] for line in lines] == ["echo: compiling 0.0 MB, once", "echo: compiled"]
    assert await warm_builtin(tmp_path / "cache", lines.append, folder=folder) == 0
    assert lines[-1] == "echo: compiled already"
    async with Compiler(tmp_path / "cache") as compiler:
        await compiler.compile(COMMAND)
        assert compiler.stats.from_cache == 1
