"""Write the machine code of the gate and its companion from their sources; with ``--check``, only compare.

Zig's assembler, which set-up installs, knows both machines; GNU as makes the same bytes.
"""

import itertools
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from clawbox.containers.gate.elf import MACHINES

GATE = Path(__file__).resolve().parent.parent / "clawbox/containers/gate"
PROGRAMS = ("gate", "hold")


def assemble(program: str, machine: str) -> bytes:
    """The machine code that the source of ``program`` for ``machine`` makes."""
    with tempfile.TemporaryDirectory() as folder:
        assembled = Path(folder, "program.o")
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-freestanding-none"]
        subprocess.run(
            [*zig, "-c", "-o", assembled, GATE / f"{program}_{machine}.S"],
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder},
            check=True,
        )
        return _section(assembled.read_bytes(), b".text")


def _section(elf: bytes, name: bytes) -> bytes:
    """The content of a section of an ELF file (System V ABI, chapter 4)."""
    (at,) = struct.unpack_from("<Q", elf, 40)
    each, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<I20xQQ", elf, at + each * index) for index in range(count)]
    strings = headers[names][1]
    for named, offset, size in headers:
        if elf.startswith(name + b"\0", strings + named):
            return elf[offset : offset + size]
    raise ValueError(f"there is no section {name.decode()}")


def text(code: bytes) -> str:
    """The file that holds the code: hexadecimal, 32 bytes a line."""
    return "".join(f"{code[at : at + 32].hex(' ', 4)}\n" for at in range(0, len(code), 32))


def main(arguments: list[str]) -> int:
    """Write or compare the code of every program; return the exit status."""
    status = 0
    for program, machine in itertools.product(PROGRAMS, MACHINES):
        committed, made = GATE / f"{program}_{machine}.hex", text(assemble(program, machine))
        if arguments != ["--check"]:
            committed.write_text(made, "ascii")
        elif not committed.is_file() or committed.read_text("ascii") != made:
            print(f"{committed.name} is not what its source makes; `make generate` writes it anew.")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
