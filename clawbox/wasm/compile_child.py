"""Compiles one WebAssembly binary in a process of its own, which ``clawbox.wasm.compiler`` starts.

A compiler that reads hostile bytes is a parser with a large surface: 28 KB took 8.9 s and 834 MB
(docs/security.md, 90). So it is a fresh process with an empty environment and limits on memory and processor
time, without network, privileges, or a way to open a file, before it reads the first byte. (Compiling after a
fork hung.)

The order is one JSON object as the argument, :class:`Order`. The binary comes on descriptor 0. The answer on
descriptor 1 is four bytes of length (big-endian), :class:`Answer` as JSON, and then the artifact.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import signal
import struct
import sys

import msgspec
import wasmtime
from wasmtime import component

from clawbox.children import filters, linux, seccomp
from clawbox.children.confine import (
    check_privileges,
    close_descriptors,
    drop_privileges,
    limit_resources,
)
from clawbox.wasm.engine import engine_config
from clawbox.wasm.interface import (
    COMPONENT_MAGIC,
    MODULE_MAGIC,
    InterfaceError,
    check_component,
    check_module,
)
from clawbox.wasm.model import Abi  # noqa: TC001 - msgspec reads the annotations

MAX_ERROR = 2000
"""Characters of an error that are passed on."""


class Order(msgspec.Struct, frozen=True):
    """What control asks for."""

    trusted: bool
    """Part of this program's own set-up: no limits, and as many threads as there are cores."""
    parent: int
    """Process id of the server: when it is gone, so is this process."""
    uid: int | None
    """Unprivileged user and group to become, which no other process has; None keeps the server's."""
    data_bytes: int
    """RLIMIT_DATA: private memory."""
    cpu_seconds: int


class Answer(msgspec.Struct, frozen=True):
    """What came of it. Exactly one of ``abi`` and ``error`` is set."""

    abi: Abi | None = None
    error: str = ""
    artifact_bytes: int = 0


HEADER = struct.Struct(">I")


def compile_binary(engine: wasmtime.Engine, binary: bytes) -> tuple[Abi, bytearray]:
    """The ABI and the artifact of a module or component; raises InterfaceError and WasmtimeError."""
    if binary.startswith(COMPONENT_MAGIC):
        compiled = component.Component(engine, binary)
        return check_component(engine, compiled), compiled.serialize()
    if not binary.startswith(MODULE_MAGIC):
        raise InterfaceError("not WebAssembly: it does not begin with \\0asm and a known version")
    module = wasmtime.Module(engine, binary)
    return check_module(engine, module), module.serialize()


def main(arguments: list[str]) -> None:
    """Take the order, give up everything that compiling does not need, compile, answer."""
    order = msgspec.json.decode(arguments[0], type=Order)
    linux.set_process_name("clawbox-compile")
    config = engine_config()
    config.parallel_compilation = order.trusted
    engine = wasmtime.Engine(config)
    # Whatever is imported late must be imported now: afterwards no file can be opened.
    compile_binary(engine, bytes(wasmtime.wat2wasm(_WARM_UP)))
    if not order.trusted:
        _confine(order)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # the kernel forgets it when the uid changes
    if os.getppid() != order.parent:
        sys.exit("the server is gone")
    if not order.trusted:
        _filter_system_calls()
    binary = _read_all(0)
    try:
        abi, artifact = compile_binary(engine, binary)
    except InterfaceError as error:
        _answer(Answer(error=str(error)[:MAX_ERROR]))
    except wasmtime.WasmtimeError as error:
        _answer(Answer(error=f"not WebAssembly that can run here: {_one_line(str(error))}"[:MAX_ERROR]))
    else:
        _answer(Answer(abi=abi, artifact_bytes=len(artifact)), artifact)
    # Nothing is left to do, and tearing the engine down may need what was given up.
    os._exit(0)


_WARM_UP = '(module (memory (export "memory") 1) (func (export "_start")))'


def _confine(order: Order) -> None:
    """No network, no privileges, no new programs, bounded memory and time.

    Raises OSError and ConfinementError.
    """
    limit_resources(own_uid=order.uid is not None)
    resource.setrlimit(resource.RLIMIT_CPU, (order.cpu_seconds, order.cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (order.data_bytes, order.data_bytes))
    if linux.has_capability(linux.CAP_SYS_ADMIN):
        linux.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWIPC)
    close_descriptors(())
    drop_privileges(order.uid)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    # After the uid changed, which sets it back to what fs.suid_dumpable says.
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    check_privileges(order.uid)


def _filter_system_calls() -> None:
    architecture = seccomp.ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise OSError(errno.ENOSYS, f"no system call filter is known for {platform.machine()}")
    seccomp.install(seccomp.build(architecture, filters.compiling(os.getpid())))


def _one_line(text: str) -> str:
    return "; ".join(part.strip() for part in text.splitlines() if part.strip())


def _read_all(descriptor: int) -> bytes:
    chunks = []
    while chunk := os.read(descriptor, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def _answer(answer: Answer, artifact: bytes | bytearray = b"") -> None:
    head = msgspec.json.encode(answer)
    for part in (HEADER.pack(len(head)) + head, artifact):
        view = memoryview(part)
        while view:
            view = view[os.write(1, view) :]
