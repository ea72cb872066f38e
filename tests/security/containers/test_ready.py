"""A program finds its way out with its first instruction: whatever the image, whoever it runs as."""

from __future__ import annotations

import platform
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from clawbox_client import SyncClient

from clawbox.containers.gate.elf import pack
from tests.containers_world import containers_server
from tests.engine.images import busybox, tar_of

STARTS = 50
AT_ONCE = 4

# Its first call makes a socket, its second connects it to 127.0.0.1:3128; it exits with the error's number.
#   mov $41,%eax; mov $2,%edi; mov $1,%esi; xor %edx,%edx; syscall        socket(AF_INET, SOCK_STREAM, 0)
#   mov %eax,%ebx; push $0; mov $0x0100007f380c0002,%rax; push %rax       struct sockaddr_in
#   mov %rsp,%rsi; mov %ebx,%edi; mov $16,%edx; mov $42,%eax; syscall     connect
#   neg %eax; mov %eax,%edi; mov $231,%eax; syscall                       exit_group
_CONNECT = (
    "b829000000bf02000000be0100000031d20f0589c36a0048b802000c387f000001504889e689dfba10000000b82a000000"
    "0f05f7d889c7b8e70000000f05"
)

TEMPLATES = """
[images.templates.shell-root]
image = "{shell}"
user = "0:0"
[images.templates.bare-root]
image = "{bare}"
user = "0:0"
"""


def program():
    """A file, and the command that connects at once."""
    if platform.machine() == "x86_64":
        return pack("x86_64", bytes.fromhex(_CONNECT)), ["/bin/connect"]
    return busybox(), ["/bin/nc", "127.0.0.1", "3128"]


@pytest.fixture(scope="module")
def offered(tmp_path_factory, engine_url, session_images):
    data, (path, *_) = program()
    shell = session_images(files={path[1:]: data}, name="connects")
    bare = session_images(layer=tar_of({path[1:]: data}), name="connects-alone")
    more = TEMPLATES.format(shell=shell, bare=bare)
    home = tmp_path_factory.mktemp("ready") / "clawbox"
    with (
        containers_server(home, engine_url, f"max_containers = {AT_ONCE + 1}", more) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        kinds = [{"image": shell}, {"image": bare}, {"template": "shell-root"}, {"template": "bare-root"}]
        yield client, kinds


def test_each_of_fifty_immediate_connections_is_accepted(offered):
    client, kinds = offered
    _, command = program()

    def start(number):
        container = client.spawn("connects at once", command=command, **kinds[number % 4])
        ended = client.wait_container(container.container_id, deadline=60)
        client.remove_container(container.container_id)
        return container.egress, ended.exit_code

    with ThreadPoolExecutor(AT_ONCE) as threads:
        told = Counter(threads.map(start, range(STARTS)))
    assert told == {("ready", 0): STARTS}
