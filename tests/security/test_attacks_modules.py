"""Modules that were made to cost others their time."""

import time

import pytest
import wasmtime

from clawbox.wasm.compile_child import compile_binary
from clawbox.wasm.engine import new_engine
from clawbox.wasm.interface import MAX_NAMES, InterfaceError
from clawbox.wasm.model import Abi
from tests.unit.wasm import wat


def module(exports):
    names = " ".join(f'(export "e{number}" (func $f))' for number in range(exports - 2))
    return f'(module (memory (export "memory") 1) (func $f (export "_start")) {names})'


def module_that_imports(functions):
    wanted = '(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))' * functions
    return f'(module {wanted} (memory (export "memory") 1) (func (export "_start")))'


def command_component(exports):
    names = " ".join(f'(export "e{number}" (func $run))' for number in range(exports - 1))
    return wat.command_component(0).rstrip().removesuffix(")") + names + ")"


@pytest.mark.parametrize("make", [module, module_that_imports, command_component])
def test_a_tool_with_more_names_than_anybody_should_look_at_is_refused_at_once(make):
    """20,000 exports of a component held up the forkserver for 9 s, and with it every new worker."""
    engine = new_engine()
    binary = bytes(wasmtime.wat2wasm(make(20 * MAX_NAMES)))
    began = time.process_time()
    with pytest.raises(InterfaceError, match=f"has 20000 (im|ex)ports; the most is {MAX_NAMES}"):
        compile_binary(engine, binary)
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("make", "abi"),
    [
        (module, Abi.COMMAND_MODULE),
        (module_that_imports, Abi.COMMAND_MODULE),
        (command_component, Abi.COMMAND_COMPONENT),
    ],
)
def test_a_tool_may_have_many_names(make, abi):
    assert compile_binary(new_engine(), bytes(wasmtime.wat2wasm(make(MAX_NAMES))))[0] is abi
