"""Machine code as an ELF executable: one segment that is read and executed, nothing that is written.

System V ABI, chapters 4 and 5, and its supplements for x86-64 and AArch64.
"""

from __future__ import annotations

import struct
from typing import Final

MACHINES: Final = {"x86_64": 62, "aarch64": 183}
"""``e_machine`` by the name that uname(2) gives."""

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_EXECUTABLE: Final = 2  # ET_EXEC: at a fixed address, so that nothing has to be relocated
_LOAD: Final = 1
_GNU_STACK: Final = 0x6474_E551
_EXECUTE, _WRITE, _READ = 1, 2, 4
_BASE: Final = 0x40_0000
_ALIGNMENT: Final = 0x1_0000  # the largest page of any arm64 kernel


def pack(machine: str, code: bytes) -> bytes:
    """The static executable whose first instruction is that of ``code``.

    ``code`` is position-independent, or made for where it comes to lie: behind the headers. It cannot write
    to itself. The stack is not executable: without PT_GNU_STACK the kernel would make all that is readable
    executable (execve(2), READ_IMPLIES_EXEC).
    """
    headers = _HEADER.size + 2 * _PROGRAM_HEADER.size
    size = headers + len(code)
    header = _HEADER.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),  # 64 bits, little endian, version 1
        _EXECUTABLE,
        MACHINES[machine],
        1,
        _BASE + headers,
        _HEADER.size,
        0,  # no sections
        0,
        _HEADER.size,
        _PROGRAM_HEADER.size,
        2,
        0,
        0,
        0,
    )
    load = _PROGRAM_HEADER.pack(_LOAD, _READ | _EXECUTE, 0, _BASE, _BASE, size, size, _ALIGNMENT)
    stack = _PROGRAM_HEADER.pack(_GNU_STACK, _READ | _WRITE, 0, 0, 0, 0, 0, 16)
    return header + load + stack + code
