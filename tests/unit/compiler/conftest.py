"""Compilers over a cache of their own, and WebAssembly to give them."""

from __future__ import annotations

import pytest
import wasmtime

from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.uids import UidRange
from clawbox.wasm.compiler import Compiler


def wasm(text: str) -> bytes:
    """The binary of a module or component written as text."""
    return bytes(wasmtime.wat2wasm(text))


COMMAND = wasm('(module (memory (export "memory") 1) (func (export "_start")))')


def command(constant: int) -> bytes:
    """A command module that differs from every other by its constant."""
    return wasm(f'(module (memory (export "memory") 1) (func (export "_start") i32.const {constant} drop))')


def _leb(value: int) -> bytes:
    out = b""
    while True:
        low, value = value & 0x7F, value >> 7
        if not value:
            return out + bytes([low])
        out += bytes([low | 0x80])


def _section(number: int, body: bytes) -> bytes:
    return bytes([number]) + _leb(len(body)) + body


def bomb(*, functions: int, locals_: int, blocks: int) -> bytes:
    """A small module whose functions have very many locals, each alive across very many branches."""
    code = b"".join(
        b"\x02\x40" + b"\x20\x00\x0d\x00" + b"\x41\x01\x21" + _leb(index % locals_) + b"\x0b"
        for index in range(blocks)
    )
    code += b"".join(b"\x20" + _leb(index) + b"\x1a" for index in range(locals_))
    body = _leb(1) + _leb(locals_) + b"\x7f" + code + b"\x0b"
    body = _leb(len(body)) + body
    return b"".join(
        (
            b"\0asm\x01\0\0\0",
            _section(1, b"\x01\x60\0\0"),
            _section(3, _leb(functions) + b"\0" * functions),
            _section(5, b"\x01\x00\x01"),
            _section(7, b"\x02" + b"\x06_start\0\0" + b"\x06memory\x02\0"),
            _section(10, _leb(functions) + body * functions),
        )
    )


FIRST_UID = 916_000


@pytest.fixture
async def compiler(tmp_path):
    uids = UidRange(FIRST_UID, 3) if can_have_own_uids() else None
    async with Compiler(tmp_path / "cache", timeout_ms=30_000, uids=uids) as compiler:
        yield compiler
