"""``python -m tests.programs.network_box FD COMMAND…``: run it in a network of its own, as containers do.

The network (network_namespaces(7)) has a loopback interface and nothing else. Before the command, a listener
at 127.0.0.1:3128 in it goes over the Unix socket FD to whoever serves it, who answers with one byte. Where
the caller may not make networks, it is in a user namespace, too.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

from clawbox.children import linux

PORT = 3128
CLONE_NEWUSER = 0x1000_0000
CAP_SYS_ADMIN = 21
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def main() -> None:
    flags = linux.CLONE_NEWNET
    linux.unshare(flags if linux.has_capability(CAP_SYS_ADMIN) else flags | CLONE_NEWUSER)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    with (
        socket.create_server(("127.0.0.1", PORT)) as listener,
        socket.socket(fileno=int(sys.argv[1])) as server,
    ):
        socket.send_fds(server, [b"listener"], [listener.fileno()])
        assert server.recv(1) == b"!"
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
