"""Compiled tools as the forkserver holds them: loaded and linked once, shared with every worker after.

Loading trusts the file, so only files of the server's own cache come here (docs/security.md, 91).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import wasmtime
from wasmtime import component

from clawbox.children.kind import LoadError
from clawbox.wasm.model import Abi

if TYPE_CHECKING:
    from clawbox.wasm.host import Host

MAX_ARTIFACTS: Final = 48
"""Each holds a descriptor that every worker inherits, and address space; the longest unused goes first."""

_COMMAND_EXPORT: Final = "wasi:cli/run@"

_OWN_MODULE: Final = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\01\\00\\00\\00")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
_OWN_COMPONENT: Final = """
(component
  (core module $m
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
    (func (export "run") (param i32 i32) (result i32)
      (i32.store (i32.const 4) (local.get 0))
      (i32.store (i32.const 8) (local.get 1))
      (i32.const 0)))
  (core instance $i (instantiate $m))
  (func (export "run") (param "params" string) (result (result string (error string)))
    (canon lift (core func $i "run") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))
"""


@dataclass(frozen=True, slots=True)
class CommandModule:
    """A core module, linked."""

    pre: wasmtime.InstancePre


@dataclass(frozen=True, slots=True)
class ToolComponent:
    """A component and the function of it that a run calls."""

    code: component.Component
    run: component.ExportIndex
    is_command: bool
    """It exports ``wasi:cli/run``: parameters on stdin, output on stdout."""


Artifact = CommandModule | ToolComponent


class Artifacts:
    """What is loaded, by digest."""

    def __init__(self, engine: wasmtime.Engine, host: Host) -> None:
        self.engine = engine
        self.components = host.component_linker(engine)
        self._modules = host.core_linker(engine)
        self._loaded: OrderedDict[str, Artifact] = OrderedDict()
        self.own = self._compile_own()
        """A module and a component of this program's own, which do next to nothing.

        A worker runs them before its first call, which then need not pay for what happens once."""

    def _compile_own(self) -> tuple[Artifact, ...]:
        code = component.Component(self.engine, _OWN_COMPONENT)
        run = code.get_export_index("run")
        assert run is not None
        return (
            CommandModule(self._modules.instantiate_pre(wasmtime.Module(self.engine, _OWN_MODULE))),
            ToolComponent(code, run, is_command=False),
        )

    def load(self, digest: str, abi: Abi, path: str) -> None:
        """Load an artifact unless it is loaded. Raises :class:`LoadError`."""
        if digest in self._loaded:
            self._loaded.move_to_end(digest)
            return
        try:
            self._loaded[digest] = self._read(abi, path)
        except (wasmtime.WasmtimeError, OSError) as error:
            raise LoadError(str(error)) from error
        while len(self._loaded) > MAX_ARTIFACTS:
            self._loaded.popitem(last=False)

    def digests(self) -> tuple[str, ...]:
        """What is loaded, the least recently loaded first."""
        return tuple(self._loaded)

    def get(self, digest: str) -> Artifact | None:
        """The artifact, if it is loaded."""
        return self._loaded.get(digest)

    def _read(self, abi: Abi, path: str) -> Artifact:
        if not Path(path).is_file():
            raise LoadError(f"{path} is not a file")
        if abi is Abi.COMMAND_MODULE:
            return CommandModule(
                self._modules.instantiate_pre(wasmtime.Module.deserialize_file(self.engine, path))
            )
        code = component.Component.deserialize_file(self.engine, path)
        is_command = abi is Abi.COMMAND_COMPONENT
        run = _command_export(code, self.engine) if is_command else code.get_export_index("run")
        if run is None:
            raise LoadError("the component exports no run function")
        return ToolComponent(code, run, is_command=is_command)


def _command_export(code: component.Component, engine: wasmtime.Engine) -> component.ExportIndex | None:
    exports = code.type.exports(engine)
    name = next((name for name in exports if name.startswith(_COMMAND_EXPORT)), None)
    if name is None:
        return None
    instance = code.get_export_index(name)
    return code.get_export_index("run", instance)
