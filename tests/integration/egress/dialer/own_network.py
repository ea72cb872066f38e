"""A program of its own: a dialer in a network with its own name server, which prints what came of its dials.

The network, the mounts and, where the caller may not make those, the user are new namespaces (namespaces(7)),
so that the name server can have port 53 and the machine's configuration stays as it is.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
import tempfile
from pathlib import Path

from clawbox.children import linux
from clawbox.egress.messages import Limits
from clawbox.egress.refusal import RefusedError
from tests.integration.egress.dialer.name_server import NameServer
from tests.integration.egress.dialer.process import dialer_process

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUSER = 0x1000_0000
CAP_SYS_ADMIN = 21
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x4_0000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

CONFIGURATION = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:10 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": "127.0.0.1 localhost\n127.0.0.5 pinned.test\n",
}
ZONE: dict[str, list[list[str]] | str | None] = {
    "both.test": [["127.0.0.1", "::1"]],
    "alias.test": "both.test",
    "mixed.test": [["127.0.0.1", "10.0.0.1"]],
    "mixed6.test": [["127.0.0.1", "fd00::1"]],
    "rebinding.test": [["127.0.0.1"], ["169.254.169.254"]],
    "many.test": [[f"127.0.0.{number}" for number in range(1, 25)]],
    "empty.test": [[]],
    "silent.test": None,
    "pinned.test": [["10.0.0.1"]],
}


def mount(source: str, target: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), None, flags, None):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def enter() -> None:
    flags = CLONE_NEWNS | linux.CLONE_NEWNET
    linux.unshare(flags if linux.has_capability(CAP_SYS_ADMIN) else flags | CLONE_NEWUSER)
    mount("none", "/", MS_REC | MS_PRIVATE)
    for name, text in CONFIGURATION.items():
        with tempfile.NamedTemporaryFile("w", suffix=name) as file:
            file.write(text)
            file.flush()
            Path(file.name).chmod(0o644)
            mount(file.name, os.path.realpath(f"/etc/{name}"), MS_BIND)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


async def dial_all(names: NameServer, port: int) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    async with dialer_process() as process:
        hosts = [*ZONE, "nowhere.test"]
        rules = [{"host": host, "ports": [port]} for host in hosts]
        client = process.client(*rules, limits=Limits(connect_timeout_ms=20_000))
        hasty = process.client(*rules, limits=Limits(connect_timeout_ms=300))
        for host in [*hosts, "rebinding.test", "forbidden.test"]:
            try:
                dialed = await (hasty if host == "silent.test" else client).dial(host, port)
            except RefusedError as error:
                said.setdefault(host, []).append(error.refusal.denial.name)
            else:
                said.setdefault(host, []).append(dialed.address)
                dialed.socket.close()
    said["asked"] = names.asked
    return said


def main() -> None:
    enter()
    names = NameServer(ZONE)
    names.start()
    # For IPv4 and IPv6 alike.
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        json.dump(asyncio.run(dial_all(names, server.getsockname()[1])), sys.stdout)


if __name__ == "__main__":
    main()
