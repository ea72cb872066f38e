"""Small tools in the WebAssembly text format, compiled as the product compiles."""
# ruff: noqa: E501

import hashlib

import wasmtime
from wasmtime import component

from clawbox.wasm.engine import new_engine
from clawbox.wasm.model import Abi, ToolCode

WASI = """
 (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
 (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
 (import "clawbox" "host_call" (func $host (param i32 i32 i32 i32) (result i32)))
 (import "clawbox" "host_call_read" (func $host_read (param i32 i32 i32) (result i32)))
"""

HELPERS = """
 ;; Writes the bytes at $at to the descriptor $fd.
 (func $out (param $fd i32) (param $at i32) (param $size i32) (result i32)
  (i32.store (i32.const 0) (local.get $at))
  (i32.store (i32.const 4) (local.get $size))
  (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
 ;; Reads stdin to $at; how many bytes there were.
 (func $in (param $at i32) (result i32) (local $n i32) (local $all i32)
  (loop $more
   (i32.store (i32.const 0) (i32.add (local.get $at) (local.get $all)))
   (i32.store (i32.const 4) (i32.const 32768))
   (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
   (local.set $n (i32.load (i32.const 8)))
   (local.set $all (i32.add (local.get $all) (local.get $n)))
   (br_if $more (local.get $n)))
  (local.get $all))
"""


def module(body, *, pages=4, data="", start=None):
    text = f'(data (i32.const 1024) "{data}")' if data else ""
    entry = f'(func (export "_start") {start})' if start is not None else ""
    return f'(module {WASI} (memory (export "memory") {pages}) {text} {HELPERS} {body} {entry})'


def quoted(text):
    return "".join(f"\\{byte:02x}" for byte in text.encode())


ECHO = module("", start="(drop (call $out (i32.const 1) (i32.const 1024) (call $in (i32.const 1024))))")
TRAP = module("", start="unreachable")
EXIT_3 = module(
    "",
    data="half",
    start="(drop (call $out (i32.const 1) (i32.const 1024) (i32.const 4))) (call $exit (i32.const 3))",
)
EXIT_0 = module("", start="(call $exit (i32.const 0)) unreachable")
SPIN = module("", start="(loop br 0)")
SPIN_AFTER_OUTPUT = module(
    "", data="partial", start="(drop (call $out (i32.const 1) (i32.const 1024) (i32.const 7))) (loop br 0)"
)
DEEP = module("(func $f call $f)", start="call $f")
HUNGRY = module(
    "", start="(loop (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable)) br 0)"
)
GREEDY_START = module("", pages=8192, start="")
FLOOD_OUT = module(
    "", start="(loop (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 32768))) br 0)"
)
FLOOD_ERR = module(
    "",
    start="""(local $i i32) (loop (drop (call $out (i32.const 2) (i32.const 1024) (i32.const 32768)))
      (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if 0 (i32.lt_u (local.get $i) (i32.const 9))))""",
)
# One byte to each of stdout and stderr in turn, 1,000 times.
ALTERNATING = module(
    "",
    data="oe",
    start="""(local $i i32) (loop (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 1)))
      (drop (call $out (i32.const 2) (i32.const 1025) (i32.const 1)))
      (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if 0 (i32.lt_u (local.get $i) (i32.const 1000))))""",
)
RANDOM = module(
    "",
    start="""(drop (call $random (i32.const 1024) (i32.const 16)))
      (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 16)))""",
)
# Sixteen bytes at 1024: the sizes of environment and arguments, then the errno of the first preopened folder.
SURROUNDINGS = module(
    "",
    start="""(drop (call $environ (i32.const 1024) (i32.const 1028))) (drop (call $args (i32.const 1032) (i32.const 1036)))
      (i32.store (i32.const 1040) (call $prestat (i32.const 3) (i32.const 2048)))
      (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 20)))""",
)
# A clock subscription of an hour.
SLEEP = module(
    "",
    data="zzz",
    start="""(drop (call $out (i32.const 2) (i32.const 1024) (i32.const 3)))
      (i32.store (i32.const 2064) (i32.const 1)) (i64.store (i32.const 2072) (i64.const 3600000000000))
      (drop (call $poll (i32.const 2048) (i32.const 4096) (i32.const 1) (i32.const 8)))""",
)
# A counter that would go on counting if a memory outlived its call.
COUNTER = module(
    "",
    start="""(i32.store8 (i32.const 1024) (i32.add (i32.const 49) (i32.load8_u (i32.const 1024))))
      (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 1)))""",
)


def host_calls(times, request):
    """Makes the same host call again and again and writes the last reply."""
    return module(
        "",
        data=quoted(request),
        start=f"""(local $i i32) (local $n i32)
          (loop (local.set $n (call $host (i32.const 1024) (i32.const {len(request.encode())}) (i32.const 8192) (i32.const 8192)))
            (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if 0 (i32.lt_u (local.get $i) (i32.const {times}))))
          (if (i32.ne (local.get $n) (i32.const -1))
            (then (drop (call $out (i32.const 1) (i32.const 8192) (local.get $n)))))""",
    )


def host_call_with(pointers):
    """Makes one host call with the four numbers and exits with its result plus 1."""
    numbers = " ".join(f"(i32.const {number})" for number in pointers)
    return module(
        "",
        data=quoted('{"method":"nope"}'),
        start=f"(call $exit (i32.add (i32.const 1) (call $host {numbers})))",
    )


def short_reply(capacity):
    """Makes a call whose reply does not fit, writes what it got, then the whole reply by pieces of 10 bytes."""
    request = '{"method":"' + "x" * 150 + '"}'
    return module(
        "",
        data=quoted(request),
        start=f"""(local $n i32) (local $at i32)
          (local.set $n (call $host (i32.const 1024) (i32.const {len(request)}) (i32.const 8192) (i32.const {capacity})))
          (if (i32.gt_s (local.get $n) (i32.const 0)) (then (drop (call $out (i32.const 2) (i32.const 8192) (local.get $n)))))
          (loop (local.set $n (call $host_read (local.get $at) (i32.const 8192) (i32.const 10)))
            (if (i32.gt_s (local.get $n) (i32.const 0)) (then
              (drop (call $out (i32.const 1) (i32.const 8192) (local.get $n)))
              (local.set $at (i32.add (local.get $at) (local.get $n))) (br 1))))""",
    )


def component_text(body, *, imports="", start=""):
    """A component whose ``run`` is the core function that ``body`` is: it gets the string's pointer and length and
    returns where (is_err, pointer, length) stands. ``realloc`` is a bump allocator from 4096."""
    return f"""(component
      {imports}
      (core module $m
        (memory (export "memory") 4)
        (global $top (mut i32) (i32.const 4096))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $p i32)
          (local.set $p (global.get $top))
          (global.set $top (i32.add (global.get $top) (i32.and (i32.add (local.get 3) (i32.const 7)) (i32.const -8))))
          (local.get $p))
        (func $run (export "run") (param $at i32) (param $size i32) (result i32) {body})
        {start})
      (core instance $i (instantiate $m))
      (func (export "run") (param "params" string) (result (result string (error string)))
        (canon lift (core func $i "run") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))"""


_ANSWER = """(i32.store (i32.const 16) (i32.const {tag})) (i32.store (i32.const 20) (local.get $at))
  (i32.store (i32.const 24) (local.get $size)) (i32.const 16)"""
COMPONENT_OK = component_text(_ANSWER.format(tag=0))
COMPONENT_ERR = component_text(_ANSWER.format(tag=1))
COMPONENT_SPIN = component_text("(loop br 0) unreachable")
COMPONENT_SPINNING_START = component_text(
    _ANSWER.format(tag=0),
    start="(func $s (local $i i32) (loop (local.set $i (i32.add (local.get $i) (i32.const 1)))"
    " (br_if 0 (i32.lt_u (local.get $i) (i32.const 1000000))))) (start $s)",
)


def command_component(status):
    """A component that exports ``wasi:cli/run`` and returns ok (0) or err (1)."""
    return f"""(component
      (core module $m (func (export "run") (result i32) (i32.const {status})))
      (core instance $i (instantiate $m))
      (func $run (result (result)) (canon lift (core func $i "run")))
      (instance $command (export "run" (func $run)))
      (export "wasi:cli/run@0.2.0" (instance $command)))"""


class Forge:
    """Compiles into a folder; the same text twice is the same tool."""

    def __init__(self, folder):
        self._folder = folder
        self._engine = new_engine()

    def tool(self, text, *, name="tool", abi=Abi.COMMAND_MODULE, input_schema=None, output_schema=None):
        digest = hashlib.sha256(text.encode()).hexdigest()
        path = self._folder / digest
        if not path.exists():
            kind = wasmtime.Module if abi is Abi.COMMAND_MODULE else component.Component
            path.write_bytes(kind(self._engine, text).serialize())
        return ToolCode(name, digest, abi, str(path), input_schema, output_schema)
