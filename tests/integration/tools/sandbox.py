"""Runs a built tool in this process: a fresh store for each call, and the workers' own host functions."""

from __future__ import annotations

import ctypes
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime import component

from clawbox.wasm.egress import Egress, HttpRequest, HttpResponse, NoEgress
from clawbox.wasm.engine import ENGINE_FINGERPRINT, new_engine
from clawbox.wasm.host import Host, Session

if TYPE_CHECKING:
    from clawbox.wasm.model import Level

ARTIFACTS = Path(__file__).parents[3] / ".cache" / "tests" / "artifacts"
COMPONENT_VERSION = 0x0D


@cache
def engine() -> wasmtime.Engine:
    """The engine, made when a test first needs it.

    Not on import: an engine installs handlers for the signals that traps raise, and pytest's faulthandler,
    which is enabled after a conftest is imported, would replace them.
    """
    return new_engine()


class Recorded:
    """A way out that answers every request with one response, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []

    def send(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        return HttpResponse(201, (("content-type", "application/json"), ("a", "1"), ("a", "2")), b'{"n": 1}')


@dataclass
class Ended:
    """How a call ended."""

    ok: bool = False
    output: str = ""
    stdout: list[bytes] = field(default_factory=list)
    stderr: list[bytes] = field(default_factory=list)
    logs: list[tuple[Level, str]] = field(default_factory=list)
    trap: str = ""
    exit_code: int | None = None
    fuel: int = 0

    @property
    def answer(self) -> Any:
        """The output, parsed."""
        return json.loads(self.output)

    @property
    def error(self) -> dict[str, Any]:
        """The error that an interpreter answered."""
        assert not self.ok
        error = self.answer["error"]
        assert isinstance(error, dict)
        return error


class Sandbox:
    """One compiled tool."""

    def __init__(self, wasm: Path) -> None:
        data = wasm.read_bytes()
        self._is_component = data[4] == COMPONENT_VERSION
        artifact = ARTIFACTS / f"{hashlib.sha256(data).hexdigest()}-{ENGINE_FINGERPRINT}.cwasm"
        kind: Any = component.Component if self._is_component else wasmtime.Module
        if not artifact.exists():
            artifact.parent.mkdir(parents=True, exist_ok=True)
            draft = artifact.with_suffix(".draft")
            draft.write_bytes(kind(engine(), data).serialize())
            draft.replace(artifact)
        self._code = kind.deserialize_file(engine(), str(artifact))
        self._host = Host()
        linker = self._host.component_linker if self._is_component else self._host.core_linker
        self._linker: Any = linker(engine())

    def run(
        self,
        params: object,
        *,
        fuel: int = 100_000_000_000,
        memory: int = 256 << 20,
        egress: Egress | None = None,
        max_calls: int = 100,
    ) -> Ended:
        """One call. ``memory`` is in bytes."""
        ended = Ended()
        # As the server hands parameters over: compact, keys sorted.
        text = (
            params
            if isinstance(params, str)
            else json.dumps(params, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        )
        self._host.session = Session(
            max_calls,
            1 << 16,
            egress or NoEgress(),
            lambda level, message: ended.logs.append((level, message)),
        )
        with wasmtime.Store(engine()) as store:
            store.set_fuel(fuel)
            store.set_epoch_deadline(1 << 30)
            store.set_limits(memory_size=memory)
            store.set_wasi(self._wasi(ended, text))
            try:
                (self._call if self._is_component else self._start)(store, text, ended)
            except wasmtime.ExitTrap as error:
                ended.exit_code = error.code
                ended.ok = error.code == 0
            except wasmtime.WasmtimeError as error:
                ended.trap = str(error)
            except wasmtime.Trap as error:
                ended.trap = error.message
            ended.fuel = fuel - store.get_fuel()
        self._host.session = None
        if not self._is_component:
            ended.output = b"".join(ended.stdout).decode()
        return ended

    def _call(self, store: wasmtime.Store, params: str, ended: Ended) -> None:
        run = self._linker.instantiate(store, self._code).get_func(store, "run")
        result = run(store, params)
        ended.ok, ended.output = result.tag == "ok", result.payload

    def _start(self, store: wasmtime.Store, _params: str, ended: Ended) -> None:
        start = self._linker.instantiate(store, self._code).exports(store)["_start"]
        start(store)
        ended.ok, ended.exit_code = True, 0

    @staticmethod
    def _wasi(ended: Ended, text: str) -> wasmtime.WasiConfig:
        def keep(chunks: list[bytes], data: bytes) -> int:
            chunks.append(bytes(data))
            return len(data)

        config = wasmtime.WasiConfig()
        data = text.encode()
        vector = ffi.wasm_byte_vec_t()
        ffi.wasm_byte_vec_new(
            ctypes.byref(vector), len(data), (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        )
        ffi.wasi_config_set_stdin_bytes(config.ptr(), ctypes.byref(vector))
        config.stdout_custom = lambda data: keep(ended.stdout, data)
        config.stderr_custom = lambda data: keep(ended.stderr, data)
        return config
