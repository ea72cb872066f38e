"""Small command modules, from source."""

import wasmtime

_WRITE = """
(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
(memory (export "memory") 34)
(func $put (param $fd i32) (param $at i32) (param $size i32)
  (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $size))
  (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
"""


def module(body: str, data: bytes = b"") -> bytes:
    """A module whose ``_start`` is ``body``; ``data`` is at 1024."""
    literal = "".join(f"\\{byte:02x}" for byte in data)
    return bytes(
        wasmtime.wat2wasm(
            f'(module {_WRITE} (data (i32.const 1024) "{literal}") (func (export "_start") {body}))'
        )
    )


def says(stdout: bytes = b"", stderr: bytes = b"", code: int | None = None, then: str = "") -> bytes:
    """Writes, does ``then``, and perhaps exits."""
    body = (
        f"(call $put (i32.const 2) (i32.const {1024 + len(stdout)}) (i32.const {len(stderr)}))"
        if stderr
        else ""
    )
    body += f"(call $put (i32.const 1) (i32.const 1024) (i32.const {len(stdout)}))" if stdout else ""
    body += then
    body += f"(call $exit (i32.const {code}))" if code is not None else ""
    return module(body, stdout + stderr)


ECHO = module("""
  (local $size i32)
  (block $end (loop $more
    (i32.store (i32.const 0) (i32.const 4096)) (i32.store (i32.const 4) (i32.const 65536))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (local.set $size (i32.load (i32.const 8)))
    (br_if $end (i32.eqz (local.get $size)))
    (call $put (i32.const 1) (i32.const 4096) (local.get $size))
    (br $more)))
""")
FOREVER = "(loop $again (br $again))"
