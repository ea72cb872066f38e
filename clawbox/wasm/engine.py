"""The one set of engine settings, shared by what compiles tools, what loads them and what runs them.

An artifact that was compiled under other settings does not load, so there is one engine for modules and
components alike, and :data:`ENGINE_FINGERPRINT` is part of every artifact's name in the cache.
"""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

import wasmtime

MAX_WASM_STACK = 2 << 20
"""Bytes of native stack that a guest may use; the main thread of a worker has four times as much."""

_SETTINGS: tuple[tuple[str, bool | int | str], ...] = (
    # What stops a guest: instructions counted, and a deadline checked at every loop and call.
    ("consume_fuel", True),
    ("epoch_interruption", True),
    ("max_wasm_stack", MAX_WASM_STACK),
    # What a guest may be made of. A limit on memory is a limit on each memory (docs/security.md, 92), and
    # every proposal that is not needed is machinery that an attacker could reach.
    ("wasm_threads", False),
    ("shared_memory", False),
    ("wasm_memory64", False),
    ("wasm_multi_memory", False),
    ("wasm_custom_page_sizes", False),
    ("wasm_gc", False),
    ("wasm_function_references", False),
    ("wasm_exceptions", False),
    ("wasm_stack_switching", False),
    ("wasm_wide_arithmetic", False),
    ("wasm_relaxed_simd", False),
    ("wasm_component_model", True),
    ("gc_support", False),
    # How it is compiled and instantiated. Compiling must not start threads: it happens where their number
    # is limited (docs/security.md, 90). Linear memory begins as a private mapping of the artifact, page by
    # page.
    ("parallel_compilation", False),
    ("cranelift_opt_level", "speed"),
    ("memory_init_cow", True),
    ("native_unwind_info", False),
)

# The instruction sets that Cranelift looks for, as /proc/cpuinfo names them.
_X86_FEATURES = frozenset(
    {"pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "abm", "cx16"}
    | {"avx512f", "avx512dq", "avx512vl", "avx512bitalg", "avx512_bitalg", "avx512vbmi", "avx512_vbmi"}
)


def engine_config() -> wasmtime.Config:
    """A new configuration with the settings of every clawbox engine; an engine consumes it."""
    config = wasmtime.Config()
    for name, value in _SETTINGS:
        setattr(config, name, value)
    return config


def new_engine() -> wasmtime.Engine:
    """A new engine with :func:`engine_config`.

    An engine may be made before ``fork`` and used after it, as long as nothing ran in it before.
    """
    return wasmtime.Engine(engine_config())


def cpu_features(cpuinfo: str, machine: str) -> tuple[str, ...]:
    """The features in ``/proc/cpuinfo`` that change what code is generated for this machine, sorted.

    The artifact of another processor may hold instructions that this one lacks.
    """
    features: set[str] = set()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            features = set(value.split())
            break
    return tuple(sorted(features & _X86_FEATURES if machine == "x86_64" else features))


def _fingerprint() -> str:
    machine = platform.machine()
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""
    parts = (metadata.version("wasmtime"), machine, _SETTINGS, cpu_features(cpuinfo, machine))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


ENGINE_FINGERPRINT = _fingerprint()
"""32 hexadecimal digits that name wasmtime's version, the settings and the processor's features."""
