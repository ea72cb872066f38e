"""The Docker engine of this machine: whether it is there, and what containers can be made from."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import secrets
import shutil
import socket
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT_BASE = "clawbox/agent-base:latest"
_COMMANDS = ("cat", "cut", "grep", "id", "nc", "printf", "sh", "sha256sum", "sort", "touch")


class NoContainersError(Exception):
    """There can be no containers here; says why, and what would help."""


class Engine:
    """Where ``DOCKER_HOST`` says, or at the usual place. Raises NoContainersError when it does not answer."""

    def __init__(self) -> None:
        self.url = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        try:
            self._ask("GET", "/_ping")
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise NoContainersError(
                f"no Docker engine answers at {self.url} ({reason}): on Debian and Ubuntu "
                "`apt install docker.io` brings one, and DOCKER_HOST names another"
            ) from None

    @contextlib.contextmanager
    def image(self) -> Iterator[str]:
        """The name of an image: clawbox/agent-base where it is, else a small one, made and removed again.

        Raises NoContainersError when there is nothing to make it of.
        """
        if self._ask("GET", f"/images/{quote(AGENT_BASE)}/json")[0] == http.client.OK:
            yield AGENT_BASE
            return
        layer = _layer(_busybox())
        name = f"clawbox/demo-{secrets.token_hex(6)}"
        query = urlencode({"fromSrc": "-", "repo": name, "tag": "latest", "changes": "ENV PATH=/bin"})
        try:
            status, answer = self._ask("POST", f"/images/create?{query}", layer)
            if status != http.client.OK:
                raise NoContainersError(
                    f"the Docker engine makes no image: {answer.decode(errors='replace')}"
                )
            yield f"{name}:latest"
        finally:
            self._ask("DELETE", f"/images/{quote(name)}:latest?force=1")

    def knows(self, container: str) -> bool:
        """Whether it has a container of that name."""
        return self._ask("GET", f"/containers/{container}/json")[0] == http.client.OK

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = _Connection(self.url)
        try:
            connection.request(method, path, body, {"Content-Type": "application/x-tar"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over the socket that a URL names."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        super().__init__(parts.hostname or "localhost", parts.port, timeout=60)
        self._path = parts.path if parts.scheme == "unix" else ""

    def connect(self) -> None:
        if not self._path:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _busybox() -> bytes:
    """A program that is many and needs no library. Raises NoContainersError where there is none."""
    for path in (shutil.which("busybox"), "/bin/busybox"):
        if path and Path(path).exists():
            program = Path(path).read_bytes()
            # One that needs libraries names its loader near the beginning (elf(5), PT_INTERP).
            if b"/ld-" not in program[:4096]:
                return program
    raise NoContainersError(
        "there is no image: `make agent-base` builds one (as root, a minute), and "
        "`apt install busybox-static` brings what a small one is made of"
    )


def _layer(busybox: bytes) -> bytes:
    """A tar archive with the shell and what the demo uses in it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        program = tarfile.TarInfo("bin/busybox")
        program.size, program.mode = len(busybox), 0o755
        tar.addfile(program, io.BytesIO(busybox))
        for name in _COMMANDS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return layer.getvalue()
