"""What a tool may import and must export: looked at once, when it is compiled.

A tool that asks for something else is refused with a sentence that names it, before it is ever published. The
lists are what ``clawbox.wasm.worker`` links; nothing is linked because a tool asks for it.
"""

from __future__ import annotations

import re

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime import component

from clawbox.wasm.model import Abi

MODULE_MAGIC = b"\0asm\x01\0\0\0"
COMPONENT_MAGIC = b"\0asm\x0d\0\x01\0"
WASI_PREVIEW_1 = "wasi_snapshot_preview1"
CLAWBOX_MODULE = "clawbox"
CLAWBOX_FUNCTIONS = {
    "host_call": "(i32, i32, i32, i32) -> (i32)",
    "host_call_read": "(i32, i32, i32) -> (i32)",
}
"""What core modules may import from ``clawbox``."""
CLAWBOX_HOST = "clawbox:tool/host@1.0.0"
_HOST_REQUEST = (
    "record{method: string, url: string, headers: list<record{name: string, value: string}>, "
    "body: option<list<u8>>}"
)
_HOST_RESPONSE = "record{status: u16, headers: list<record{name: string, value: string}>, body: list<u8>}"
_HOST_FUNCTIONS = {
    "log": "func(enum{debug, info, warn, error}, string)",
    "http-request": f"func({_HOST_REQUEST}) -> result<{_HOST_RESPONSE}, string>",
    "call": "func(string, string) -> result<string, string>",
}
_RUN = "func(string) -> result<string, string>"
# WASI 0.2 without wasi:http, which would go around the sidecar.
_WASI_INTERFACES = {
    "cli": "environment exit stdin stdout stderr "
    "terminal-input terminal-output terminal-stdin terminal-stdout terminal-stderr",
    "io": "error poll streams",
    "clocks": "monotonic-clock wall-clock",
    "random": "random insecure insecure-seed",
    "filesystem": "types preopens",
    "sockets": "network instance-network udp udp-create-socket tcp tcp-create-socket ip-name-lookup",
}
WASI_INTERFACES = frozenset(
    f"wasi:{package}/{name}" for package, names in _WASI_INTERFACES.items() for name in names.split()
)
"""What components may import from WASI, at any version 0.2.x."""
MAX_NAMES = 1000
"""Imports, and exports, of a tool. For each of a component's, the runtime looks at all before it; and the
forkserver, which everybody waits for, looks again."""
_WASI_NAME = re.compile(r"(wasi:[a-z-]+/[a-z-]+)@0\.2\.\d{1,3}")
_COMMAND_RUN = re.compile(r"wasi:cli/run@0\.2\.\d{1,3}")


class InterfaceError(Exception):
    """The tool imports or exports what clawbox does not provide or take; the text is for its author."""


def check_module(engine: wasmtime.Engine, module: wasmtime.Module) -> Abi:
    """The ABI of a core module; raises InterfaceError."""
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    _check_number(len(module.imports), len(module.exports))
    for wanted in module.imports:
        where, name, kind = wanted.module, wanted.name or "", _spell_core(wanted.type)
        provided = None
        if where == CLAWBOX_MODULE:
            provided = CLAWBOX_FUNCTIONS.get(name)
        elif where == WASI_PREVIEW_1:
            try:
                extern = linker.get(store, where, name)
            except wasmtime.WasmtimeError:
                extern = None
            provided = _spell_core(extern.type(store)) if isinstance(extern, wasmtime.Func) else None
        if provided is None:
            raise InterfaceError(f"imports {where}.{name}, which clawbox does not provide")
        if provided != kind:
            raise InterfaceError(f"imports {where}.{name} as {kind}; clawbox provides {provided}")
    exports = {export.name: export.type for export in module.exports}
    if "_start" not in exports:
        raise InterfaceError("exports no _start; build it as a command (wasm32-wasip1), not as a library")
    if _spell_core(exports["_start"]) != "() -> ()":
        raise InterfaceError("exports a _start that is not a function without parameters and results")
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise InterfaceError("exports no memory named memory")
    return Abi.COMMAND_MODULE


def check_component(engine: wasmtime.Engine, compiled: component.Component) -> Abi:
    """The ABI of a component; raises InterfaceError."""
    kind = compiled.type
    _check_number(
        ffi.wasmtime_component_type_import_count(kind.ptr(), engine.ptr()),
        ffi.wasmtime_component_type_export_count(kind.ptr(), engine.ptr()),
    )
    for name, extern in kind.imports(engine).items():
        item = extern.ty
        if name == CLAWBOX_HOST and isinstance(item, component.ComponentInstanceType):
            _check_host(engine, item)
            continue
        wasi = _WASI_NAME.fullmatch(name)
        if wasi is not None and wasi[1] in WASI_INTERFACES:
            continue
        hint = (
            "; requests go through http-request of clawbox:tool/host" if name.startswith("wasi:http/") else ""
        )
        raise InterfaceError(f"imports {name}, which clawbox does not provide{hint}")
    exports = kind.exports(engine)
    if "run" in exports:
        spelled = _spell(exports["run"].ty)
        if spelled != _RUN:
            raise InterfaceError(f"exports run as {spelled}; the world clawbox:tool/tool has {_RUN}")
        return Abi.COMPONENT
    if any(_COMMAND_RUN.fullmatch(name) for name in exports):
        return Abi.COMMAND_COMPONENT
    raise InterfaceError("exports neither run (world clawbox:tool/tool) nor wasi:cli/run@0.2.x")


def _check_host(engine: wasmtime.Engine, host: component.ComponentInstanceType) -> None:
    _check_number(ffi.wasmtime_component_instance_type_export_count(host.ptr(), engine.ptr()), 0)
    for name, extern in host.exports(engine).items():
        item = extern.ty
        if not isinstance(item, component.FuncType):
            continue  # the types that the functions name
        provided = _HOST_FUNCTIONS.get(name)
        if provided is None:
            raise InterfaceError(f"imports {CLAWBOX_HOST}#{name}, which clawbox does not provide")
        if _spell(item) != provided:
            raise InterfaceError(
                f"imports {CLAWBOX_HOST}#{name} as {_spell(item)}; clawbox provides {provided}"
            )


def _check_number(imports: int, exports: int) -> None:
    for number, what in ((imports, "imports"), (exports, "exports")):
        if number > MAX_NAMES:
            raise InterfaceError(f"has {number} {what}; the most is {MAX_NAMES}")


def _spell_core(kind: object) -> str:
    if not isinstance(kind, wasmtime.FuncType):
        return type(kind).__name__.removesuffix("Type").lower()
    return f"({', '.join(map(str, kind.params))}) -> ({', '.join(map(str, kind.results))})"


def _spell(kind: object) -> str:
    match kind:
        case component.FuncType():
            result = "" if kind.result is None else f" -> {_spell(kind.result)}"
            return f"func({', '.join(_spell(of) for _, of in kind.params)}){result}"
        case component.ListType():
            return f"list<{_spell(kind.element)}>"
        case component.OptionType():
            return f"option<{_spell(kind.payload)}>"
        case component.ResultType():
            return f"result<{_spell(kind.ok)}, {_spell(kind.err)}>"
        case component.EnumType():
            return f"enum{{{', '.join(kind.names)}}}"
        case component.RecordType():
            return f"record{{{', '.join(f'{name}: {_spell(of)}' for name, of in kind.fields)}}}"
        case None:
            return "_"
    return type(kind).__name__.lower()
