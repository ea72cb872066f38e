"""Children find the program wherever control found it, and nowhere else."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from clawbox.children import program
from tests.unit.children.conftest import ROOT

PROGRAM = """
import asyncio, json, sys, tempfile, wasmtime
from pathlib import Path
from clawbox.wasm.compiler import Compiler
from clawbox.wasm.model import Limits, Run, ToolCode
from clawbox.wasm.pool import WorkerPool
async def main():
    binary = bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "_start")))'))
    with tempfile.TemporaryDirectory() as folder:
        async with Compiler(Path(folder, "cache")) as compiler:
            made = await compiler.compile(binary)
            async with WorkerPool(workers=1, max_concurrent=1, uids=None) as pool:
                code = ToolCode("tool", made.digest, made.abi, str(made.path))
                result = await pool.run(Run(code, "a", b"1", Limits(5000, 10**6, 1 << 24)))
                print(result.outcome.value)
asyncio.run(main())
"""


async def test_an_installation_that_only_pythonpath_names_compiles_and_runs():
    site = str(Path(msgspec.__file__).parents[1])
    interpreter = getattr(sys, "_base_executable", sys.executable)  # outside of any virtual environment
    process = await asyncio.create_subprocess_exec(
        interpreter,
        "-c",
        PROGRAM,
        env={"PYTHONPATH": os.pathsep.join((ROOT, str(Path(ROOT, "clients/python")), site))},
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (b"ok", 0) == (output.strip().rpartition(b"\n")[2], process.returncode), errors.decode()


def test_children_import_neither_from_the_current_folder_nor_from_relative_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "relative", *sys.path])
    found = program.import_path()
    assert not {"", "relative", str(tmp_path)} & set(found)
    monkeypatch.chdir(ROOT)
    assert str(ROOT) in program.import_path()  # where this program itself was found
